"""Profiling of training: a trace of a few calls on request, and warnings of compilations and of waiting for data."""

import contextlib
import contextvars
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jdl.core.compiled import Compiled
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.runtime.files import write_json
from jdl.training.runs import Run
from jdl.training.source import Source

_WARM_UP = 5  # calls before the first that is traced; they compile, and fill the buffers of what reads ahead
_SHAPES = 8  # compilations of a step without a warning; with buckets of lengths, several are normal
_SHARE = 0.2  # the fraction of the time that may be spent waiting for data without a warning
_SECONDS = 10.0  # the seconds of training before that fraction is judged

_wanted: contextvars.ContextVar[int] = contextvars.ContextVar("profiled calls", default=0)


@contextlib.contextmanager
def profile(calls: int) -> Iterator[None]:
    """Trace calls of the step of every `fit` with a run directory, as long as this context is open.

    The first 5 calls, which compile, are left out. The results are in `profile/` in the run directory: `times.json`,
    also printed to standard error when the fit ends, and a trace. Open its `.trace.json.gz` in
    https://ui.perfetto.dev, or the folder in XProf or TensorBoard.

    Args:
        calls: how many calls of the step to trace; after `scan` each takes several updates.

    Raises:
        ValueError: for less than 1 call.

    Examples:
        >>> with profile(20):  # jdl.fit(learner, source, steps=1000, run="runs/mine")
        ...     pass
    """
    if calls < 1:
        raise ValueError(f"profile({calls}): trace at least 1 call of the step")
    token = _wanted.set(calls)
    try:
        yield
    finally:
        _wanted.reset(token)


def profiled_calls() -> int:
    """Return the number of calls that `profile` asks each fit to trace here; 0 outside of it."""
    return _wanted.get()


class Watch:
    """The profiler of one fit, and its warnings.

    Attributes:
        learner: the learner to train with: the one given, or one whose step is traced.
        source: the source to train with: the one given, or one that is traced.
    """

    def __init__(self, learner: Learner, source: Source, run: Run | None) -> None:
        """Watch a fit, and trace it inside `profile` if it has a run directory.

        Args:
            learner: the learner given to `fit`; compilations are seen only if it was made by `jdl.jit`.
            source: the source given to `fit`.
            run: the run directory, or None.
        """
        self.learner, self.source = learner, source
        self._given = source
        self._trace = None
        if run is not None and _wanted.get():
            self._trace = _Trace(learner, source, run.path / "profile", _wanted.get())
            self.learner, self.source = learner._replace(step=self._trace.step), self._trace
        self._signatures = learner.step.signatures if isinstance(learner.step, Compiled) else []
        self._first = self._looked_at = len(self._signatures)  # not 0 if the learner was in another fit before
        self._types_warned = self._shapes_warned = self._waiting_warned = False
        self._since: tuple[float, float] | None = None  # the clock and the time waited, after the first interval

    def look(self) -> None:
        """Warn, once each, of a changed type, of too many compilations, and of training that waits for data.

        `fit` calls this after every interval.
        """
        while self._looked_at < len(self._signatures):
            self._look_at_compilation(self._looked_at)
            self._looked_at += 1
        if self._trace is not None:
            self._trace.wait()
        # A source that acts in environments, for instance, has no `waited`: its time is not lost.
        waited = getattr(self._given, "waited", None)
        if waited is not None:
            self._look_at_waiting(waited)

    def close(self) -> None:
        """End a trace that has begun, and print the times."""
        if self._trace is not None:
            self._trace.close()

    def _look_at_compilation(self, number: int) -> None:
        if number == self._first:
            return
        change = _change(self._signatures[number - 1], self._signatures[number])
        if change.of_type and not self._types_warned:  # unlike a shape, a type never changes on purpose
            self._types_warned = True
            warnings.warn(
                f"the step was compiled again: {change.text}; let the source give one type always, "
                "by np.asarray(value, np.float32) for instance",
                RuntimeWarning,
                stacklevel=4,
            )
        compiled = number - self._first + 1
        if compiled > _SHAPES and not self._shapes_warned:
            self._shapes_warned = True
            warnings.warn(
                f"the step was compiled {compiled} times, for as many kinds of batch, lastly since {change.text}; "
                "pad to one length (jdl.data.pad) or to a few (jdl.data.buckets), and drop the remainder of an epoch",
                RuntimeWarning,
                stacklevel=4,
            )

    def _look_at_waiting(self, waited: float) -> None:
        now = time.perf_counter()
        if self._since is None:
            self._since = now, waited
        seconds, waiting = now - self._since[0], waited - self._since[1]
        if seconds >= _SECONDS and waiting > _SHARE * seconds and not self._waiting_warned:
            self._waiting_warned = True
            warnings.warn(
                f"training waited for data {waiting / seconds:.0%} of the time since its first interval; give the "
                "pipeline more workers= (or threads=) and a larger prefetch=, make map cheaper, or store the data as "
                "the step takes it; `jdl run --profile 20` shows a few steps",
                RuntimeWarning,
                stacklevel=4,
            )


