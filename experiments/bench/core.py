"""The framework's speed beside what one would write by hand.

Command:   python -m experiments.bench.core [--json] [--rounds 7] [--only loop scan seeds starts memory checkpoints]
Time:      about 8 minutes on 2 cores
Expected:  the table in experiments/bench/README.md
"""

import argparse

from experiments.bench import checkpoints, loops, seeds, starts
from experiments.bench.measure import show
from experiments.bench.noise import measured

SECTIONS = {
    "loop": loops.loop_rows,
    "scan": loops.scan_rows,
    "seeds": seeds.seed_rows,
    "starts": starts.start_rows,
    "memory": starts.memory_rows,
    "checkpoints": checkpoints.checkpoint_rows,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    parser.add_argument("--rounds", type=int, default=7, help="how often each program has its turn")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME")
    options = parser.parse_args()
    rows = measured({name: SECTIONS[name] for name in options.only}, options.rounds)
    show(rows, "the framework beside what one would write by hand", options.json)


if __name__ == "__main__":
    main()
