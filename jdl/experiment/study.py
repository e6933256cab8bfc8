"""A study on disk: its trials and their values, which are read without Optuna."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jdl.experiment.search_space import Space, parse
from jdl.training.checkpoint.checkpoints import Checkpoints
from jdl.training.runs import Row, Run

SUMMARY = "study.json"
_ANOTHER = "give one of those, and another --name"


class Trial(NamedTuple):
    """One trial of a study.

    Attributes:
        number: 0, 1, ... in the order of the proposals.
        state: "finished", "pruned", "failed" or "running".
        value: the objective, averaged over the seeds; for a pruned trial the last value before the end; NaN if there
            is none.
        settings: the value of each searched field.
        run: the trial's run directory within the study directory; HOST:PATH if another machine trained it.
        note: why the trial failed; empty if it did not.
    """

    number: int
    state: Literal["finished", "pruned", "failed", "running"]
    value: float
    settings: dict[str, Any]
    run: str
    note: str = ""


class Study:
    """A study directory, as a search left it. Reading it needs no Optuna.

    Attributes:
        path: the study directory.
        description: experiment, config, space, metric, direction and seeds of the search.
        importances: by field, the share of the objective's variance that it explains (fANOVA, Hutter et al. 2014);
            None for fewer than 4 finished trials and while the search is under way.
        command: the command that repeats the best trial; None while the search is under way.
        trials: all trials, by number.

    Raises:
        FileNotFoundError: if the folder is no study directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not is_study(self.path):
            raise FileNotFoundError(f"{path} is no study directory (it has no {SUMMARY}); `jdl tune` makes one")
        summary = json.loads((self.path / SUMMARY).read_text())
        self.description: dict[str, Any] = summary["description"]
        self.importances: dict[str, float] | None = summary["importances"]
        self.command: str | None = summary["command"]
        values = [np.nan if trial["value"] is None else trial["value"] for trial in summary["trials"]]
        self.trials = [Trial(**{**t, "value": value}) for t, value in zip(summary["trials"], values, strict=True)]

    @property
    def space(self) -> Space:
        """The dimensions that were searched, by field; the values of a choice are strings."""
        texts = self.description["space"]
        return {name: parse(text, str if text.startswith("choice") else float) for name, text in texts.items()}

    @property
    def maximized(self) -> bool:
        """Whether larger values are better."""
        return self.description["direction"] == "maximize"

    @property
    def ranked(self) -> list[Trial]:
        """The finished trials, best first, followed by the pruned ones, best first."""
        sign = -1 if self.maximized else 1
        judged = [trial for trial in self.trials if trial.state in ("finished", "pruned")]
        return sorted(judged, key=lambda trial: (trial.state == "pruned", sign * np.nan_to_num(trial.value)))

    @property
    def best(self) -> Trial | None:
        """The best finished trial; None if there is none."""
        return next((trial for trial in self.ranked if trial.state == "finished"), None)


def is_study(path: Path) -> bool:
    """Return whether a directory is a study directory."""
    return (path / SUMMARY).is_file()


def objective(run: Run, metric: str, diverged: Sequence[bool]) -> float:
    """Compute the objective of a finished run: the mean of a metric over the seeds.

    Args:
        run: the run.
        metric: a metric of the log, of which the last finite value of each seed counts, or a final metric.
        diverged: whether each seed diverged.

    Returns:
        The mean; NaN if a seed diverged or has no finite value.

    Raises:
        LookupError: for a metric that the run does not have.
    """
    if any(diverged):
        return np.nan
    logged, final = run.metrics, run.final
    if metric not in logged and metric not in final:
        raise LookupError(f"--metric {metric}: the run reports {', '.join([*logged, *final])}; {_ANOTHER}")
    values = last_values(logged[metric].values) if metric in logged else np.asarray(final[metric])
    return float(values.mean())


class Logged:
    """The mean of a metric over a run's seeds while the run is trained."""

    def __init__(self, run: Run, metric: str) -> None:
        """Follow a metric.

        Args:
            run: the run; it may have rows already.
            metric: the metric's name in the log.
        """
        self.run, self.metric = run, metric
        self._count = 0
        self._last: Float[np.ndarray, " runs"] | None = None

    def __call__(self, row: Row) -> tuple[int, float] | None:
        """Take the next row of the log.

        Args:
            row: the row.

        Returns:
            How often the metric was logged before this row, and the mean over the seeds of their last finite values.
            None if the row does not have the metric.

        Raises:
            LookupError: if the row has other metrics with the same prefix, such as "validation/".
        """
        if self.metric not in row:
            part, slash, _ = self.metric.partition("/")
            others = [name for name in row if slash and name.startswith(part + slash)]
            if others:
                raise LookupError(f"--metric {self.metric}: the run logs {', '.join(others)}; {_ANOTHER}")
            return None
        if self._last is None:  # a resumed run has rows already; they are read once, together with this one
            series = self.run.metrics[self.metric].values
            self._count, self._last = len(series), last_values(series)
        else:
            new = np.atleast_1d(np.array(row[self.metric], float))
            self._count, self._last = self._count + 1, np.where(np.isfinite(new), new, self._last)
        return self._count - 1, float(self._last.mean())


def last_values(series: Float[np.ndarray, "points *runs"]) -> Float[np.ndarray, " runs"]:
    """Select the last finite value of each run; NaN if there is none. A run that stopped early has NaN from then on.

    Args:
        series: the logged values, [points] or [points, runs].

    Returns:
        [runs].
    """
    columns = series.reshape(len(series), -1).T
    return np.array([column[np.isfinite(column)][-1] if np.isfinite(column).any() else np.nan for column in columns])


def diverged(run: Run) -> list[bool]:
    """Return, for each seed of a run, whether it ended because a number was not finite.

    The last checkpoint says so; without a checkpoint no seed counts as diverged.

    Args:
        run: the run.
    """
    steps = Checkpoints(run.checkpoint_folder).steps()
    if not steps:
        return [False] * len(run.seeds)
    notes = json.loads((run.checkpoint_folder / f"{steps[-1]:08d}" / "notes.json").read_text())
    return [reason.startswith("diverged") for reason in notes["outcome"]["reasons"]]