class _Change(NamedTuple):
    text: str
    of_type: bool


def _change(before: Any, after: Any) -> _Change:
    """Describe the first difference between two batches, given the types of their leaves."""
    was, now = (
        {jax.tree_util.keystr(path): kind for path, kind in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (before, after)
    )
    for name in was.keys() & now.keys():
        if (was[name].dtype, was[name].weak_type) != (now[name].dtype, now[name].weak_type):
            return _Change(f"batch{name} came as {_type_text(now[name])} after {_type_text(was[name])}", True)
    for name in now.keys() & was.keys():
        if now[name].shape != was[name].shape:
            return _Change(f"batch{name} came as {_type_text(now[name])} after {_type_text(was[name])}", False)
    return _Change(f"the batch had {', '.join(now)} after {', '.join(was)}", False)


def _type_text(kind: Any) -> str:
    return kind.str_short() + (" of a Python number" if kind.weak_type else "")


class _Trace:
    """A source and a step that measure their own time and, for some calls, let JAX's profiler record."""

    def __init__(self, learner: Learner, source: Source, folder: Path, calls: int) -> None:
        self._learner, self._source, self._folder, self._calls = learner, source, folder, calls
        self._done = 0  # calls so far, including the warm-up
        self._recording = False
        self._started = 0.0
        self._metrics: Metrics = None  # the last call's, which are ready when the device has finished it
        self._seconds: dict[str, float] = {"waiting for data": 0.0, "dispatch": 0.0, "waiting for the device": 0.0}

    def next(self, state: State) -> Batch:
        if self._done == _WARM_UP:
            self._start(state)
        with self._timed("waiting for data", jax.profiler.TraceAnnotation("source.next")):
            return self._source.next(state)

    def save(self) -> Any:
        return self._source.save()

    def restore(self, saved: Any) -> None:
        self._source.restore(saved)

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        with self._timed("dispatch", jax.profiler.StepTraceAnnotation("step", step_num=self._done)):
            state, self._metrics = self._learner.step(state, batch)
        self._done += 1
        if self._done == _WARM_UP + self._calls:
            self._stop()
        return state, self._metrics

    @contextlib.contextmanager
    def _timed(self, name: str, annotation: contextlib.AbstractContextManager) -> Iterator[None]:
        if not self._recording:
            yield
            return
        started = time.perf_counter()
        with annotation:
            yield
        self._seconds[name] += time.perf_counter() - started

    def _start(self, state: State) -> None:
        jax.block_until_ready(state)  # exclude the computation of the warm-up
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing every Python call would slow the loop down
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._recording, self._started = True, time.perf_counter()

    def wait(self) -> None:
        """Wait for the device, as `fit` would do next when it fetches the metrics."""
        with self._timed("waiting for the device", jax.profiler.TraceAnnotation("metrics")):
            jax.block_until_ready(self._metrics)

    def _stop(self) -> None:
        self.wait()
        total = time.perf_counter() - self._started
        self._recording = False
        jax.profiler.stop_trace()
        calls = self._done - _WARM_UP
        self._seconds["the loop: logging, evaluation, checkpoints"] = total - sum(self._seconds.values())
        times = {"calls": calls, "updates": calls * self._learner.steps, "seconds": self._seconds}
        write_json(self._folder / "times.json", times)

    def close(self) -> None:
        if self._recording:
            self._stop()
        if self._done > _WARM_UP:
            self._print()
        elif self._done:
            warnings.warn(
                f"there is no profile: the fit made {self._done} calls of the step, and the first {_WARM_UP} are left "
                "out; train longer, or with fewer updates per call",
                RuntimeWarning,
                stacklevel=4,
            )

    def _print(self) -> None:
        calls, total = min(self._done - _WARM_UP, self._calls), sum(self._seconds.values())
        table = Table(f"{calls} calls of {self._learner.steps} update(s)", "ms a call", "share")
        for name, seconds in self._seconds.items():
            table.add_row(name, f"{1000 * seconds / calls:.3f}", f"{seconds / total:.0%}")
        console = Console(stderr=True)
        console.print(table)
        trace = max(self._folder.rglob("*.trace.json.gz"), default=self._folder)
        console.print(
            f"open {trace} in https://ui.perfetto.dev, or all of it by `pip install xprof; xprof --logdir "
            f"{self._folder}`",
            soft_wrap=True,
            markup=False,
        )
