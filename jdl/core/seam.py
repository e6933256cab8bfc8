"""The one place where a transform may act inside a learner's step.

A transform such as `accumulate` or `pmap` cannot reach into a step from outside, so it leaves a note here while the
step is traced, and `gradients` and `feed` read it. The note lives in a context variable: it exists during tracing
alone and compiled programs hold none of it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core.metrics import Metric, is_metric
from jdl.runtime import collectives


class Summed(NamedTuple):
    """Sums over a batch, not yet divided: gradients of the total, the total, its weight, and what the loss adds."""

    gradients: PyTree
    total: Array
    weight: Array
    auxiliary: PyTree


SummedGradients = Callable[[PyTree, PyTree, Array], Summed]


class Precision(NamedTuple):
    """In which type losses are computed, and by what they are multiplied before their gradients are taken."""

    dtype: Any
    scale: Array | None = None


class Seam(NamedTuple):
    """What the transforms around the step being traced ask of it."""

    reductions: tuple[Callable[[SummedGradients], SummedGradients], ...] = ()
    share: Callable[[Array], Array] = lambda positions: positions  # the part of a drawn batch that this replica takes
    axis: str = ""  # along which replicas lie that have a part each of the state's lanes
    groups: int = 1  # of devices, each with runs of its own, which transforms inside are spread within
    devices_taken: str = ""  # the transform that already spread the work over the devices
    precision: Precision | None = None
    watched: bool = False  # a loop around this one already looks for what is slow inside loops


_PLAIN = Seam()
_seam: contextvars.ContextVar[Seam] = contextvars.ContextVar("jdl_seam", default=_PLAIN)


def current() -> Seam:
    """The seam of the step being traced."""
    return _seam.get()


def untouched() -> bool:
    """Whether no transform acts inside the step, so that a compiled step from an earlier trace is still right."""
    return _seam.get() is _PLAIN


@contextlib.contextmanager
def reduced(reduction: Callable[[SummedGradients], SummedGradients] | None = None, **changes: Any) -> Iterator[None]:
    """While this context is open, steps that are traced take `reduction` around their gradients."""
    seam = _seam.get()
    reductions = seam.reductions if reduction is None else (*seam.reductions, reduction)
    token = _seam.set(seam._replace(reductions=reductions, **changes))
    try:
        yield
    finally:
        _seam.reset(token)


def whole(tree: PyTree, axis: int = 0) -> PyTree:
    """What each replica has a part of, along an axis, in each; as it is where there are no replicas."""
    name = current().axis
    return collectives.joined(tree, name, axis) if name else tree


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The floating arrays of a tree in another type."""
    floating = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if floating(leaf) else leaf, tree)


def merge_auxiliary(stacked: PyTree, weights: Array, merge: Callable[[Metric], Metric]) -> PyTree:
    """Merge what a loss returned beside its total, from parts of a batch stacked on a leading axis.

    Metrics merge exactly; other floating arrays (running statistics) are averaged by the parts' weights; anything
    else (counters) is taken from the last part.
    """
    total = weights.sum()
    shares = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 1 / len(weights))

    def combine(leaf: Any) -> Any:
        if is_metric(leaf):
            return merge(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.tensordot(shares.astype(leaf.dtype), leaf, axes=1)
        return leaf[-1]

    return jax.tree.map(combine, stacked, is_leaf=is_metric)
