"""The outcome of each run of a fit: its best state, when it ended and why.

Several runs in one program can end at different steps. A run that has ended is frozen: its state is put aside, and what
the program computes for it afterwards is ignored.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree

from jdl.core.learner import State
from jdl.core.ring import on_host
from jdl.runtime import processes


class Monitor(NamedTuple):
    """The validation metric that decides which state is best and when a run stops early.

    Attributes:
        name: the name of the metric, such as "loss" or "confusion/f1_macro".
        mode: "min" if lower is better, "max" if higher is.
        patience: evaluations without improvement after which a run stops; None never stops early.
    """

    name: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int | None = None

    @classmethod
    def of(cls, name: str) -> "Monitor":
        """Make a monitor without early stopping, whose mode follows from the name of the metric.

        The mode is "max" if the last part of the name begins with accuracy, top, precision, recall, f1, r2, score or
        return, as in "confusion/f1_macro"; otherwise it is "min".

        Args:
            name: the name of a validation metric.
        """
        scores = ("accuracy", "top", "precision", "recall", "f1", "r2", "score", "return")
        return cls(name, "max" if name.split("/")[-1].startswith(scores) else "min")


@jax.jit
def _select(chosen: Bool[jax.Array, "..."], new: PyTree, old: PyTree) -> PyTree:
    """Take the new state for the chosen runs and the old one for the others."""

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (new.ndim - chosen.ndim)), new, old)

    return jax.tree.map(pick, new, old)


@jax.jit
def copied(state: PyTree) -> PyTree:
    """Copy a state, so that a step cannot reuse its memory."""
    return jax.tree.map(jnp.copy, state)


def _has_nan(state: PyTree, shape: tuple[int, ...]) -> np.ndarray:
    """Whether the state has a NaN, for each run, `[*shape]`. Infinities may be start values, as for a minimum."""
    # Arrays on the host are data, such as a replay; parameters never lie there.
    numbers = [
        leaf
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(jax.typeof(leaf).dtype, jnp.inexact) and not on_host(leaf)
    ]
    # On a CPU, NumPy looks at the memory as it is: XLA takes seconds to compile a program over a thousand arrays.
    if jax.default_backend() == "cpu" and all(map(processes.addressable, numbers)):
        found = np.zeros(shape, bool)
        for leaf in numbers:
            found = found | np.isnan(np.asarray(leaf)).any(tuple(range(len(shape), np.ndim(leaf))))
        return np.asarray(found)
    return np.asarray(processes.gathered(_any_nan(numbers, jnp.zeros(shape, bool))))


@jax.jit
def _any_nan(arrays: list[jax.Array], none: Bool[jax.Array, "..."]) -> Bool[jax.Array, "..."]:
    found = [jnp.isnan(array).any(tuple(range(none.ndim, array.ndim))) for array in arrays]
    return jnp.stack([none, *(jnp.broadcast_to(one, none.shape) for one in found)]).any(0)


def plain(values: np.ndarray) -> Any:
    """Convert an array to (lists of) Python numbers for JSON, with None for NaN and infinities."""
    nothing: Any = None
    return np.where(np.isfinite(values), values.astype(object), nothing).tolist()


class Outcome:
    """The outcome of each run so far. All of it is saved with a checkpoint and restored.

    Attributes:
        monitor: the monitored metric.
        shape: the shape of the arrays here, `(runs,)`, or `()` for a single run without an axis.
        ended: `[*shape]` bool; whether the run has ended before the last step.
        reasons: for each run, why it has ended; "" if it has not.
        best_value: `[*shape]`; the best value of the monitored metric, NaN before the first.
        best_step: `[*shape]`; the step of that value, -1 before the first.
        stale: `[*shape]`; evaluations since then.
        best: the states of those steps; None before the first. A run without a finite value has its state at the first
            evaluation that was good for another run, or the state in which it had ended before.
    """

    def __init__(self, runs: int | None, monitor: Monitor) -> None:
        """Start without evaluations.

        Args:
            runs: the number of runs; None for a single run without an axis.
            monitor: the monitored metric.

        Raises:
            ValueError: for a mode that is neither "min" nor "max", and a patience below 1.
        """
        if monitor.mode not in ("min", "max"):
            raise ValueError(f'monitor mode={monitor.mode!r}: it is "min" or "max"')
        if monitor.patience is not None and monitor.patience < 1:
            raise ValueError(f"patience={monitor.patience}: give at least 1 evaluation, or None to never stop early")
        self.monitor = monitor
        self.shape = () if runs is None else (runs,)
        self.ended = np.zeros(self.shape, bool)
        self.reasons: list[str] = [""] * (runs or 1)
        self.best_value = np.full(self.shape, np.nan)
        self.best_step = np.full(self.shape, -1)
        self.stale = np.zeros(self.shape, int)
        self.best: State | None = None
        self._frozen: State | None = None

    def last_best(self, first: State) -> State:
        """Return the best state of each run, and `first` for runs without a finite value of the metric."""
        return first if self.best is None else _select(jnp.asarray(self.best_step >= 0), self.best, first)

    def judge(self, value: Any, step: int, state: State) -> None:
        """Record an evaluation: keep the best states, and end the runs that have not improved for too long.

        Args:
            value: the monitored metric of each run, `[*shape]`. A value that is not finite never counts as better.
            step: the step of the evaluation.
            state: the state that was evaluated.
        """
        value = np.asarray(value, float)
        sign = 1 if self.monitor.mode == "max" else -1
        better = np.isfinite(value) & (np.isnan(self.best_value) | (sign * value > sign * self.best_value))
        better &= ~self.ended
        if better.any():
            self.best = _select(jnp.asarray(better), state, state if self.best is None else self.best)
        self.best_value = np.where(better, value, self.best_value)
        self.best_step = np.where(better, step, self.best_step)
        self.stale = np.where(better, 0, self.stale + 1)
        if self.monitor.patience is not None:
            tired = ~self.ended & (self.stale >= self.monitor.patience)
            since = f"{self.monitor.name} no better for {self.monitor.patience} evaluations"
            self.end(tired, state, f"stopped early at step {step}: {since}")

    def end(self, which: Any, state: State, reason: str) -> None:
        """End runs, freezing them in the state given. Runs that have already ended stay as they are.

        Args:
            which: `[*shape]` bool; the runs to end.
            state: the state to keep.
            reason: why they end, for the log and the result.
        """
        which = np.asarray(which) & ~self.ended
        if which.any():
            self._frozen = _select(jnp.asarray(which), state, state if self._frozen is None else self._frozen)
            self.ended = self.ended | which
            for run in np.flatnonzero(which):
                self.reasons[run] = reason

    def not_finite(self, state: State) -> np.ndarray:
        """Return, as `[*shape]` bool, which runs have a NaN in their state and have not ended."""
        return np.asarray(_has_nan(state, self.shape) & ~self.ended)

    def compose(self, state: State) -> State:
        """Return the state, with every ended run as it was when it ended."""
        if self._frozen is None:
            return state
        return _select(jnp.asarray(self.ended), self._frozen, state)

    def notes(self) -> dict[str, Any]:
        """Return everything except the states as JSON values, for a checkpoint."""
        return {
            "ended": self.ended.tolist(),
            "reasons": self.reasons,
            "best_value": plain(self.best_value),
            "best_step": self.best_step.tolist(),
            "stale": self.stale.tolist(),
        }

    def restore(self, notes: dict[str, Any], state: State, best: State | None) -> None:
        """Restore from a checkpoint.

        Args:
            notes: the result of `notes`.
            state: the result of `compose`, saved with the notes.
            best: the best state, None if there was none.
        """
        self.ended = np.asarray(notes["ended"])
        self.reasons = list(notes["reasons"])
        self.best_value = np.asarray(notes["best_value"], float)
        self.best_step = np.asarray(notes["best_step"])
        self.stale = np.asarray(notes["stale"])
        self.best = best
        self._frozen = copied(state) if self.ended.any() else None
