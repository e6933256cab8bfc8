"""A run is a directory: config, seeds, environment, metrics, checkpoints, figures, report."""

import atexit
import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from jdl.core.statistics import Interval, mean_interval
from jdl.runtime import processes
from jdl.runtime.cores import environment_devices
from jdl.runtime.files import as_json, plain_json, write_bytes, write_json, write_text

type Row = dict[str, Any]

_PACKAGES = ("jdl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "gymnasium")
_TIMES = ("seconds",)  # the fields of a row that a repetition need not reproduce


class Series(NamedTuple):
    """A metric over a run: steps [points], values [points] or [points, runs]."""

    steps: np.ndarray
    values: np.ndarray


class Run:
    """A run directory that exists; what it holds is read when asked for."""

    def __init__(self, path: str | os.PathLike, shared: Path | None = None) -> None:
        self.path = Path(path).absolute()
        self._shared = shared  # where the checkpoints of several processes lie
        self.fitted = False  # whether a fit of this process was given it: there is one log and one set of checkpoints
        self._observers: list[Callable[[Row], Any]] = []
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} is no run directory (it has no config.json); `jdl runs` lists those under ./runs"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def description(self) -> dict[str, Any]:
        """What config.json holds: the experiment, its config, the seeds."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        """The experiment's config, field by field."""
        return self.description["config"]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs inside, for `jdl.seeds(learner, run.seeds)`."""
        return tuple(self.description["seeds"])

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, devices, git revision, of the process that made the run."""
        return json.loads((self.path / "environment.json").read_text())

    def resumed(self) -> dict[str, Any]:
        """Keep the environment of a process that goes on with the run, beside the first; returns it."""
        now = environment()
        resumed = [*self.environment.get("resumed", []), now]
        write_json(self.path / "environment.json", {**self.environment, "resumed": resumed})
        return now

    def move(self, changed: Mapping[str, Any]) -> None:
        """Go on with a config that differs in where the run takes place; what it was until now is kept beside it."""
        rows = self.rows
        was = {"until": rows[-1]["step"] if rows else 0, **{name: self.config.get(name) for name in changed}}
        now = {"config": {**self.config, **changed}, "before": [*self.description.get("before", []), was]}
        write_json(self.path / "config.json", {**self.description, **now})

    @property
    def log_to(self) -> tuple[str, ...]:
        """Where the metrics go beside metrics.jsonl: names in `jdl.training.loggers.LOGGERS`."""
        return tuple(self.description.get("log", ()))

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoints lie."""
        return (self._shared or self.path) / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json holds, `{"seconds", "metrics": {name: [one a seed]}}`; None while the run is unfinished."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @property
    def final(self) -> dict[str, list[float]]:
        """The final metrics by name, one value a seed, NaN for null; empty while the run is unfinished."""
        metrics = (self.result or {"metrics": {}})["metrics"]
        return {name: [np.nan if value is None else value for value in values] for name, values in metrics.items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        """Mean and 95% bootstrap interval of each final metric; NaN where a seed's value is not finite."""
        nothing = Interval(*[np.float64(np.nan)] * 3)
        arrays = {name: np.asarray(values) for name, values in self.final.items()}
        return {name: mean_interval(a) if np.isfinite(a).all() else nothing for name, a in arrays.items()}

    @property
    def rows(self) -> list[Row]:
        """The log, one dict a line; a line cut off by a kill is left out."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    @property
    def metrics(self) -> dict[str, Series]:
        """The log as arrays, by name ("train/loss", "validation/accuracy"); NaN for a run that had ended."""
        points: dict[str, list[tuple[int, Any]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in ("step", *_TIMES):
                    points.setdefault(name, []).append((row["step"], value))
        return {
            name: Series(np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], float))
            for name, pairs in points.items()
        }

    def part(self, name: str, seeds: Sequence[int] | None = None) -> "Run":
        """A run within this one, for an experiment that trains several learners; the same seeds unless given."""
        path = self.path / name
        if not (path / "config.json").is_file():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "environment.json", self.environment)
            chosen = self.seeds if seeds is None else seeds
            write_json(path / "config.json", {**self.description, "part": name, "seeds": list(chosen)})
        return Run(path, self._shared and self._shared / name)

    def log(self, row: Row) -> None:
        """Append a row to metrics.jsonl, then show it to those who observe the run."""
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror}); free space there, then resume") from error
        for observer in self._observers:
            observer(row)

    def observe(self, observer: Callable[[Row], Any]) -> None:
        """Call `observer(row)` with every row that this process logs from now on; what it raises ends the fit."""
        self._observers.append(observer)

    def truncate(self, step: int) -> list[Row]:
        """Forget the rows after a step, which a resumed run writes again; returns the others."""
        rows = self.rows
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) != len(rows) or (self.path / "metrics.jsonl").is_file():
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def save_arrays(self, name: str, **arrays: Any) -> Path:
        """Keep arrays beside the log, for reports and notebooks, as `name`.npz."""
        buffer = io.BytesIO()
        whole = processes.gathered(arrays)
        np.savez_compressed(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in whole.items()})
        path = self.path / f"{name}.npz"
        write_bytes(path, buffer.getvalue())
        return path

    def load_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays kept by `save_arrays`, None where there are none of that name."""
        path = self.path / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def save_figure(self, title: str, figure: Any, note: str = "") -> Path:
        """Keep a Matplotlib figure of the experiment's own; the report shows it under its title, with the note."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}.png"
        write_bytes(path, buffer.getvalue())
        write_json(path.with_suffix(".json"), {"title": title, "note": note})
        return path

    def finish(self, metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Write the final metrics; each is a number or one a seed."""
        values = {name: np.atleast_1d(np.asarray(value, float)).tolist() for name, value in metrics.items()}
        plain = {name: [v if np.isfinite(v) else None for v in one] for name, one in values.items()}
        result = {"seconds": round(seconds, 3), "metrics": plain}
        write_json(self.path / "result.json", result)
        return result


