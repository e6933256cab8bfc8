"""The training loop around a learner's step: batches, metrics, evaluation, checkpoints and early stopping."""

import contextlib
import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jdl.core.accumulators import merge_axis, to_host
from jdl.core.learner import Learner, Metrics, State
from jdl.core.plateau import has_plateau, observed
from jdl.core.runs_axis import beside
from jdl.core.values import check_values
from jdl.data.dataset import check
from jdl.runtime import processes
from jdl.runtime.preemption import Notice, Preempted, noticed
from jdl.training.checkpoint.checkpoints import Checkpoints
from jdl.training.evaluate import Epochs, compute, merged, passes
from jdl.training.loggers import LOGGERS
from jdl.training.outcome import Monitor, Outcome, copied, plain
from jdl.training.profiling import Watch
from jdl.training.progress import ProgressBar
from jdl.training.runs import Row, Run, locked, open_or_create
from jdl.training.source import Source, Whole

type Callback = Callable[[Row, State], bool | None]  # (row, state) -> True to stop


class Fitted(NamedTuple):
    """The result of `fit`.

    Attributes:
        state: the last state; for a run that ended early, its state at that step.
        best: the state with the best value of the monitored metric; the last state if nothing was evaluated.
        rows: the log, one dict per row: "step", "seconds" (of training so far), and metrics such as "train/loss", each
            a number or a list of one number per run. None stands for a value that is not finite and for a run that has
            ended.
        ended: for each run, why it ended before the last step; "" if it did not.
    """

    state: State
    best: State
    rows: list[Row]
    ended: list[str]


