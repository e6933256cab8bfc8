"""Run directories: config, seeds, environment, metrics, checkpoints, figures and report of one training.

A run directory contains `config.json` (which makes it one), `environment.json`, `metrics.jsonl`, `checkpoints/`, and,
once it is finished, `result.json`. Experiments add figures, arrays and parts.
"""

import atexit
import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jdl.core.statistics import Interval, mean_interval
from jdl.runtime import processes
from jdl.runtime.files import as_json, plain_json, write_bytes, write_json, write_text
from jdl.training.environment import environment

type Row = dict[str, Any]  # a line of the log: "step", "seconds", and per metric a number or one per run, or None

FIGURE_DPI = 130  # dots per inch of saved figures
_TIMES = ("seconds",)  # the fields of a row that a repetition need not reproduce


class Series(NamedTuple):
    """A metric over a run.

    Attributes:
        steps: `[points]`; the updates at which it was logged.
        values: `[points]`, or `[points, runs]` with several runs; NaN for a run that had ended.
    """

    steps: np.ndarray
    values: np.ndarray


class Run:
    """An existing run directory. Its files are read each time that a property is used.

    Attributes:
        path: the directory, absolute.
        fitted: whether `fit` was given this object. It accepts it once, because there is one log and one set of
            checkpoints.
    """

    def __init__(self, path: str | os.PathLike, shared: Path | None = None) -> None:
        """Open a run directory.

        Args:
            path: the directory.
            shared: the first process's run directory, where the checkpoints of several processes lie; None if this is
                that directory.

        Raises:
            FileNotFoundError: for a folder that is not a run directory.
        """
        self.path = Path(path).absolute()
        self._shared = shared
        self.fitted = False
        self._observers: list[Callable[[Row], Any]] = []
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} is no run directory (it has no config.json); `jdl runs` lists those under ./runs"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def description(self) -> dict[str, Any]:
        """The contents of config.json: "experiment" (its name), "config", "seeds", "log" and, if known, "source"."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the experiment's config."""
        return self.description["config"]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs that train together, for `jdl.seeds(learner, run.seeds)`."""
        return tuple(self.description["seeds"])

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, devices, git revision and more of the process that created the run (see `environment`)."""
        return json.loads((self.path / "environment.json").read_text())

    def resumed(self) -> dict[str, Any]:
        """Add the environment of this process, which continues the run, to environment.json, and return it."""
        now = environment()
        resumed = [*self.environment.get("resumed", []), now]
        write_json(self.path / "environment.json", {**self.environment, "resumed": resumed})
        return now

    def move(self, changed: Mapping[str, Any]) -> None:
        """Change the config of a run that continues on other devices. config.json keeps the old values as "before".

        Args:
            changed: fields of the config with their new values.
        """
        rows = self.rows
        was = {"until": rows[-1]["step"] if rows else 0, **{name: self.config.get(name) for name in changed}}
        now = {"config": {**self.config, **changed}, "before": [*self.description.get("before", []), was]}
        write_json(self.path / "config.json", {**self.description, **now})

    @property
    def log_to(self) -> tuple[str, ...]:
        """Where metrics are logged besides metrics.jsonl: "tensorboard", "wandb" or both."""
        return tuple(self.description.get("log", ()))

    @property
    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoints; with several processes, that of the first one."""
        return (self._shared or self.path) / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """The contents of result.json; None while the run is unfinished.

        These are `{"seconds": ..., "metrics": {name: [one value per seed, None if not finite]}}`.
        """
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @property
    def final(self) -> dict[str, list[float]]:
        """The final metrics by name, one value per seed, NaN if it is not finite; {} while the run is unfinished."""
        metrics = (self.result or {"metrics": {}})["metrics"]
        return {name: [np.nan if value is None else value for value in values] for name, values in metrics.items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        """The mean and 95% bootstrap interval of each final metric; NaN if the value of any seed is not finite."""
        nothing = Interval(*[np.float64(np.nan)] * 3)
        arrays = {name: np.asarray(values) for name, values in self.final.items()}
        return {name: mean_interval(a) if np.isfinite(a).all() else nothing for name, a in arrays.items()}

    @property
    def rows(self) -> list[Row]:
        """The log, one dict per line. A line that was cut off by a kill is left out."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    @property
    def metrics(self) -> dict[str, Series]:
        """The log as arrays, by name, such as "train/loss" or "validation/accuracy"."""
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
        """Open a run directory within this one, or create it, for an experiment that trains several learners.

        Args:
            name: the folder's name.
            seeds: the seeds of the part; by default those of this run.
        """
        path = self.path / name
        if not (path / "config.json").is_file():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "environment.json", self.environment)
            chosen = self.seeds if seeds is None else seeds
            write_json(path / "config.json", {**self.description, "part": name, "seeds": list(chosen)})
        return Run(path, self._shared and self._shared / name)

    def log(self, row: Row) -> None:
        """Append a row to metrics.jsonl, then call the observers.

        Args:
            row: a line of the log, with "step".

        Raises:
            OSError: if it cannot be written, for instance on a full disk.
        """
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror}); free space there, then resume") from error
        for observer in self._observers:
            observer(row)

    def observe(self, observer: Callable[[Row], Any]) -> None:
        """Call `observer(row)` with every row that this object logs from now on. An exception in it ends the fit.

        Args:
            observer: a function of one row.
        """
        self._observers.append(observer)

    def truncate(self, step: int) -> list[Row]:
        """Delete the rows after a step, which a resumed run logs again, and return the others.

        Args:
            step: the last step that stays.
        """
        rows = self.rows
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) != len(rows) or (self.path / "metrics.jsonl").is_file():
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def save_arrays(self, name: str, **arrays: Any) -> Path:
        """Save arrays beside the log as `name`.npz, for reports and notebooks.

        Args:
            name: the file's name without its suffix.
            arrays: arrays by name; those that several processes divide are gathered.

        Returns:
            The file.
        """
        buffer = io.BytesIO()
        whole = processes.gathered(arrays)
        np.savez_compressed(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in whole.items()})
        path = self.path / f"{name}.npz"
        write_bytes(path, buffer.getvalue())
        return path

    def load_arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Load the arrays of `save_arrays` by name; None if there is no such file.

        Args:
            name: the file's name without its suffix, as for `save_arrays`.
        """
        path = self.path / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def save_figure(self, title: str, figure: Any, note: str = "") -> Path:
        """Save a Matplotlib figure, which the report shows under its title, with the note.

        Args:
            title: the title; the file is named after it.
            figure: a Matplotlib figure.
            note: a sentence on how to read it.

        Returns:
            The PNG file.
        """
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}.png"
        write_bytes(path, buffer.getvalue())
        write_json(path.with_suffix(".json"), {"title": title, "note": note})
        return path

    def finish(self, metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Write result.json, which marks the run as finished.

        Args:
            metrics: final metrics by name; each is a number, or one number per seed.
            seconds: the time that the run took.

        Returns:
            The contents of the file, as in `result`.
        """
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
    """Create a run directory. With several processes, each must call this with the same arguments.

    Args:
        path: the directory; if it exists, it must be empty.
        config: the fields of the experiment's config, in types that JSON can hold.
        experiment: the name of the experiment.
        seeds: the seeds of the runs that train together.
        log: where `fit` sends the metrics besides metrics.jsonl (`jdl.training.loggers.LOGGERS`).
        source: the package that the experiment belongs to and the folders that it imports from.

    Raises:
        FileExistsError: for a folder that is not empty.
        TypeError: for a config that JSON cannot hold.
        ValueError: for processes with different arguments.
    """
    description = {"experiment": experiment, "config": dict(config or {}), "seeds": list(seeds), "log": list(log)}
    json.dumps(description, default=plain_json)  # raise for a type that JSON cannot hold before anything is created
    processes.agree("config", as_json({**description["config"], **description, "config": None}))
    if source is not None:
        description["source"] = dict(source)
    return shared_copy(processes.by_first(lambda: str(_create(path, description))))


