"""Runs of an experiment over a grid of settings, side by side on this machine or on a cluster, with Ray.

Each is an ordinary run directory. If a worker dies, its run is started again, perhaps on another machine, and continues
from its last checkpoint. All machines must therefore see the folder of the sweep and that of the experiments.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jdl.experiment import find, search_space
from jdl.experiment.config import encode
from jdl.runtime import processes
from jdl.runtime.cores import share_cores
from jdl.runtime.files import as_json, write_json
from jdl.runtime.preemption import REQUEUE
from jdl.training.runs import Run, locked

FOLDER = Path("runs") / "sweep"
_DESCRIPTION = "sweep.json"
_OUTPUT = "output"


@dataclasses.dataclass(frozen=True)
class Options:
    """How to sweep, whatever the experiment."""

    seeds: int = 1
    """seeds 0, 1, ... of each setting"""
    split_seeds: bool = False
    """train each seed as a run of its own, instead of all seeds of a setting in one run"""
    address: str | None = None
    """address of a Ray cluster ("auto": the one that this machine belongs to); by default this machine alone"""
    cpus: int = 1
    """number of cores for each run"""
    gpus: float = 0.0
    """number of accelerators for each run; with a fraction, runs share one"""
    retries: int = 3
    """how often a run is started again after its worker died"""
    sweep_dir: Path | None = None
    """the sweep's directory, by default runs/sweep/NAME"""


class Swept(NamedTuple):
    """A run of a sweep.

    Attributes:
        run: the run directory.
        settings: the value of each field of the grid.
        seeds: the seeds of the run.
        failure: why the run has no result; empty if it has one.
    """

    run: Path
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    failure: str = ""


class Interrupted(Exception):
    """A run was told to end, as when its machine is taken away. Ray starts it again."""


def sweep(
    experiment: str | ModuleType,
    grid: Mapping[str, Sequence[Any]],
    options: Options | None = None,
    *,
    command: Callable[[list[str]], None],
    config: Any = None,
    watch: Callable[[Swept], None] = lambda swept: None,
) -> list[Swept]:
    """Run an experiment with each combination of the values of a grid.

    A run that has a result is not trained again. If a run fails, the others go on.

    Args:
        experiment: the experiment, or its name as `jdl run` takes it.
        grid: the values of each field; a field of a dataclass within the Config has a dotted name.
        options: how to sweep; by default `Options()`, one seed of each setting on this machine.
        command: the command line of jdl (`jdl.cli.main.main`), which a worker calls with the words of one run.
        config: the values of the other fields; by default those of `Config()`.
        watch: called with each run that ends.

    Returns:
        The runs, in the order of the grid with the last field varying fastest.

    Raises:
        ValueError: for wrong options, such as more cores than the machines have, and for a grid that does not fit
            the Config.
        FileExistsError: if the folder has another sweep.
        ConnectionError: if there is no Ray cluster at the address.
        ImportError: if Ray is not installed.
    """
    options = options or Options()
    module = find.find(experiment) if isinstance(experiment, str) else experiment
    name = find.name_of(module)
    config = module.Config() if config is None else config
    for field in ("seeds", "cpus"):
        if getattr(options, field) < 1:
            raise ValueError(f"--{field} {getattr(options, field)}: give at least 1")
    if options.gpus < 0 or options.retries < 0:
        raise ValueError(f"--gpus {options.gpus} --retries {options.retries}: neither is negative")
    for field, values in grid.items():
        search_space.known(field, search_space.fields(module.Config))
        if not values or len(set(values)) != len(values):
            raise ValueError(f"the grid of {field}, {list(values)}: give at least one value, each of them once")
    folder = (options.sweep_dir or FOLDER / Path(name).stem).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _describe(folder, {"experiment": name, "config": config, "grid": grid, "options": options})
        trials = _trials(folder, grid, options)
        ended = {trial.run: trial for trial in trials if _finished(trial.run)}
        waiting = [trial for trial in trials if trial.run not in ended]
        for trial in _work_on(waiting, name, config, folder, options, command) if waiting else ():
            ended[trial.run] = trial
            watch(trial)
    return [ended[trial.run] for trial in trials]


