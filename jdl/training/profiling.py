"""Where the time of training goes: a trace of a few calls when asked for, and two warnings that cost nothing."""

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

from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.runtime.files import write_json
from jdl.training.runs import Run
from jdl.training.source import Source

_WARM_UP = 5  # calls before the first that is traced: they compile, and fill what reads ahead
_SHAPES = 8  # different ones that a step may be compiled for unsaid: buckets of lengths are no mistake
_SHARE = 0.2  # of the time, that waiting for data may take unsaid
_SECONDS = 10.0  # of training, before that is judged

_wanted: contextvars.ContextVar[int] = contextvars.ContextVar("profiled calls", default=0)


@contextlib.contextmanager
def profile(calls: int) -> Iterator[None]:
    """Within it every `fit` with a run directory traces that many calls of its step, into `profile/` there.

    >>> with profile(20):  # jdl.fit(learner, source, steps=1000, run="runs/mine")
    ...     pass

    The first calls are left out. Times are in `profile/times.json`, on the standard error stream when the fit ends,
    and in the trace: open its `.trace.json.gz` in https://ui.perfetto.dev, or the folder in XProf or TensorBoard.
    Raises ValueError for less than 1 call.
    """
    if calls < 1:
        raise ValueError(f"profile({calls}): trace at least 1 call of the step")
    token = _wanted.set(calls)
    try:
        yield
    finally:
        _wanted.reset(token)


class Watch:
    """What `fit` knows of time: `learner` and `source` are those it was given, or traced ones; `look` warns."""

    def __init__(self, learner: Learner, source: Source, run: Run | None) -> None:
        self.learner, self.source = learner, source
        self._given = source
        self._trace = None
        if run is not None and _wanted.get():
            self._trace = _Trace(learner, source, run.path / "profile", _wanted.get())
            self.learner, self.source = learner._replace(step=self._trace.step), self._trace
        self._signatures = getattr(learner.step, "signatures", [])  # `jdl.jit` adds one a compilation
        self._first = self._looked_at = len(self._signatures)  # a learner may have been in another fit
        self._types_warned = self._shapes_warned = self._waiting_warned = False
        self._since: tuple[float, float] | None = None  # the clock and the time waited, when the warm-up was over

    def look(self) -> None:
        """After an interval: warn, once each, of compilations without end and of training that waits for data."""
        while self._looked_at < len(self._signatures):
            self._look_at_compilation(self._looked_at)
            self._looked_at += 1
        if self._trace is not None:
            self._trace.wait()
        waited = getattr(self._given, "waited", None)  # what acts in environments, say, has none: its time is no loss
        if waited is not None:
            self._look_at_waiting(waited)

    def close(self) -> None:
        """End a trace that is under way, and print where the time went."""
        if self._trace is not None:
            self._trace.close()

    def _look_at_compilation(self, number: int) -> None:
        if number == self._first:
            return
        change = _change(self._signatures[number - 1], self._signatures[number])
        if change.of_type and not self._types_warned:  # a type is no bucket: one change is a mistake
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
    """What is different in a batch, by the types of its leaves."""
    was, now = (
        {jax.tree_util.keystr(path): kind for path, kind in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (before, after)
    )
    for name in was.keys() & now.keys():
        if (was[name].dtype, was[name].weak_type) != (now[name].dtype, now[name].weak_type):
            return _Change(f"batch{name} came as {_written(now[name])} after {_written(was[name])}", True)
    for name in now.keys() & was.keys():
        if now[name].shape != was[name].shape:
            return _Change(f"batch{name} came as {_written(now[name])} after {_written(was[name])}", False)
    return _Change(f"the batch had {', '.join(now)} after {', '.join(was)}", False)


def _written(kind: Any) -> str:
    return kind.str_short() + (" of a Python number" if kind.weak_type else "")


class _Trace:
    """A source and a step that note the time they take, and while they do, what the profiler sees."""

    def __init__(self, learner: Learner, source: Source, folder: Path, calls: int) -> None:
        self._learner, self._source, self._folder, self._calls = learner, source, folder, calls
        self._done = 0  # calls, the warm-up's too
        self._recording = False
        self._started = 0.0
        self._metrics: Metrics = None  # of the last call: ready when the device has done it
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
        jax.block_until_ready(state)  # the warm-up's work is not theirs
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of every Python function would slow the loop down
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._recording, self._started = True, time.perf_counter()

    def wait(self) -> None:
        """Wait for the device, where `fit` would while it fetches what was measured."""
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
                "out; train longer, or with fewer updates a call",
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
