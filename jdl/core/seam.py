"""The seam: the one place where a transform may act inside a learner's step.

A transform such as `accumulate` or `pmap` cannot reach into a step from outside. So it leaves notes here while the step
is traced, and `gradients` and `feed` read them. The notes are in a context variable and exist only during tracing;
compiled programs contain none of them.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jdl.core.accumulators import Metric, is_metric, merge_axis
from jdl.runtime import collectives


class Summed(NamedTuple):
    """Sums over the examples of a batch, not yet divided by the weight.

    Attributes:
        gradients: the gradients of `total`, in the structure of the parameters.
        total: scalar; the summed loss.
        weight: scalar; the number of examples that count.
        auxiliary: what the loss returned beside these: a pytree of metrics and running statistics, or ().
    """

    gradients: PyTree
    total: Array
    weight: Array
    auxiliary: PyTree


SummedGradients = Callable[[PyTree, PyTree, Array], Summed]  # (params, batch, key) -> Summed


class Precision(NamedTuple):
    """The precision of losses and gradients.

    Attributes:
        dtype: the type that losses are computed in.
        scale: scalar; the factor of a loss before its gradients are taken, which are divided by it. None for 1.
    """

    dtype: Any
    scale: Array | None = None


Reduction = Callable[[SummedGradients], SummedGradients]  # such as one that sums over micro-batches or replicas
Share = Callable[[Array], Array]


class Groups(NamedTuple):
    """Groups of devices with different runs. A transform inside spreads each run over the devices of its group.

    Attributes:
        number: the number of groups; 1 means all devices.
        asked: not empty once a transform inside has asked for the groups.
    """

    number: int = 1
    asked: list[bool] = []  # noqa: RUF012  # shared, because nobody reads it for a single group


class Seam(NamedTuple):
    """The notes of the transforms around the step being traced.

    Attributes:
        reductions: functions around the summed gradients, one per transform, the outermost first.
        share: maps the positions of a drawn batch, `[batch]`, to those that this replica takes.
        apart: around the summed gradients of a loss that is a sum over examples and draws nothing, inside all
            reductions: each device computes its part by itself, and the sums are exchanged in one message. None where
            no transform divides examples that way.
        axis: the name of the axis along which replicas divide the lanes of the state; "" if there are none.
        groups: the groups of devices within which transforms inside spread runs.
        devices_taken: the name of the transform that has already spread the computation over the devices; "" if none
            has.
        precision: the precision of losses and gradients; None for the parameters' own.
        watched: whether an outer loop already looks for operations that are slow inside loops.
    """

    reductions: tuple[Reduction, ...] = ()
    share: Share = lambda positions: positions
    apart: Reduction | None = None
    axis: str = ""
    groups: Groups = Groups()
    devices_taken: str = ""
    precision: Precision | None = None
    watched: bool = False


_PLAIN = Seam()
_seam: contextvars.ContextVar[Seam] = contextvars.ContextVar("jdl_seam", default=_PLAIN)


def current() -> Seam:
    """Return the notes of the transforms around the step being traced."""
    return _seam.get()


def untouched() -> bool:
    """Whether no transform acts inside the step, so that a step compiled before is still valid."""
    return _seam.get() is _PLAIN


def groups() -> int:
    """Return the number of groups of devices, for a transform that spreads a step over the devices of one group."""
    current().groups.asked.append(True)
    return current().groups.number


@contextlib.contextmanager
def within(
    *,
    reduction: Reduction | None = None,
    share: Share | None = None,
    apart: Reduction | None = None,
    axis: str | None = None,
    groups: Groups | None = None,
    devices_taken: str | None = None,
    precision: Precision | None = None,
    watched: bool | None = None,
) -> Iterator[None]:
    """Trace steps with these notes added to those of outer transforms, as long as this context is open.

    Every argument that is None leaves the note as it is.

    Args:
        reduction: applied around the gradients, inside the reductions of outer transforms.
        share: as in `Seam`.
        apart: as in `Seam`.
        axis: as in `Seam`.
        groups: as in `Seam`.
        devices_taken: as in `Seam`.
        precision: as in `Seam`.
        watched: as in `Seam`.
    """
    seam = _seam.get()
    changes = {
        "share": share, "apart": apart, "axis": axis, "groups": groups, "devices_taken": devices_taken,
        "precision": precision, "watched": watched,
    }  # fmt: skip
    reductions = seam.reductions if reduction is None else (*seam.reductions, reduction)
    given = {name: value for name, value in changes.items() if value is not None}
    token = _seam.set(seam._replace(reductions=reductions, **given))
    try:
        yield
    finally:
        _seam.reset(token)


def whole(tree: PyTree, axis: int = 0) -> PyTree:
    """Gather arrays that replicas divide along `axis`, so that each replica has all of them.

    Without replicas the arrays are returned as they are.
    """
    name = current().axis
    return collectives.joined(tree, name, axis) if name else tree


def over_replicas(result: Summed, axis: str) -> Summed:
    """Sum what each replica computed for its part of the batch; small arrays share one message.

    Args:
        result: the sums of this replica.
        axis: the name of the axis of replicas.
    """
    weights, auxiliary = collectives.stacked((result.weight, result.auxiliary), axis)
    grads, total, weight = collectives.summed((result.gradients, result.total, result.weight), axis)
    return Summed(grads, total, weight, merge_auxiliary(auxiliary, weights, lambda metric: merge_axis(metric, 0)))


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Cast the floating arrays of a tree to `dtype` and leave the others."""
    floating = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if floating(leaf) else leaf, tree)


def merge_auxiliary(stacked: PyTree, weights: Array, merge: Callable[[Metric], Metric]) -> PyTree:
    """Merge what a loss returned beside its total for several parts of a batch.

    Metrics merge exactly. Other floating arrays, such as running statistics, are averaged with the weights of the
    parts. Anything else, such as a counter, is taken from the last part.

    Args:
        stacked: the auxiliary pytrees, stacked along a leading axis of parts.
        weights: `[parts]`; the number of examples that count in each part.
        merge: merges the leading axis of a metric away, such as `merge_axis`.
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