def finals(swept: Sequence[Swept]) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Collect the final metrics of each setting of a sweep.

    Args:
        swept: the runs, as `sweep` returns them.

    Returns:
        For each setting: the setting, and its final metrics by name with one value per seed, without failed runs.
    """
    found: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
    for settings, group in itertools.groupby(swept, lambda one: one.settings):
        results = [Run(one.run).final for one in group if not one.failure]
        names = results[0] if results else {}
        found.append((settings, {name: np.concatenate([np.asarray(one[name]) for one in results]) for name in names}))
    return found


def _trials(folder: Path, grid: Mapping[str, Sequence[Any]], options: Options) -> list[Swept]:
    numbers = range(options.seeds)
    groups = [(seed,) for seed in numbers] if options.split_seeds else [tuple(numbers)]
    combinations = itertools.product(itertools.product(*grid.values()), groups)
    return [
        Swept(folder / f"{index:04d}", dict(zip(grid, values, strict=True)), seeds)
        for index, (values, seeds) in enumerate(combinations)
    ]


def _describe(folder: Path, given: Mapping[str, Any]) -> None:
    """Write the description of a sweep, or check that it is the one that the folder already has."""
    deciding = {name: getattr(given["options"], name) for name in ("seeds", "split_seeds")}
    description = as_json(
        {"experiment": given["experiment"], "config": encode(given["config"]), **deciding}
        | {"grid": {field: list(values) for field, values in given["grid"].items()}}
    )
    file = folder / _DESCRIPTION
    if not file.is_file():
        write_json(file, description)
    elif (held := read(folder)) != description:
        differ = [
            f"{name} {held.get(name)} there, {value} here"
            for name, value in description.items()
            if held.get(name) != value
        ]
        raise FileExistsError(f"{folder} holds another sweep: {'; '.join(differ)}; choose another --sweep-dir")


def read(folder: Path) -> dict[str, Any]:
    """Read the description of a sweep from its directory: experiment, config, seeds and grid."""
    return json.loads((folder / _DESCRIPTION).read_text())


def _finished(path: Path) -> bool:
    return (path / "config.json").is_file() and Run(path).result is not None


def _work_on(
    trials: Sequence[Swept],
    name: str,
    config: Any,
    folder: Path,
    options: Options,
    command: Callable[[list[str]], None],
) -> Any:
    """Train the runs in Ray's workers, and yield each when it ends."""
    ray = _started(options)
    try:
        # One worker per run, because JAX keeps state of a run. Ray itself starts workers again that die.
        work = ray.remote(
            num_cpus=options.cpus, num_gpus=options.gpus, max_calls=1, max_retries=options.retries,
            retry_exceptions=[Interrupted],
        )(_work)  # fmt: skip
        (folder / _OUTPUT).mkdir(exist_ok=True)
        working = {}
        for trial in trials:
            words = ["run", name, *search_space.options(search_space.replaced(config, trial.settings))]
            words += ["--seed-list", *map(str, trial.seeds), "--run-dir", str(trial.run)]
            output = folder / _OUTPUT / f"{trial.run.name}.txt"
            working[work.remote(command, words, os.getcwd(), str(output), options.cpus)] = trial
        while working:
            for done in ray.wait(list(working))[0]:
                trial = working.pop(done)
                try:
                    failure = ray.get(done)
                except (ray.exceptions.RayError, Interrupted) as error:
                    failure = f"its worker was lost {options.retries + 1} times ({type(error).__name__})"
                yield trial._replace(failure=failure)
    finally:
        ray.shutdown()


def _started(options: Options) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("jdl sweep needs Ray: pip install 'jdl[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        # Ray itself would try for minutes to reach a cluster that is not there.
        if options.address and (where := options.address.rpartition("://")[2]).rpartition(":")[2].isdigit():
            processes.reach(where)
        with warnings.catch_warnings():
            # After a fork, Ray's processes execute another program at once, so locks of JAX's threads do not matter.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address=options.address, include_dashboard=None if options.address else False,
                     log_to_driver=False, logging_level=logging.ERROR)  # fmt: skip
    except OSError as error:
        raise ConnectionError(
            f"there is no Ray cluster at {options.address} ({error}); start one (`ray start --head`), or leave "
            "--address out to use this machine"
        ) from error
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", options.cpus), ("GPU", options.gpus)):
        if wanted > there.get(kind, 0):
            ray.shutdown()
            raise ValueError(f"--{kind.lower()}s {wanted}: the machines have {there.get(kind, 0):g} in all")
    return ray


def _work(command: Callable[[list[str]], None], words: list[str], folder: str, output: str, cores: int) -> str:
    """Run the command `jdl run` in a worker; returns why it failed, empty if it did not."""
    os.chdir(folder)
    share_cores(cores)
    status: Any = 0
    with open(output, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            command(words)
        except SystemExit as ended:
            status = ended.code
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if status == REQUEUE:
        raise Interrupted
    lines = [line for line in Path(output).read_text().splitlines() if line.strip()]
    return (lines[-1].removeprefix("jdl: ") if lines else f"status {status}") if status else ""
