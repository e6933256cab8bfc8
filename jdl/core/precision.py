"""Mixed precision: half precision where it is fast, single precision where it is kept."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jdl.core import seam
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.core.metrics import Mean


@flax.struct.dataclass
class ScaledState:
    """A learner's state, and the factor by which its losses are multiplied so that half-precision gradients show."""

    inner: Any
    scale: Any
    finite: Any  # updates since the last overflow

    def __getattr__(self, name: str) -> Any:
        """What is asked of the learner's state (`params`, `key`, `step` ...) is the inner one's."""
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def mixed_precision(
    learner: Learner,
    dtype: str = "bfloat16",
    *,
    scale: float = 2.0**15,
    growth_interval: int = 2000,
) -> Learner:
    """Compute losses and gradients in half precision; parameters, optimizer and sums stay as they are.

    float16 has few exponents, so its losses are multiplied by a `scale`, doubled after `growth_interval` updates
    without overflow and halved at one, whose update is left out (Micikevicius et al., "Mixed precision training",
    2018, section 3.2). bfloat16 needs none, and keeps the state as it is. Evaluation stays in single precision.

    It goes inside: `scan(feed(mixed_precision(learner), 128), 10)`. A learner of your own computes in half precision
    as far as its inputs do, `jdl.compute_type(inputs)`, and casts what it sums up.
    """
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"mixed_precision(dtype={dtype!r}): there are 'bfloat16' and 'float16'")
    if learner.steps > 1 or learner.runs is not None:
        raise ValueError("mixed_precision goes inside scan, seeds and population: scan(mixed_precision(learner), n)")
    compute = jnp.dtype(dtype)
    if dtype == "bfloat16":

        def in_half(state: State, batch: Batch) -> tuple[State, Metrics]:
            with seam.within(precision=seam.Precision(compute)):
                return learner.step(state, batch)

        return learner._replace(step=in_half)

    def init(key: Any) -> ScaledState:
        return ScaledState(learner.init(key), jnp.float32(scale), jnp.int32(0))

    def step(state: ScaledState, batch: Batch) -> tuple[ScaledState, Metrics]:
        with seam.within(precision=seam.Precision(compute, state.scale)):
            new, metrics = learner.step(state.inner, batch)
        finite = _all_finite(new)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state.inner)
        since = jnp.where(finite, state.finite + 1, 0)
        grown = since >= growth_interval
        factor = jnp.where(finite, jnp.where(grown, 2.0, 1.0), 0.5)
        changed = ScaledState(_with_step(kept, new.step), state.scale * factor, jnp.where(grown, 0, since))
        return changed, {**metrics, "loss_scale": Mean(state.scale, jnp.ones_like(state.scale))}

    return learner._replace(
        init=init,
        step=step,
        evaluate=lambda state, batch: learner.evaluate(state.inner, batch),
        predict=(lambda state, batch: learner.predict(state.inner, batch)) if learner.predict else None,
    )


def compute_type(tree: PyTree) -> PyTree:
    """The floating arrays of a tree in the type that the step being traced computes in; as they are without one."""
    precision = seam.current().precision
    return tree if precision is None else seam.cast(tree, precision.dtype)


def _all_finite(tree: PyTree) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _with_step(state: State, step: Any) -> State:
    """An update that is left out counts, or the same batch would overflow again."""
    replace: Any = getattr(state, "_replace", None) or functools.partial(dataclasses.replace, state)
    return replace(step=step)