def fit(
    learner: Learner,
    source: Source | Mapping[str, Any] | None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    key: Array | int = 0,
    validation: Mapping[str, Any] | Epochs | None = None,
    evaluate_every: int | None = None,
    evaluation_batch_size: int = 1024,
    monitor: Monitor | str = "loss",
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    run: Run | str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
) -> Fitted:
    """Train a learner from a key, or from the run's last checkpoint.

    All intervals count updates and are multiples of `learner.steps`. A run whose metrics are no longer finite ends with
    a warning; its state is that of the last checkpoint, or else the best or the first. With a run directory, SIGTERM
    saves a checkpoint at once, together with the metrics that are not logged yet, and raises `Preempted`, which ends
    the process with status `jdl.REQUEUE`.

    Args:
        learner: the learner, compiled by `jdl.jit`; uncompiled, each operation runs by itself.
        source: a `Source`; a dict of arrays for a learner made by `feed`; None for a learner that makes its own data.
        steps: the number of updates, a multiple of `learner.steps`. Give either this or `epochs`.
        epochs: passes over the training data, rounded down to whole calls of `learner.step`.
        key: a JAX key or an integer seed.
        validation: a dict of arrays, or a pipeline that does not shuffle, to evaluate on.
        evaluate_every: updates between evaluations; by default a tenth of all updates.
        evaluation_batch_size: examples per call of `learner.evaluate`, for a dict of arrays.
        monitor: the validation metric that picks the best state and stops early: its name (a score is maximized, a loss
            minimized: `Monitor.of`), or a `Monitor` with mode and patience.
        log_every: updates between rows of the log; by default a hundredth of all updates.
        checkpoint_every: updates between checkpoints; by default a tenth of all updates. Without a run directory there
            are none.
        run: a run directory for the log and the checkpoints: a path, or a `Run` that no fit has been given yet.
        resume: for a path, whether to continue the run in that directory, if there is one; otherwise the directory must
            be new or empty. A `Run` is always continued.
        callbacks: `(row, state) -> True to stop`, called with every row of the log. Copy a state to keep it, because
            the next step reuses its memory.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: before the first step and before anything is written, for intervals, data and metric names that do
            not fit the learner, for labels without an output, and if not exactly one of `steps` and `epochs` is given.
        FileExistsError: for a run directory that is not empty, without `resume`.
        Preempted: after SIGTERM, once the checkpoint is written.
    """
    if not isinstance(source, Source):
        if source is not None and not learner.traits.fed:
            raise ValueError("fit was given arrays, and the learner draws no batches: use feed, or Batches(data, size)")
        source = Whole(source)
    steps = _updates(learner, source, steps, epochs)
    interval = _Intervals(learner.steps, steps)
    log_every = interval("log_every", log_every, 100)
    evaluate_every = interval("evaluate_every", evaluate_every, 10) if validation is not None else 0
    checkpoint_every = interval("checkpoint_every", checkpoint_every, 10) if run is not None else 0
    monitor = Monitor.of(monitor) if isinstance(monitor, str) else monitor
    key = jax.random.key(key) if isinstance(key, int) else key
    if validation is not None and not isinstance(validation, Epochs):
        check(validation)
    state = learner.init(key)
    if processes.several() and all(map(_is_local, jax.tree.leaves(state))):
        warnings.warn(
            f"each of {processes.count()} processes trains the same by itself: nothing spreads the learner over them "
            "(jdl.distribute, jdl.shard, jdl.seeds)",
            stacklevel=2,
        )
    validated = passes(learner, state, validation, evaluation_batch_size) if validation is not None else None
    for data in (getattr(source, "data", None), validated.known if validated else None):
        if isinstance(data, Mapping):
            check_values(learner, state, data)
    if validation is None and has_plateau(state):
        raise ValueError(
            "the optimizer reduces its learning rate on a plateau of the validation metric, and fit was given no "
            'validation=; give it, or reduce_on_plateau(of="training")'
        )
    if validated and monitor.name not in (names := _names(learner, state, validated.shapes)):
        raise ValueError(f"monitor={monitor.name!r} is no metric of the evaluation; it has {', '.join(names)}")
    if isinstance(source, Whole) and source.data is not None:
        source.data = beside(state, source.data)

    # Nothing is written before this, so that a mistake above leaves no folder behind.
    run = open_or_create(run, resume) if run is not None else None
    loggers = [LOGGERS[name](run.path / name) for name in run.log_to] if run and processes.first() else []
    watch = Watch(learner, source, run)
    loop = _Loop(watch.learner, watch.source, key, state, Outcome(learner.runs, monitor), run, [*callbacks, *loggers])
    bar = ProgressBar(steps, 0, False)
    try:
        loop.start()
        bar = ProgressBar(steps, loop.step, progress if processes.first() else False)
        intervals = [every for every in (log_every, evaluate_every, checkpoint_every, steps) if every]
        with _notices(bool(checkpoint_every)) as notice:
            while loop.step < steps and not loop.stopped:
                event = min(_next(loop.step, every) for every in intervals)
                loop.advance(event, bar, notice)
                if loop.step < event:
                    loop.leave(saved=False)
                watch.look()
                loop.flush(bar)
                if validated and loop.step % evaluate_every == 0:
                    loop.evaluate(validated.batches())
                due = checkpoint_every > 0 and (loop.step % checkpoint_every == 0 or loop.step >= steps or loop.stopped)
                if due:
                    loop.save()
                if notice:  # also at the last step: what follows the fit may take longer than the time that is left
                    loop.leave(saved=due)
        return loop.finish()
    finally:
        bar.close(loop.step)
        for logger in loggers:
            logger.close()
        loop.close()
        watch.close()


