"""What a study leaves: its trials, what each was worth, and their record, which needs no Optuna to be read."""

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
    """One trial of a study."""

    number: int
    state: Literal["finished", "pruned", "failed", "running"]
    value: float  # the objective, the last one seen where the trial was pruned; NaN where there is none
    settings: dict[str, Any]
    run: str  # its run directory, from the study's; HOST:PATH where another machine ran it
    note: str = ""  # why it failed


class Study:
    """A study directory, as its search left it; needs no Optuna."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not is_study(self.path):
            raise FileNotFoundError(f"{path} is no study directory (it has no {SUMMARY}); `jdl tune` makes one")
        summary = json.loads((self.path / SUMMARY).read_text())
        self.description: dict[str, Any] = summary["description"]
        self.importances: dict[str, float] | None = summary["importances"]
        self.command: str | None = summary["command"]  # that repeats the best trial
        values = [np.nan if trial["value"] is None else trial["value"] for trial in summary["trials"]]
        self.trials = [Trial(**{**t, "value": value}) for t, value in zip(summary["trials"], values, strict=True)]

    @property
    def space(self) -> Space:
        """What was searched; a choice's values as text."""
        texts = self.description["space"]
        return {name: parse(text, str if text.startswith("choice") else float) for name, text in texts.items()}

    @property
    def maximized(self) -> bool:
        """Whether larger values are better."""
        return self.description["direction"] == "maximize"

    @property
    def ranked(self) -> list[Trial]:
        """The finished trials, best first, then the pruned ones."""
        sign = -1 if self.maximized else 1
        judged = [trial for trial in self.trials if trial.state in ("finished", "pruned")]
        return sorted(judged, key=lambda trial: (trial.state == "pruned", sign * np.nan_to_num(trial.value)))

    @property
    def best(self) -> Trial | None:
        """The best finished trial."""
        return next((trial for trial in self.ranked if trial.state == "finished"), None)


def is_study(path: Path) -> bool:
    """Whether a directory holds a study."""
    return (path / SUMMARY).is_file()


def objective(run: Run, metric: str, diverged: Sequence[bool]) -> float:
    """What a finished run was worth, the mean over its seeds; NaN where one diverged or measured nothing finite.

    metric: of the log, of which each seed's last value counts, or a final one. Raises LookupError for another.
    """
    if any(diverged):
        return np.nan
    logged, final = run.metrics, run.final
    if metric not in logged and metric not in final:
        raise LookupError(f"--metric {metric}: the run reports {', '.join([*logged, *final])}; {_ANOTHER}")
    values = last_values(logged[metric].values) if metric in logged else np.asarray(final[metric])
    return float(values.mean())


class Logged:
    """The mean of a metric over a run's seeds, as its rows come in."""

    def __init__(self, run: Run, metric: str) -> None:
        self.run, self.metric = run, metric
        self._count = 0
        self._last: Float[np.ndarray, " runs"] | None = None

    def __call__(self, row: Row) -> tuple[int, float] | None:
        """After a row: how often the metric was logged before, and its mean; None where the row lacks it.

        Raises LookupError where the row holds other metrics of the same part ("validation/...").
        """
        if self.metric not in row:
            part, slash, _ = self.metric.partition("/")
            others = [name for name in row if slash and name.startswith(part + slash)]
            if others:
                raise LookupError(f"--metric {self.metric}: the run logs {', '.join(others)}; {_ANOTHER}")
            return None
        if self._last is None:  # a resumed run has rows already; they are read once, with this one
            series = self.run.metrics[self.metric].values
            self._count, self._last = len(series), last_values(series)
        else:
            new = np.atleast_1d(np.array(row[self.metric], float))
            self._count, self._last = self._count + 1, np.where(np.isfinite(new), new, self._last)
        return self._count - 1, float(self._last.mean())


def last_values(series: Float[np.ndarray, "points *runs"]) -> Float[np.ndarray, " runs"]:
    """The last finite value of each run (one that stopped early logs null from then on); NaN where there is none."""
    columns = series.reshape(len(series), -1).T
    return np.array([column[np.isfinite(column)][-1] if np.isfinite(column).any() else np.nan for column in columns])


def diverged(run: Run) -> list[bool]:
    """Which of a run's runs ended since a number was not finite, by its last checkpoint; none where it has none."""
    steps = Checkpoints(run.checkpoint_folder).steps()
    if not steps:
        return [False] * len(run.seeds)
    notes = json.loads((run.checkpoint_folder / f"{steps[-1]:08d}" / "notes.json").read_text())
    return [reason.startswith("diverged") for reason in notes["outcome"]["reasons"]]
