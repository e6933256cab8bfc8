"""`jdl resume`."""

import sys

from jdl.cli.command import Command, Json, RunPath
from jdl.cli.console import finish
from jdl.experiment import execute
from jdl.runtime import processes
from jdl.runtime.cores import use_every_core
from jdl.training.runs import Run, together


def resume(run: RunPath, /, devices: str = "", mesh: str = "", json: Json = False) -> int:
    """Continue a run that was stopped, from its last checkpoint, to the bits it would have had.

    Args:
        devices: go on in another mode than its config's (single, data, fsdp ...), over all devices; up to rounding
        mesh: go on over so many devices (8, or 4x2); up to rounding
    """
    use_every_core()
    found = Run(run)
    execute.require_experiment(found)
    if devices or mesh:
        processes.by_first(lambda: execute.move(found, devices, mesh))
    found = together(run)
    execute.settle_run(found)
    return go_on(found, json)


def go_on(run: Run, as_json: bool) -> int:
    """Continue a run where it stopped, or report one that is finished; returns the status."""
    if run.result is None:
        before = run.environment
        for line in execute.environment_differences(before, run.resumed()):
            print(f"jdl: the environment has changed since the run was made: {line}", file=sys.stderr)
    return finish(execute.execute(run), as_json)


COMMAND = Command(resume)