def _updates(learner: Learner, source: Source, steps: int | None, epochs: float | None) -> int:
    """Return the number of updates; raise ValueError unless exactly one is given and an epoch has a length."""
    if (steps is None) == (epochs is None):
        raise ValueError(f"fit(steps={steps}, epochs={epochs}): give one of them")
    if steps is not None:
        return steps
    if learner.traits.batch_size is not None and isinstance(source, Whole) and source.data is not None:
        size = jax.tree.leaves(source.data)[0].shape[learner.traits.example_axis]
        per_epoch = size // learner.traits.batch_size
        unit = "updates"
    else:
        per_epoch = getattr(source, "batches_per_epoch", None)
        if per_epoch is None:
            raise ValueError(f"fit(epochs={epochs}): a {type(source).__name__} has no epochs to count; give steps=")
        per_epoch *= learner.steps  # a batch is for one call
        unit = "batches" if learner.steps == 1 else "updates"
    updates = int(epochs * per_epoch)  # type: ignore[operator]
    if updates < 1:
        raise ValueError(f"fit(epochs={epochs}): that is no update ({per_epoch} {unit} per epoch)")
    return max(learner.steps, updates // learner.steps * learner.steps)


def _is_local(leaf: Any) -> bool:
    """Whether this process alone holds all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _notices(saving: bool) -> contextlib.AbstractContextManager[Any]:
    """Open the notice that is asked, before each call of the step, whether to save and leave."""
    if not saving:
        return contextlib.nullcontext(Notice())
    return contextlib.nullcontext(processes.Notice()) if processes.several() else noticed()


class _Intervals(NamedTuple):
    """Checks and defaults of intervals, in updates: `interval(name, value or None, default share of all updates)`."""

    unit: int
    steps: int

    def __call__(self, name: str, value: int | None, share: int) -> int:
        if self.steps < 1 or self.steps % self.unit:
            raise ValueError(self._message("steps", self.steps))
        if value is None:
            return max(self.unit, self.steps // share // self.unit * self.unit)
        if value < 1 or value % self.unit:
            raise ValueError(self._message(name, value))
        return value

    def _message(self, name: str, value: int) -> str:
        nearest = max(self.unit, round(value / self.unit) * self.unit)
        return f"{name}={value} is no multiple of the learner's {self.unit} updates per call; try {nearest}"


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _names(learner: Learner, state: State, batch: Any) -> list[str]:
    shapes = jax.eval_shape(learner.evaluate, state, batch)
    values = compute(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    return sorted(name for name, value in values.items() if value.ndim == (learner.runs is not None))


_observed = jax.jit(observed)

# The number of calls whose metrics are stacked on the device: fetching each by itself would cost more than a step.
_CHUNK = 64


@functools.partial(jax.jit, static_argnums=(1, 2))
def _stack_calls(calls: tuple[Metrics, ...], axis: int, several: bool) -> Metrics:
    """Put the metrics of calls one after another along the axis of steps, a new axis unless calls take `several`."""
    return jax.tree.map(lambda *leaves: (jnp.concatenate if several else jnp.stack)(leaves, axis), *calls)


class _Loop:
    """A fit in progress: the state, the metrics since the last row of the log, and the outcome of each run."""

    def __init__(
        self,
        learner: Learner,
        source: Source,
        key: Array,
        state: State,
        outcome: Outcome,
        run: Run | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.learner, self.source, self.key = learner, source, key
        self.outcome, self.run, self.callbacks = outcome, run, callbacks
        self.checkpoints = Checkpoints(run.checkpoint_folder) if run else None
        self.lock = locked(run.path) if run else contextlib.nullcontext()
        self.state = state
        self.step = 0
        self.rows: list[Row] = []
        self.stopped = False
        self._pending: list[Metrics] = []
        self._unlogged: list[np.ndarray] = []  # the leaves of metrics that were pending when the run was interrupted
        self._clock = time.monotonic()

    def start(self) -> None:
        """Continue from the run's newest intact checkpoint, if it has one."""
        if self.checkpoints is None or self.run is None:
            return
        restored = self.checkpoints.restore(self._tree(self.state, self.state))
        step = restored.step if restored else 0
        self.rows = self.run.truncate(step)
        if restored is None:
            return
        if step % self.learner.steps:
            raise ValueError(
                f"the checkpoint of step {step} cannot be continued {self.learner.steps} updates per call; "
                "resume with the number of steps per call (scan) that the run was started with"
            )
        self.step = step
        self.state = restored.tree["state"]
        self.source.restore(restored.tree["source"])
        best = restored.tree["best"] if restored.notes["has_best"] else None
        self.outcome.restore(restored.notes["outcome"], self.state, best)
        self.stopped = bool(self.outcome.ended.all()) or restored.notes["stopped"]
        self._clock -= restored.notes["seconds"]
        self._unlogged = [np.array(values, dtype) for dtype, values in restored.notes.get("unlogged", [])]

    def advance(self, until: int, bar: ProgressBar, notice: Notice) -> None:
        """Take steps until the next event, or until a notice. Nothing here waits for the device."""
        step, source, state, pending = self.learner.step, self.source, self.state, self._pending
        while self.step < until and not notice:
            state, metrics = step(state, source.next(state))
            pending.append(metrics)
            self.step += self.learner.steps
            bar.advance(self.step)
        self.state = state

    def flush(self, bar: ProgressBar) -> None:
        """Fetch the metrics since the last flush, end runs that diverged, and log a row."""
        if not self._pending:
            return
        leaves, structure = self._measured()
        self._pending.clear()
        self._unlogged = []
        metrics, axis = jax.tree.unflatten(structure, leaves), 0 if self.learner.runs is None else 1
        first = self.step - (leaves[0].shape[axis] if leaves else 0)
        self._end_diverged(self._first_not_finite(metrics, first))
        values = compute(merge_axis(metrics, axis))
        row = self._log("train", values)
        if "train/loss" in row:
            losses = [loss for loss in np.ravel(row["train/loss"]) if loss is not None]
            bar.note(f"loss {np.mean(losses):.4g}" if losses else "")

    def evaluate(self, batches: Iterable[Any]) -> None:
        """Evaluate, log, keep the best states, and end runs that no longer improve."""
        if self.stopped:
            return
        values = compute(merged(self.learner, self.state, batches))
        self._log("validation", values)
        value = values[self.outcome.monitor.name]
        self.outcome.judge(value, self.step, self.outcome.compose(self.state))
        if has_plateau(self.state):
            worse = value if self.outcome.monitor.mode == "min" else -value
            self.state = _observed(self.state, np.asarray(worse, np.float32))
        self.stopped = self.stopped or bool(self.outcome.ended.all())

    def leave(self, saved: bool) -> None:
        """Raise Preempted; before, save a checkpoint unless that is done (`saved`) or a run has just diverged."""
        if self.checkpoints is None or self.run is None:
            return
        if not saved and not self.outcome.not_finite(self.state).any():
            self.save()
        self.checkpoints.wait()
        print(f"jdl: told to end (SIGTERM): {self.run.path} is saved as of step {self.step}", file=sys.stderr)
        raise Preempted

    def save(self) -> None:
        """Save a checkpoint, after ending the runs whose state has become NaN."""
        if self.checkpoints is None:
            return
        self._end_diverged({int(run): self.step for run in np.flatnonzero(self.outcome.not_finite(self.state))})
        state = self.outcome.compose(self.state)
        best = state if self.outcome.best is None else self.outcome.best
        notes = {
            "outcome": self.outcome.notes(),
            "stopped": self.stopped,
            "has_best": self.outcome.best is not None,
            "seconds": time.monotonic() - self._clock,
            "unlogged": [(str(leaf.dtype), leaf.tolist()) for leaf in self._measured()[0]],
        }
        # Nothing trains with the replay of the best state again, so its rows are those of the last state.
        self.checkpoints.save(self.step, self._tree(state, best), notes, same_rows={"best": "state"})

    def _tree(self, state: State, best: State) -> dict[str, Any]:
        return {"state": state, "best": best, "source": self.source.save()}

    def finish(self) -> Fitted:
        """Return the result of the fit."""
        state = self.outcome.compose(self.state)
        # A copy: if the caller goes on training with `state`, the step reuses its memory.
        best = copied(state) if self.outcome.best is None else self.outcome.best
        return Fitted(state, best, self.rows, self.outcome.reasons)

    def close(self) -> None:
        """Wait until the last checkpoint is on disk, then unlock the run directory."""
        with self.lock:
            if self.checkpoints is not None:
                self.checkpoints.close()

    def _measured(self) -> tuple[list[np.ndarray], Any]:
        """Fetch the metrics since the last row: the leaves, [(runs), updates, ...], and their structure."""
        if not self._pending:
            return self._unlogged, None
        leaves, structure = jax.tree.flatten(self._stack(self._pending))
        axis = 0 if self.learner.runs is None else 1
        if self._unlogged:
            leaves = [np.concatenate(pair, axis) for pair in zip(self._unlogged, leaves, strict=True)]
        return leaves, structure

    def _stack(self, pending: list[Metrics]) -> Metrics:
        """Fetch metrics [(runs), (steps), ...] of several calls as [(runs), updates, ...], in float64."""
        axis = 0 if self.learner.runs is None else 1
        chunks = [tuple(pending[start : start + _CHUNK]) for start in range(0, len(pending), _CHUNK)]
        fetched = [to_host(_stack_calls(chunk, axis, self.learner.steps > 1)) for chunk in chunks]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *fetched)

    def _first_not_finite(self, metrics: Metrics, first: int) -> dict[int, int]:
        """Return the runs with metrics that are not finite, each with the first such update. Ended runs are left out.

        `first` is the number of updates before these metrics.
        """
        found: dict[int, int] = {}
        for leaf in jax.tree.leaves(metrics):
            if np.isfinite(leaf).all():
                continue
            by_step = leaf if self.learner.runs is not None else leaf[None]
            bad = ~np.isfinite(by_step).reshape(*by_step.shape[:2], -1).all(-1)
            for run in np.flatnonzero(bad.any(1)):
                step = first + int(bad[run].argmax()) + 1
                found[int(run)] = min(step, found.get(int(run), step))
        return {run: step for run, step in found.items() if not self.outcome.ended.reshape(-1)[run]}

    def _end_diverged(self, diverged: dict[int, int]) -> None:
        if not diverged:
            return
        good, kept = self._last_good()
        for run, step in diverged.items():
            which = np.zeros(self.outcome.ended.size, bool)
            which[run] = True
            name = "the run" if self.learner.runs is None else f"run {run}"
            reason = f"diverged at step {step}: not finite"
            self.outcome.end(which.reshape(self.outcome.shape), good, reason)
            warnings.warn(f"{name} {reason}; its state is kept as of step {kept[run]}", RuntimeWarning, stacklevel=2)
        self.stopped = self.stopped or bool(self.outcome.ended.all())

    def _last_good(self) -> tuple[State, np.ndarray]:
        """Return the newest state known to be finite, and its step for each run.

        It is that of the last checkpoint, else the best, else the first.
        """
        if self.checkpoints is not None:
            restored = self.checkpoints.restore(self._tree(self.state, self.state))
            if restored is not None:
                return restored.tree["state"], np.full(self.outcome.ended.size, restored.step)
        steps = np.maximum(self.outcome.best_step, 0).reshape(-1)
        return self.outcome.last_best(self.learner.init(self.key)), steps

    def _log(self, prefix: str, values: Mapping[str, np.ndarray]) -> Row:
        """Log one row: a number per metric, or a list of one number per run, None for runs that have ended."""
        row: Row = {"step": self.step, "seconds": round(time.monotonic() - self._clock, 3)}
        for name, value in values.items():
            if value.shape == self.outcome.shape:
                row[f"{prefix}/{name}"] = plain(np.where(self.outcome.ended, np.nan, value))
        self.rows.append(row)
        if self.run is not None:
            self.run.log(row)
        for callback in self.callbacks:
            self.stopped = bool(callback(row, self.state)) or self.stopped
        return row
