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


Reduction = Callable[[SummedGradients], SummedGradients]
Share = Callable[[Array], Array]


class Groups(NamedTuple):
    """Groups of devices with runs of their own, within which a transform inside spreads each run.

    Attributes:
        number: how many groups.
        asked: not empty once a transform inside has asked for them.
    """

    number: int = 1
    asked: list[bool] = []  # noqa: RUF012  # that of a single group is never looked at


class Seam(NamedTuple):
    """The notes of the transforms around the step being traced.

    Attributes:
        reductions: what each of them does with the summed gradients, the outermost first.
        share: the part of the positions of a drawn batch that this replica takes.
        axis: the axis along which replicas lie that each have a part of the state's lanes; "" where there is none.
        groups: the groups of devices that transforms inside spread runs within.
        devices_taken: the transform that has already spread the work over the devices; "" where none has.
        precision: the type that losses are computed in.
        watched: a loop around this one already looks for what is slow inside loops.
    """

    reductions: tuple[Reduction, ...] = ()
    share: Share = lambda positions: positions
    axis: str = ""
    groups: Groups = Groups()
    devices_taken: str = ""
    precision: Precision | None = None
    watched: bool = False


_PLAIN = Seam()
_seam: contextvars.ContextVar[Seam] = contextvars.ContextVar("jdl_seam", default=_PLAIN)


def current() -> Seam:
    """The seam of the step being traced."""
    return _seam.get()


def untouched() -> bool:
    """Whether no transform acts inside the step, so that a compiled step from an earlier trace is still right."""
    return _seam.get() is _PLAIN


def groups() -> int:
    """The number of groups of devices; for a transform that spreads the step within one of them."""
    current().groups.asked.append(True)
    return current().groups.number


@contextlib.contextmanager
def within(
    *,
    reduction: Reduction | None = None,
    share: Share | None = None,
    axis: str | None = None,
    groups: Groups | None = None,
    devices_taken: str | None = None,
    precision: Precision | None = None,
    watched: bool | None = None,
) -> Iterator[None]:
    """While this context is open, steps are traced with these notes added to those of the transforms around.

    Args:
        reduction: taken around the gradients, inside the reductions that are there.
        share, axis, groups, devices_taken, precision, watched: as in `Seam`; None leaves them as they are.
    """
    seam = _seam.get()
    changes = {
        "share": share, "axis": axis, "groups": groups, "devices_taken": devices_taken, "precision": precision,
        "watched": watched,
    }  # fmt: skip
    reductions = seam.reductions if reduction is None else (*seam.reductions, reduction)
    given = {name: value for name, value in changes.items() if value is not None}
    token = _seam.set(seam._replace(reductions=reductions, **given))
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
