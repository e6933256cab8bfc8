"""Experiments in run directories: start a run, continue it, move it to other devices, repeat it."""

import hashlib
import math
import shutil
import time
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from jdl.experiment.config import decode, encode
from jdl.experiment.find import find, load_file
from jdl.experiment.population import POPULATION, mark_population, refuse_population
from jdl.parallel.modes import MODES, check_mesh
from jdl.runtime import processes
from jdl.runtime.cores import ask_for_devices, cores, one_core
from jdl.runtime.files import as_json
from jdl.training import runs
from jdl.training.runs import Run

COPY = "experiment.py"  # in a run directory: the experiment's source


def run(
    experiment: str | ModuleType,
    config: Any = None,
    *,
    seeds: int | Sequence[int] = 1,
    path: str | Path | None = None,
) -> Run:
    """Run an experiment in a new run directory, and write its result there.

    The directory gets config, seeds, environment, log, checkpoints and final metrics, but no report and no figures of
    it: `jdl.write_report(run)` writes those. `jdl.load(run.path)` opens the run with its trained state.

        finished = jdl.run("xor", seeds=4)

    Args:
        experiment: the experiment, a module with `Config` and `main(config, run)`; or its name as `jdl run` takes it.
        config: the experiment's config; by default `Config()`.
        seeds: the number of independent runs, with seeds 0, 1, ...; or a list of seeds.
        path: the run directory; by default runs/NAME/TIME.

    Returns:
        The finished run: `run.final` has the final metrics, one value per seed.

    Raises:
        LookupError: if there is no experiment of that name.
        ValueError: for no seed, or for a negative one.
        FileExistsError: if the folder holds anything.
        TypeError: for a config that JSON cannot hold, and if `main` does not return a dict.
    """
    module = find(experiment) if isinstance(experiment, str) else experiment
    config = module.Config() if config is None else config
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds={seeds}: give at least 1 run, as a number or as a list of seeds from 0 up")
    return begin(prepare(module, config, numbers, path))


def prepare(
    module: ModuleType,
    config: Any,
    numbers: Sequence[int],
    path: str | Path | None = None,
    log: Sequence[str] = (),
) -> Run:
    """Make a new run directory with all that a repetition needs, including a copy of the experiment's source.

    Args:
        module: the experiment.
        config: the experiment's config.
        numbers: the seeds.
        path: the run directory; by default runs/NAME/TIME.
        log: where to send the metrics besides metrics.jsonl, names in `jdl.training.loggers.LOGGERS`.

    Raises:
        FileExistsError: if the folder holds anything.
    """
    file = Path(typing.cast(str, module.__file__))
    folder = default_path(file.stem) if path is None else Path(path)
    processes.agree("experiment", {"SHA-256 of the file": hashlib.sha256(file.read_bytes()).hexdigest()})
    package = module.__name__.rpartition(".")[0]
    root = file.absolute().parents[len(package.split(".")) if package else 0]
    source = {"package": package, "path": sorted({str(root), str(file.absolute().parent)})}
    values = encode(config)
    prepared = runs.create(folder, values, experiment=file.stem, seeds=numbers, log=log, source=source)
    shutil.copyfile(file, prepared.path / COPY)
    return prepared


def begun(module: ModuleType, config: Any, numbers: Sequence[int], path: Path) -> Run | None:
    """Find the unfinished run that the same command started, to continue it.

    A scheduler that ended a command gives the same command again later.

    Args:
        module: the experiment.
        config: the experiment's config.
        numbers: the seeds.
        path: the run directory.

    Returns:
        The run; None if the folder has no run, or a finished one.

    Raises:
        FileExistsError: if the unfinished run there has another experiment, config, seeds or source; the message says
            what differs.
        ValueError: if the unfinished run there trains several settings of a search.
    """
    found = processes.by_first(lambda: _is_begun(module, config, numbers, path))
    return runs.shared_copy(path) if found else None


def _is_begun(module: ModuleType, config: Any, numbers: Sequence[int], path: Path) -> bool:
    if not (path / "config.json").is_file() or (found := Run(path)).result is not None:
        return False
    refuse_population(found)
    file = Path(typing.cast(str, module.__file__))
    wanted = as_json({"experiment": file.stem, "seeds": list(numbers), **encode(config)})
    held = {"experiment": found.description["experiment"], "seeds": list(found.seeds), **found.config}
    held |= found.description.get("before", [{}])[0]  # the config at the start, if `jdl resume` has moved the run
    differ = [
        f"{name} {held.get(name)!r} there, {wanted[name]!r} here" for name in wanted if held.get(name) != wanted[name]
    ]
    if (path / COPY).is_file() and (path / COPY).read_bytes() != file.read_bytes():
        differ.append(f"{file.name} has changed since")
    if differ:
        raise FileExistsError(
            f"{path} holds an unfinished run that is another: {'; '.join(differ)}; choose another --run-dir, or go on "
            f"with that one by `jdl resume {path}`"
        )
    return True


def begin(prepared: Run) -> Run:
    """Execute a new run; if the experiment raises before it has written anything, the folder is removed."""
    files = set(prepared.path.iterdir())
    try:
        return execute(prepared)
    except Exception:
        if {file for file in prepared.path.iterdir() if file.name not in ("__pycache__", "lock")} <= files:
            shutil.rmtree(prepared.path)
        raise


