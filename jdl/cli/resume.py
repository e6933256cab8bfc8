"""`jdl resume`."""

import sys

from jdl.cli.command import Command, Json, RunPath
from jdl.cli.console import finish
from jdl.experiment import execute
from jdl.experiment.population import refuse_population
from jdl.runtime import processes
from jdl.runtime.cores import use_every_core
from jdl.training.runs import Run, shared_copy


def resume(run: RunPath, /, devices: str = "", mesh: str = "", json: Json = False) -> int:
    """Continue a run that was stopped, from its last checkpoint; it ends in the bits that it would have had.

    Args:
        devices: continue in another mode (single, data, fsdp ...); the results then agree up to rounding
        mesh: continue over this many devices (8, or 4x2); the results then agree up to rounding
    """
    use_every_core()
    found = Run(run)
    execute.require_experiment(found)
    refuse_population(found)
    if devices or mesh:
        processes.by_first(lambda: execute.move(found, devices, mesh))
    found = shared_copy(run)
    execute.settle_run(found)
    return go_on(found, json)


def go_on(run: Run, as_json: bool) -> int:
    """Continue a run where it stopped, and show its result; a run that is finished shows its result at once.

    Returns:
        The exit status.
    """
    if run.result is None:
        before = run.environment
        for line in execute.environment_differences(before, run.resumed()):
            print(f"jdl: the environment has changed since the run was made: {line}", file=sys.stderr)
    return finish(execute.execute(run), as_json)


COMMAND = Command(resume)
