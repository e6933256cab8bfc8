"""How each run of a fit fares: its best state, when it ended and why.

With several runs in one program each has its own end. One that has ended is frozen: its state is put aside at that
step, and what the program goes on computing for it is not looked at.
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
    """The validation metric that decides which state is best, and when a run stops early."""

    name: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int | None = None  # evaluations without improvement; None never stops early

    @classmethod
    def of(cls, name: str) -> "Monitor":
        """The monitor of a metric whose name says which way is better: a score ("accuracy", "fit/r2") or a loss."""
        scores = ("accuracy", "top", "precision", "recall", "f1", "r2", "score", "return")
        return cls(name, "max" if name.split("/")[-1].startswith(scores) else "min")


@jax.jit
def _select(chosen: Bool[jax.Array, "..."], new: PyTree, old: PyTree) -> PyTree:
    """Per run, the new state where chosen."""

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (new.ndim - chosen.ndim)), new, old)

    return jax.tree.map(pick, new, old)


@jax.jit
def copied(state: PyTree) -> PyTree:
    """A state in memory of its own."""
    return jax.tree.map(jnp.copy, state)


@jax.jit
def _is_finite(state: PyTree, axis_of_runs: PyTree) -> jax.Array:
    """Per run, whether no number in the state is NaN (infinities can be a start value, as of a minimum)."""

    def finite(leaf: jax.Array) -> jax.Array:
        axes = tuple(range(axis_of_runs.ndim, leaf.ndim))
        return ~jnp.isnan(leaf).any(axes)

    # What lies on the host is data that was seen, nothing that is learnt.
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact) and not on_host(leaf)]
    if not numbers:
        return jnp.ones(axis_of_runs.shape, bool)
    return jnp.stack([jnp.broadcast_to(finite(leaf), axis_of_runs.shape) for leaf in numbers]).all(0)


def plain(values: np.ndarray) -> Any:
    """Numbers as JSON has them, null for what is not finite."""
    nothing: Any = None
    return np.where(np.isfinite(values), values.astype(object), nothing).tolist()


class Outcome:
    """The book kept for each run; everything in it is saved with a checkpoint and restored."""

    def __init__(self, runs: int | None, monitor: Monitor) -> None:
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
        self.stale = np.zeros(self.shape, int)  # evaluations since the best
        self.best: State | None = None
        self._frozen: State | None = None

    def last_best(self, first: State) -> State:
        """Per run the best state, or the first one where none was judged good."""
        return first if self.best is None else _select(jnp.asarray(self.best_step >= 0), self.best, first)

    def judge(self, value: Any, step: int, state: State) -> None:
        """Take in a value of the monitored metric: keep the best states, end the runs whose patience is out."""
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
        """Freeze some runs in the state given."""
        which = np.asarray(which) & ~self.ended
        if which.any():
            self._frozen = _select(jnp.asarray(which), state, state if self._frozen is None else self._frozen)
            self.ended = self.ended | which
            for run in np.flatnonzero(which):
                self.reasons[run] = reason

    def not_finite(self, state: State) -> np.ndarray:
        """Which running runs have a NaN in their state."""
        finite = np.asarray(processes.gathered(_is_finite(state, jnp.zeros(self.shape))))
        return np.asarray(~finite & ~self.ended)

    def compose(self, state: State) -> State:
        """The state with every ended run as it was when it ended."""
        if self._frozen is None:
            return state
        return _select(jnp.asarray(self.ended), self._frozen, state)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint says of the outcome, as JSON."""
        return {
            "ended": self.ended.tolist(),
            "reasons": self.reasons,
            "best_value": plain(self.best_value),
            "best_step": self.best_step.tolist(),
            "stale": self.stale.tolist(),
        }

    def restore(self, notes: dict[str, Any], state: State, best: State | None) -> None:
        """Go on from a checkpoint's notes, its composed state and its best state."""
        self.ended = np.asarray(notes["ended"])
        self.reasons = list(notes["reasons"])
        self.best_value = np.asarray(notes["best_value"], float)
        self.best_step = np.asarray(notes["best_step"])
        self.stale = np.asarray(notes["stale"])
        self.best = best
        self._frozen = copied(state) if self.ended.any() else None