def execute(run: Run) -> Run:
    """Run the experiment of a run directory from the copy of its source there, or continue it.

    A finished run is evaluated again from its last checkpoint and keeps the time that it took.

    Args:
        run: the run.

    Returns:
        The same run, finished.

    Raises:
        TypeError: if `main` does not return a dict.
    """
    module = load_copy(run)
    start = time.monotonic() - _seconds(run)
    metrics = module.main(decode(module.Config, run.config), run)
    if not isinstance(metrics, Mapping):
        raise TypeError(f"main of {run.path / COPY} returned {type(metrics).__name__}; return a dict of final metrics")
    before = run.result  # None unless a finished run is resumed
    run.finish(metrics, before["seconds"] if before else time.monotonic() - start)
    return run


def move(run: Run, devices: str, mesh: str) -> None:
    """Let an unfinished run continue on other devices: every layout can restore the checkpoints of every other.

    Args:
        run: the run.
        devices: the new mode, as in `jdl.distribute`; the present one if it is empty.
        mesh: the new mesh, as in `jdl.distribute`.

    Raises:
        ValueError: for a finished run, for a config without the fields `devices` and `mesh`, and for a mesh that does
            not fit the mode.
        OSError: if another process trains the run.
    """
    config = run.config
    if run.result is not None:
        raise ValueError(f"{run.path} is finished; --devices and --mesh are for a run that goes on")
    if not {"devices", "mesh"} <= config.keys():
        raise ValueError(
            f"the config of {run.path} has no fields devices and mesh, so it runs as it did: leave them out"
        )
    moved = {"devices": devices or config["devices"], "mesh": mesh}
    check_mesh(moved["devices"], mesh)
    with runs.locked(run.path):  # no other process trains it now
        for part in [run, *(Run(file.parent) for file in run.path.glob("*/config.json"))]:
            part.move(moved)


def settle(config: Any) -> None:
    """Set up this process as the config asks, before JAX is used.

    A config with a true `one_core` keeps the process on one core. A config with a mesh splits the CPU into as many
    devices as the mesh has.

    Args:
        config: the experiment's config.
    """
    if getattr(config, "one_core", False):
        one_core()
    devices, mesh = str(getattr(config, "devices", "")), getattr(config, "mesh", None)
    if devices in MODES and isinstance(mesh, str):
        needed = math.prod(check_mesh(devices, mesh)) * getattr(config, "groups", 1)
        if needed > cores():
            ask_for_devices(-(-needed // processes.started()))


def settle_run(run: Run) -> None:
    """Do what `settle` does, with the config of a run directory."""
    module = load_copy(run)
    settle(decode(module.Config, run.config))


def execute_part(run: Run) -> None:
    """Run the experiment for the seeds of a part that `separately` made within a run directory."""
    module = load_copy(Run(run.path.parent))
    config = decode(module.Config, run.config)
    settle(config)
    start = time.monotonic()
    run.finish(module.main(config, run), time.monotonic() - start)


def replay(run: Run, path: str | Path | None = None) -> tuple[Run, list[str]]:
    """Repeat a run in a new run directory, and compare the two.

    The run of several settings that a search with `--population` made is repeated with all of its settings.

    Args:
        run: a finished run.
        path: the new run directory; by default RUN-replay beside the run.

    Returns:
        The new run, and the differences of log and final metrics as sentences, none if they agree to the bit.

    Raises:
        LookupError: if the run was not made by an experiment.
        ValueError: if the run is not finished.
    """
    require_experiment(run)
    if run.result is None:
        raise ValueError(
            f"{run.path} is not finished, so there is nothing to agree with; `jdl resume {run.path}` first"
        )
    folder = Path(path) if path else _unused(run.path.with_name(run.path.name + "-replay"))
    given = run.description
    copy = runs.create(folder, run.config, experiment=given["experiment"], seeds=run.seeds, source=given.get("source"))
    shutil.copyfile(run.path / COPY, copy.path / COPY)
    if POPULATION in given:
        mark_population(copy, folder.name, given[POPULATION])
    execute(copy)
    found = runs.differences(run.rows, copy.rows)
    for part in sorted(entry.parent.name for entry in run.path.glob("*/config.json")):
        found += [f"{part}: {line}" for line in runs.differences(Run(run.path / part).rows, Run(copy.path / part).rows)]
    before, after = run.result["metrics"], (copy.result or {})["metrics"]  # values that are not finite are null there
    found += [
        f"final {name}: {before.get(name)} and {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return copy, found


def environment_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """List the differences between two environments that could change a run's numbers.

    Args:
        first: the environment before, as `run.environment`.
        second: the environment now.

    Returns:
        One sentence for each difference.
    """
    found = []
    for name in ("python", "devices", "packages", "git", "variables", "x64"):
        if first.get(name) != second.get(name):
            found.append(f"{name} was {first.get(name)}, is {second.get(name)}")
    return found


def default_path(name: str) -> Path:
    """Return an unused folder for a new run of an experiment, runs/NAME/TIME."""
    return _unused(Path("runs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def _unused(folder: Path) -> Path:
    number = 2
    candidate = folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate


def require_experiment(run: Run) -> None:
    """Check that a run was made by an experiment. A run that a script made can only be continued by the script.

    Raises:
        LookupError: if it was not.
    """
    if not (run.path / COPY).is_file():
        raise LookupError(
            f"{run.path} was not made by an experiment (it has no {COPY}); run its script again, with resume=True"
        )


def _seconds(run: Run) -> float:
    """Return the seconds that an unfinished run took so far, according to its log."""
    parts = [run, *(Run(file.parent) for file in run.path.glob("*/config.json"))]
    return sum((part.rows[-1]["seconds"] for part in parts if part.rows), 0.0)


def load_copy(run: Run) -> ModuleType:
    """Import a run's copy of its experiment, with the imports that the original had."""
    source = run.description.get("source") or {"package": "", "path": []}
    return load_file(run.path / COPY, package=source["package"], path=source["path"])
