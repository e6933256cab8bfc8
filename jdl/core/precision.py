"""Mixed precision: losses and gradients in half precision, parameters and optimizer in single precision."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jdl.core import seam
from jdl.core.accumulators import Mean
from jdl.core.learner import Batch, Learner, Metrics, State


@flax.struct.dataclass
class ScaledState:
    """A learner's state with the scale of its losses, for float16. Other attributes are those of `inner`.

    Attributes:
        inner: the learner's state.
        scale: scalar float32; losses are multiplied by this, so that half-precision gradients do not round to 0.
        finite: scalar int32; updates since the scale changed.
    """

    inner: Any
    scale: Any
    finite: Any

    def __getattr__(self, name: str) -> Any:
        """Look up `params`, `key`, `step` and other attributes of the learner's state in `inner`."""
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
    """Compute losses and gradients in half precision. Parameters, optimizer and evaluation keep their precision.

    float16 has a small range of exponents, so losses are multiplied by a scale. An update whose gradients overflow is
    left out and halves the scale; `growth_interval` updates without overflow double it. The metrics then include
    `"loss_scale"`. bfloat16 needs no scale and leaves the state as it is.

    Apply this first: `scan(feed(mixed_precision(learner), 128), 10)`. In a learner of your own, the loss that
    `jdl.gradients` is given casts its inputs by `jdl.compute_type` and casts what it sums to float32.

    Args:
        learner: a learner of one run and one update per step.
        dtype: "bfloat16" or "float16".
        scale: the first scale, for float16.
        growth_interval: updates without overflow before the scale is doubled, for float16.

    Raises:
        ValueError: for another dtype, and for a learner that already holds several steps or runs.

    Source: Micikevicius et al., "Mixed precision training", 2018, section 3.2.
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
    """Cast the floating arrays of a tree to the type that `mixed_precision` asks for; without it, return the tree.

    The type is known only while a step is traced, so call this inside the step, on inputs of the network.

    Args:
        tree: a pytree of arrays.
    """
    precision = seam.current().precision
    return tree if precision is None else seam.cast(tree, precision.dtype)


def _all_finite(tree: PyTree) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _with_step(state: State, step: Any) -> State:
    """Replace the count of updates: one that is left out counts too, or the same batch would overflow again."""
    replace: Any = getattr(state, "_replace", None) or functools.partial(dataclasses.replace, state)
    return replace(step=step)
