"""`jdl run`."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Literal

from jdl.cli.command import of_name
from jdl.cli.console import finish
from jdl.cli.options import read
from jdl.cli.resume import go_on
from jdl.experiment import execute, find, records, search_space
from jdl.runtime import processes
from jdl.runtime.cores import use_every_core
from jdl.training.profiling import profile


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, whatever the experiment."""

    seeds: int = 1
    """independent runs, trained together: seeds 0, 1, ..."""
    seed_list: tuple[int, ...] = ()
    """these seeds instead of 0, 1, ..., to repeat some of a larger set"""
    run_dir: Path | None = None
    """the run directory; by default runs/NAME/TIME"""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """where to send metrics besides metrics.jsonl"""
    smoke: bool = False
    """run through the whole experiment with the smallest sizes, its SMOKE, to see that it works"""
    record: bool = False
    """keep the result as a record beside the experiment (`jdl results`)"""
    profile: int | None = None
    """trace this many calls of the step, once warm, into profile/ in the run directory, and show where the time went"""
    json: bool = False
    """print the result as one JSON object, on the last line"""


def run(name: str, arguments: list[str]) -> int:
    """Run an experiment: its name, a dotted path or a file, then --FIELD VALUE ...; `jdl run NAME --help` lists them.

    Args:
        name: the experiment
    """
    use_every_core()  # first: an experiment that touches JAX when it is imported would start it with one device
    module = find.find(name)
    smoke = module.SMOKE if "--smoke" in arguments and hasattr(module, "SMOKE") else {}
    chosen = read("run", name, module, Options, arguments, default=search_space.replaced(module.Config(), smoke))
    options = chosen.options
    numbers = options.seed_list or tuple(range(options.seeds))
    if not numbers or min(numbers) < 0:
        raise ValueError(f"--seeds {options.seeds}: give at least 1 run (or --seed-list with seeds from 0 up)")
    if options.record and options.smoke:
        raise ValueError("--record keeps a result, and --smoke has none worth keeping: give one of them")
    begun = execute.begun(module, chosen.config, numbers, options.run_dir) if options.run_dir else None
    if begun is None:
        execute.settle(chosen.config)
    else:
        execute.settle_run(begun)
    domain = next((one.domain for one in find.experiments() if one.file.samefile(str(module.__file__))), "")
    measured = records.of_config(module, chosen.config, domain) if options.record else None
    with profile(options.profile) if options.profile is not None else contextlib.nullcontext():
        if begun is not None:
            status = go_on(begun, options.json)
            finished = begun
        else:
            prepared = execute.prepare(module, chosen.config, numbers, options.run_dir, options.log)
            finished = execute.begin(prepared)
            status = finish(finished, options.json)
    if measured is not None and processes.first():
        print(f"recorded in {records.write(measured, finished)}", file=sys.stderr)
    return status


COMMAND = of_name(run)
