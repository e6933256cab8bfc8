"""Experiments in run directories: begun, gone on with, moved to other devices, repeated."""

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
from jdl.parallel.modes import MODES, check_mesh
from jdl.runtime import processes
from jdl.runtime.cores import ask_for_devices, cores, one_core
from jdl.runtime.files import as_json
from jdl.training import runs
from jdl.training.runs import Run

COPY = "experiment.py"  # of the experiment's source, in its run directory


def run(
    experiment: str | ModuleType,
    config: Any = None,
    *,
    seeds: int | Sequence[int] = 1,
    path: str | Path | None = None,
) -> Run:
    """Run an experiment in a new run directory (runs/NAME/TIME by default) and write its result."""
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
    """A new run directory with all it takes to repeat the run, the experiment's source among it."""
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
    """The unfinished run of a folder, to go on with, where it is this very one; None where there is none.

    A scheduler that ended a command, or the machine under it, gives it again as it was. Raises FileExistsError, saying
    what differs, for a run of another experiment, config, seeds or source.
    """
    found = processes.by_first(lambda: _is_begun(module, config, numbers, path))
    return runs.together(path) if found else None


def _is_begun(module: ModuleType, config: Any, numbers: Sequence[int], path: Path) -> bool:
    if not (path / "config.json").is_file() or (found := Run(path)).result is not None:
        return False
    file = Path(typing.cast(str, module.__file__))
    wanted = as_json({"experiment": file.stem, "seeds": list(numbers), **encode(config)})
    held = {"experiment": found.description["experiment"], "seeds": list(found.seeds), **found.config}
    held |= found.description.get("before", [{}])[0]  # as it was begun, where `jdl resume` has moved it since
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
    """Execute a new run; where the experiment raises before it has written anything, no folder stays behind."""
    files = set(prepared.path.iterdir())
    try:
        return execute(prepared)
    except Exception:
        if {file for file in prepared.path.iterdir() if file.name not in ("__pycache__", "lock")} <= files:
            shutil.rmtree(prepared.path)
        raise


def execute(run: Run) -> Run:
    """Run, or go on with, the experiment of a run directory, from the copy of its source there."""
    module = load_copy(run)
    start = time.monotonic() - _seconds(run)
    metrics = module.main(decode(module.Config, run.config), run)
    if not isinstance(metrics, Mapping):
        raise TypeError(f"main of {run.path / COPY} returned {type(metrics).__name__}; return a dict of final metrics")
    before = run.result  # of a finished run that was resumed: it took the time that it took
    run.finish(metrics, before["seconds"] if before else time.monotonic() - start)
    return run


def move(run: Run, devices: str, mesh: str) -> None:
    """Let an unfinished run go on over other devices: any layout restores the checkpoints of any other."""
    config = run.config
    if run.result is not None:
        raise ValueError(f"{run.path} is finished; --devices and --mesh are for a run that goes on")
    if not {"devices", "mesh"} <= config.keys():
        raise ValueError(
            f"the config of {run.path} has no fields devices and mesh, so it runs as it did: leave them out"
        )
    moved = {"devices": devices or config["devices"], "mesh": mesh}
    check_mesh(moved["devices"], mesh)
    with runs.locked(run.path):  # nobody trains it now
        for part in [run, *(Run(file.parent) for file in run.path.glob("*/config.json"))]:
            part.move(moved)


def settle(config: Any) -> None:
    """Put this process where the config wants it, before JAX is used; a CPU is cut into as many devices as its mesh."""
    if getattr(config, "one_core", False):
        one_core()
    devices, mesh = str(getattr(config, "devices", "")), getattr(config, "mesh", None)
    if devices in MODES and isinstance(mesh, str):
        needed = math.prod(check_mesh(devices, mesh)) * getattr(config, "groups", 1)
        if needed > cores():
            ask_for_devices(-(-needed // processes.started()))


def settle_run(run: Run) -> None:
    """As `settle`, for a run directory."""
    module = load_copy(run)
    settle(decode(module.Config, run.config))


def execute_part(run: Run) -> None:
    """Run the experiment of the run directory around a part (`separately`), for the part's seeds."""
    module = load_copy(Run(run.path.parent))
    config = decode(module.Config, run.config)
    settle(config)
    start = time.monotonic()
    run.finish(module.main(config, run), time.monotonic() - start)


def replay(run: Run, path: str | Path | None = None) -> tuple[Run, list[str]]:
    """Repeat a run in a directory of its own; returns it and the differences, none where they agree to the bit."""
    require_experiment(run)
    if run.result is None:
        raise ValueError(
            f"{run.path} is not finished, so there is nothing to agree with; `jdl resume {run.path}` first"
        )
    folder = Path(path) if path else _unused(run.path.with_name(run.path.name + "-replay"))
    given = run.description
    copy = runs.create(folder, run.config, experiment=given["experiment"], seeds=run.seeds, source=given.get("source"))
    shutil.copyfile(run.path / COPY, copy.path / COPY)
    execute(copy)
    found = runs.differences(run.rows, copy.rows)
    for part in sorted(entry.parent.name for entry in run.path.glob("*/config.json")):
        found += [f"{part}: {line}" for line in runs.differences(Run(run.path / part).rows, Run(copy.path / part).rows)]
    before, after = run.result["metrics"], (copy.result or {})["metrics"]  # null where not finite: those agree too
    found += [
        f"final {name}: {before.get(name)} and {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return copy, found


def environment_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What differs between two environments (`run.environment`) that could change a run's numbers."""
    found = []
    for name in ("python", "devices", "packages", "git", "variables", "x64"):
        if first.get(name) != second.get(name):
            found.append(f"{name} was {first.get(name)}, is {second.get(name)}")
    return found


def default_path(name: str) -> Path:
    """A folder for a new run, by experiment and time."""
    return _unused(Path("runs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def _unused(folder: Path) -> Path:
    number = 2
    candidate = folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate


def require_experiment(run: Run) -> None:
    """Raises LookupError for a run that a script made, which only the script can continue or repeat."""
    if not (run.path / COPY).is_file():
        raise LookupError(
            f"{run.path} was not made by an experiment (it has no {COPY}); run its script again, with resume=True"
        )


def _seconds(run: Run) -> float:
    """What an unfinished run took so far, by its log."""
    parts = [run, *(Run(file.parent) for file in run.path.glob("*/config.json"))]
    return sum((part.rows[-1]["seconds"] for part in parts if part.rows), 0.0)


def load_copy(run: Run) -> ModuleType:
    """A run's copy of its experiment, among the modules that the original stood among."""
    source = run.description.get("source") or {"package": "", "path": []}
    return load_file(run.path / COPY, package=source["package"], path=source["path"])