def shared_copy(path: str | os.PathLike) -> Run:
    """Open a run directory in every process: in the first one as it is, in each of the others a temporary copy.

    A copy contains the JSON and Python files. It has no checkpoints, which all processes write into the first one's
    directory, and is deleted when the process ends.

    Args:
        path: the run directory, on a file system that all processes see.
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
    """Open or create the run directory that `fit` was given.

    Args:
        run: a run, or the path of one.
        resume: whether to continue the run in that directory if there is one.

    Raises:
        FileExistsError: for a path that holds anything, if the run is not to be continued.
        ValueError: for a `Run` that was given to another fit.
    """
    if isinstance(run, Run):
        if run.fitted:
            raise ValueError(f"{run} already holds a fit of this process; give the next one run.part('its name')")
        run.fitted = True
        return run
    if resume and processes.by_first(lambda: (Path(run) / "config.json").is_file()):
        return shared_copy(run)
    return create(run)


def locked(folder: Path) -> IO[str]:
    """Lock a run directory for this process until the returned file is closed or the process ends.

    Raises:
        OSError: if another process has locked it.
    """
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"{folder} is being trained by another process; wait for it, or choose another run") from error
    return file


def differences(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """Describe where two logs differ, apart from times.

    Args:
        first: the rows of one run.
        second: the rows of the other.

    Returns:
        One phrase per difference; empty if the logs agree to the bit.
    """
    found = []
    if len(first) != len(second):
        found.append(f"{len(first)} rows and {len(second)} rows")
    for one, other in zip(first, second, strict=False):
        for name in sorted((one.keys() | other.keys()) - set(_TIMES)):
            if json.dumps(one.get(name)) != json.dumps(other.get(name)):  # as text: NaN agrees with NaN
                found.append(f"step {one['step']}, {name}: {one.get(name)} and {other.get(name)}")
    return found
