"""Reinforcement learning's speed: on the host beside Stable-Baselines3 and SBX, on the device beside PPO by hand.

Command:   python -m experiments.bench.rl --peer-python PATH [--json] [--rounds 5] [--only host device compile ...]
           PATH is a Python that has both peers (`make bench-rl` builds one)
Time:      about 25 minutes on 2 cores
Expected:  the table in experiments/bench/README.md
"""

import argparse
import functools
import sys

from experiments.bench import device, host, replay
from experiments.bench.measure import show
from experiments.bench.noise import measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="a Python with SB3 and SBX")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program has its turn")
    names = ("host", "device", "compile", "replay", "time")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    options = parser.parse_args()
    sections = {
        "host": functools.partial(host.host_rows, peer_python=options.peer_python),
        "device": device.device_rows,
        "compile": device.compile_rows,
        "replay": replay.replay_rows,
        "time": functools.partial(host.time_rows, peer_python=options.peer_python),
    }
    rows = measured({name: sections[name] for name in options.only}, options.rounds)
    show(rows, "reinforcement learning", options.json)


if __name__ == "__main__":
    main()
