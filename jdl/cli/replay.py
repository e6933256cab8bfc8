"""`jdl replay`."""

import sys

from jdl.cli.command import Command, Json, RunPath
from jdl.cli.console import console, print_json
from jdl.experiment import execute
from jdl.runtime.cores import use_every_core
from jdl.training.runs import Run


def replay(run: RunPath, /, json: Json = False) -> int:
    """Repeat a run in a new directory beside it, and tell whether all metrics agree to the bit."""
    use_every_core()
    found = Run(run)
    execute.require_experiment(found)
    execute.settle_run(found)
    if found.description.get("before"):
        print(f"jdl: {found.path} moved between devices on its way: the last bits may differ", file=sys.stderr)
    copy, differences = execute.replay(found)
    verdict = "every metric agrees to the bit" if not differences else f"{len(differences)} metrics differ"
    lines = [f"{run} repeated in {copy.path}: {verdict}", *differences[:20]]
    lines += [
        f"environment: {line}" for line in execute.environment_differences(Run(run).environment, copy.environment)
    ]
    console.print("\n  ".join(lines), soft_wrap=True, markup=False)
    if json:
        print_json({"run": str(copy.path), "agrees": not differences, "differences": differences})
    return 1 if differences else 0


COMMAND = Command(replay)