def create(
    path: str | os.PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    experiment: str | None = None,
    seeds: Sequence[int] = (0,),
    log: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> Run:
    """A new run directory; raises FileExistsError where the folder holds anything.

    log: where `fit` sends the metrics beside metrics.jsonl (`jdl.training.loggers`). source: the package that the
    experiment belongs to, and the folders that it imports from.
    """
    description = {"experiment": experiment, "config": dict(config or {}), "seeds": list(seeds), "log": list(log)}
    json.dumps(description, default=plain_json)  # before anything is made: a field of a type that JSON cannot hold
    processes.agree("config", as_json({**description["config"], **description, "config": None}))
    if source is not None:
        description["source"] = dict(source)
    return together(processes.by_first(lambda: str(_create(path, description))))


def together(path: str | os.PathLike) -> Run:
    """A run directory as this one of several processes has it: the first one as it is, each other one a copy.

    A copy holds what is written and not the checkpoints, which all make together; it goes when the process ends.
    """
    if processes.first():
        return Run(path)
    copy = Path(tempfile.mkdtemp(prefix="jdl-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    written = (file for file in Path(path).rglob("*") if file.suffix in (".json", ".jsonl", ".py"))
    for file in written:
        place = copy / file.relative_to(path)
        if "checkpoints" not in place.parts:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return Run(copy, Path(path).absolute())


def _create(path: str | os.PathLike, description: Mapping[str, Any]) -> Path:
    folder = Path(path).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"the run directory {path} exists; continue it (`jdl resume {path}`, or resume=True), or choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "environment.json", environment())
    write_json(folder / "config.json", description)  # last: it makes the folder a run
    return folder


def open_or_create(run: Run | str | os.PathLike, resume: bool) -> Run:
    """The run that `fit` was given, opened where it is to be continued."""
    if isinstance(run, Run):
        if run.fitted:
            raise ValueError(f"{run} already holds a fit of this process; give the next one run.part('its name')")
        run.fitted = True
        return run
    if resume and processes.by_first(lambda: (Path(run) / "config.json").is_file()):
        return together(run)
    return create(run)


def locked(folder: Path) -> IO[str]:
    """Hold a run directory for this process alone until the file is closed; a kill lets go of it too."""
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"{folder} is being trained by another process; wait for it, or choose another run") from error
    return file


def environment() -> dict[str, Any]:
    """What a repetition would have to match: versions, devices, source."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": environment_devices(),
        "git": _git_revision(),
        "command": sys.argv,
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_", "JDL_"))},
        "x64": bool(jax.config.jax_enable_x64),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> dict[str, Any] | None:
    """Revision of the working directory's repository, and whether it had uncommitted changes; None outside one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"revision": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def differences(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """Where two logs differ, times apart, as sentences; none where they agree to the bit."""
    found = []
    if len(first) != len(second):
        found.append(f"{len(first)} rows and {len(second)} rows")
    for one, other in zip(first, second, strict=False):
        for name in sorted((one.keys() | other.keys()) - set(_TIMES)):
            if json.dumps(one.get(name)) != json.dumps(other.get(name)):  # as text: NaN agrees with NaN
                found.append(f"step {one['step']}, {name}: {one.get(name)} and {other.get(name)}")
    return found
