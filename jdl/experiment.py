"""Experiments: modules with a `Config` and a `main(config, run)`, found by name, run, resumed, replayed, loaded.

An experiment is a Python file. `Config` is a frozen dataclass with a default for every field; `main` trains and
returns the final metrics, each a number or one a seed; `learner(config)`, if it has one, lets a loaded run predict;
where the config has a true `one_core`, the process is kept on a core of its own.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import math
import shutil
import sys
import time
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jdl import processes, runs
from jdl.checkpoint import Checkpoints
from jdl.learner import Learner, State
from jdl.modes import MODES, check_mesh
from jdl.placement import ask_for_devices, cores, one_core
from jdl.runs import Run
from jdl.transforms import jit, seeds

FOLDER = Path("experiments")
_COPY = "experiment.py"
_REQUIRED = {"Config", "main"}


def names(folder: Path = FOLDER) -> list[str]:
    """The experiments of a folder, by module name; nothing is imported."""
    return list(descriptions(folder))


def descriptions(folder: Path = FOLDER) -> dict[str, str]:
    """The first line of each experiment of a folder, by module name; other modules are passed over."""
    found = {}
    for file in sorted(folder.glob("*.py")) if folder.is_dir() else []:
        try:
            tree = ast.parse(file.read_text())
        except (SyntaxError, UnicodeDecodeError) as error:
            found[file.stem] = f"cannot be read as Python: {error}"
            continue
        if {getattr(node, "name", None) for node in tree.body} >= _REQUIRED:
            found[file.stem] = (ast.get_docstring(tree) or "").strip().split("\n")[0]
    return found


def find(name: str) -> ModuleType:
    """The experiment called `name` in ./experiments, at a dotted path, or in a file.

    Raises LookupError, naming the nearest, where there is none, and TypeError for a module that is no experiment.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise LookupError(f"there is no experiment file {name}")
        return _checked(_load_file(Path(name)), name)
    if (FOLDER / f"{name}.py").is_file():
        return _checked(_load_file(FOLDER / f"{name}.py", f"{FOLDER.name}.{name}"), name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or "." not in name:
        known = names()
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else "give its name, a dotted path or a file ending in .py"
        listed = f"./experiments has {', '.join(known)}" if known else "there is no folder ./experiments here"
        raise LookupError(f"there is no experiment {name!r}; {hint} ({listed})")
    return _checked(importlib.import_module(name), name)


def name_of(module: ModuleType) -> str:
    """What an experiment is called on a command line in this directory."""
    file = Path(str(module.__file__)).absolute()
    if file.parent == FOLDER.absolute():
        return file.stem
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


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
    values = dataclasses.asdict(config)
    prepared = runs.create(folder, values, experiment=file.stem, seeds=numbers, log=log, source=source)
    shutil.copyfile(file, prepared.path / _COPY)
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
    wanted = runs.as_json({"experiment": file.stem, "seeds": list(numbers), **dataclasses.asdict(config)})
    held = {"experiment": found.description["experiment"], "seeds": list(found.seeds), **found.config}
    held |= found.description.get("before", [{}])[0]  # as it was begun, where `jdl resume` has moved it since
    differ = [
        f"{name} {held.get(name)!r} there, {wanted[name]!r} here" for name in wanted if held.get(name) != wanted[name]
    ]
    if (path / _COPY).is_file() and (path / _COPY).read_bytes() != file.read_bytes():
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
    module = _load_copy(run)
    start = time.monotonic() - _seconds(run)
    metrics = module.main(decode(module.Config, run.config), run)
    if not isinstance(metrics, Mapping):
        raise TypeError(f"main of {run.path / _COPY} returned {type(metrics).__name__}; return a dict of final metrics")
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
    module = _load_copy(run)
    settle(decode(module.Config, run.config))


def execute_part(run: Run) -> None:
    """Run the experiment of the run directory around a part (`separately`), for the part's seeds."""
    module = _load_copy(Run(run.path.parent))
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
    shutil.copyfile(run.path / _COPY, copy.path / _COPY)
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


class LoadedRun(Run):
    """A run with its trained state: `run.metrics`, `run.predict(x)`."""

    def __init__(self, path: str | Path, learner: Learner | None = None) -> None:
        super().__init__(path)
        self._given = learner
        self._learner: Learner | None = None
        self._state: State = None

    @property
    def learner(self) -> Learner:
        """The learner given to `load`, else the experiment's own over the run's seeds; compiled."""
        if self._learner is None:
            self._learner = jit(self._given or self._experiments_learner(), donate=False)
        return self._learner

    @property
    def state(self) -> State:
        """The best state by the run's monitored metric, the last one where nothing was monitored."""
        if self._state is None:
            like = {"best": self.learner.init(jax.random.key(0))}
            restored = Checkpoints(self.checkpoint_folder).restore(like, part=True)
            if restored is None:
                raise FileNotFoundError(f"{self.path} has no intact checkpoint; `jdl resume {self.path}` trains it")
            self._state = restored.tree["best"]
        return self._state

    def predict(self, inputs: Any) -> jax.Array:
        """Outputs for inputs [batch, ...] as the experiment's data gives them: [runs, batch, ...]."""
        if self.learner.predict is None:
            raise TypeError(f"the learner of {self.path} has no predict; give its Learner one")
        return self.learner.predict(self.state, {"input": inputs})

    def _experiments_learner(self) -> Learner:
        if not (self.path / _COPY).is_file() and not (self.path.parent / _COPY).is_file():
            raise LookupError(f"{self.path} was not made by an experiment; give its learner: jdl.load(path, learner)")
        folder = self.path if (self.path / _COPY).is_file() else self.path.parent
        module = _load_copy(Run(folder))
        if not hasattr(module, "learner"):
            raise LookupError(
                f"the experiment of {self.path} has no learner(config); give one: jdl.load(path, learner)"
            )
        config = decode(module.Config, self.config)
        one_seed = self.seeds != Run(folder).seeds  # a part by `separately`: the same learner for other seeds
        arguments = (config,) if folder == self.path or one_seed else (config, self.path.name)
        return seeds(module.learner(*arguments), self.seeds)


def load(path: str | Path, learner: Learner | None = None) -> LoadedRun:
    """Open a run in a notebook: its config, its metrics as arrays, its state, `predict`.

    learner: needed only where the run was made by a script, not by an experiment; the one that `fit` was given.
    """
    return LoadedRun(path, learner)


def default_path(name: str) -> Path:
    """A folder for a new run, by experiment and time."""
    return _unused(Path("runs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def decode(kind: Any, value: Any) -> Any:
    """A config from its JSON, by the types of its fields; raises ValueError naming a field it does not have."""
    if hasattr(kind, "__dataclass_fields__") and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise ValueError(f"{kind.__qualname__} has no field {name!r}; it has {', '.join(hints)}")
        return kind(**{name: decode(hints[name], item) for name, item in value.items()})
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return value if value is None or len(kinds) != 1 else decode(kinds[0], value)
    if kind is tuple or origin is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value


def _unused(folder: Path) -> Path:
    number = 2
    candidate = folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate


def require_experiment(run: Run) -> None:
    """Raises LookupError for a run that a script made, which only the script can continue or repeat."""
    if not (run.path / _COPY).is_file():
        raise LookupError(
            f"{run.path} was not made by an experiment (it has no {_COPY}); run its script again, with resume=True"
        )


def _seconds(run: Run) -> float:
    """What an unfinished run took so far, by its log."""
    parts = [run, *(Run(file.parent) for file in run.path.glob("*/config.json"))]
    return sum((part.rows[-1]["seconds"] for part in parts if part.rows), 0.0)


def _load_copy(run: Run) -> ModuleType:
    """A run's copy of its experiment, among the modules that the original stood among."""
    source = run.description.get("source") or {"package": "", "path": []}
    return _load_file(run.path / _COPY, package=source["package"], path=source["path"])


def _load_file(file: Path, name: str | None = None, package: str = "", path: Sequence[str] = ()) -> ModuleType:
    for folder in (str(Path.cwd()), str(file.parent.absolute()), *path):
        if folder not in sys.path:
            sys.path.append(folder)
    digest = hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]
    name = name or ".".join(filter(None, (package, f"{file.stem}_{digest}")))
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LookupError(f"{file} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _checked(module: ModuleType, name: str) -> ModuleType:
    missing = [part for part in sorted(_REQUIRED) if not hasattr(module, part)]
    if missing:
        raise TypeError(f"{name} is no experiment: it has no {' and no '.join(missing)}; see experiments/xor.py")
    if not dataclasses.is_dataclass(module.Config) or not module.Config.__dataclass_params__.frozen:  # type: ignore
        raise TypeError(f"the Config of {name} is no frozen dataclass; write @dataclasses.dataclass(frozen=True)")
    return module
