"""A learner is a few pure functions, so that training composes as Optax made optimizers compose."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jdl.core import seam
from jdl.core.metrics import Mean

State = Any  # one pytree, everything that changes; it has `.key` and `.step`
Batch = Any  # a pytree of arrays with a leading example axis (a dict; "mask" marks padding), or None
Metrics = Any  # a dict of metrics (`jdl.metrics`)
type Loss = Callable[[PyTree, Batch, Array], tuple]


class Traits(NamedTuple):
    """How a learner takes its data, for the transforms around it.

    Attributes:
        fed: batches are drawn inside: `step` is given the whole data set (or None), which is never split.
        batch_size: examples per update, where batches are drawn inside from a data set.
        example_axis: the axis of examples in the leaves of a batch; axes before it are of runs with batches of their
            own.
        lanes: a regular expression for the paths in the state that devices share out as they do examples.
        example: the shapes of a batch, for plans; () where it needs none, None where they are not known.
    """

    fed: bool = False
    batch_size: int | None = None
    example_axis: int = 0
    lanes: str = ""
    example: Batch = None


class Learner(NamedTuple):
    """Training as pure functions; transforms take a learner and return a learner.

    Metrics of a step have a leading axis of `runs` where that is set, then one of `steps` where that is above 1.

    Attributes:
        init: `(key) -> state`.
        step: `(state, batch) -> (state, metrics)`, one update, or `steps` updates.
        evaluate: `(state, batch) -> metrics`, no update. Examples whose `batch["mask"]` is zero are padding and do not
            count.
        predict: `(state, batch) -> outputs`; optional, for reports and servers.
        steps: updates per call of `step`.
        runs: how many independent runs are inside; None for one without a leading axis.
        check: `(data) -> None`, raises ValueError for values that no compiled program would judge, such as token ids
            outside the vocabulary; optional.
        traits: how it takes its data.
    """

    init: Callable[[Any], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]
    predict: Callable[[State, Batch], Any] = None  # type: ignore[assignment]
    steps: int = 1
    runs: int | None = None
    check: Callable[[Batch], None] | None = None
    traits: Traits = Traits()

    def with_traits(self, **changes: Any) -> "Learner":
        """The learner with some of its traits replaced."""
        return self._replace(traits=self.traits._replace(**changes))


def fold(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of the consumer called `name`: streams stay apart however many consumers come to be."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def step_key(state: State) -> Key[Array, ""]:
    """The key of the update that `state` is about to take."""
    return jax.random.fold_in(state.key, state.step)


def gradients(loss: Loss, params: PyTree, batch: Batch, key: Array) -> tuple[PyTree, Mean, PyTree]:
    """Gradients of a mean loss, through the one seam where transforms act inside a step.

    `loss(params, batch, key)` returns `(total, weight)` or `(total, weight, auxiliary)`: the loss summed over the
    examples, how many count (the unmasked ones), and a pytree of metrics and running statistics. Everything that
    has an example axis must come in through `batch`: `accumulate` and `pmap` split that and nothing else. A loop of
    your own around this (`jax.lax.scan`, `jax.checkpoint`) needs its body defined inside the step: JAX keeps traces
    by function, and a kept one does not know which transforms are around it now.

    Returns the gradients of total / weight (zero where the weight is zero), the loss as a `Mean`, and the auxiliary
    pytree, each over the whole batch however it was split.
    """

    def summed(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
        precision = seam.current().precision

        def scalar(params: PyTree) -> tuple[Array, tuple[Array, Array, PyTree]]:
            if precision is not None:
                params = seam.cast(params, precision.dtype)
            total, weight, *auxiliary = _checked(loss(params, batch, key))
            total = total if precision is None else total.astype(jnp.float32)
            scaled = total if precision is None or precision.scale is None else total * precision.scale
            return scaled, (total, jnp.asarray(weight, total.dtype), auxiliary[0] if auxiliary else ())

        grads, (total, weight, auxiliary) = jax.grad(scalar, has_aux=True)(params)
        if precision is not None and precision.scale is not None:
            grads = _unscaled(grads, precision.scale)
        return seam.Summed(grads, total, weight, auxiliary)

    reduced: seam.SummedGradients = summed
    for reduction in reversed(seam.current().reductions):
        reduced = reduction(reduced)
    grads, total, weight, auxiliary = reduced(params, batch, key)
    divisor = jnp.where(weight > 0, weight, 1)  # a batch of padding alone moves nothing
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads), Mean(total, weight), auxiliary


def value(loss: Loss, params: PyTree, batch: Batch, key: Array) -> Array:
    """The mean loss at some parameters, through the seam as `gradients`, which it is without: for line searches."""

    def summed(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
        total, weight, *auxiliary = _checked(loss(params, batch, key))
        return seam.Summed((), total, jnp.asarray(weight, total.dtype), auxiliary[0] if auxiliary else ())

    reduced: seam.SummedGradients = summed
    for reduction in reversed(seam.current().reductions):
        reduced = reduction(reduced)
    _, total, weight, _ = reduced(params, batch, key)
    return total / jnp.where(weight > 0, weight, 1)


def _unscaled(grads: PyTree, scale: Array) -> PyTree:
    """Divided by the scale; NaN, all of them, where one overflowed: an optimizer that looks at signs would hide it."""
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]).all()
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf / scale, jnp.nan), grads)


def _checked(result: Any) -> tuple:
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise TypeError(
            "a loss given to jdl.gradients returns (total, weight) or (total, weight, auxiliary), "
            f"this one returned {type(result).__name__}; return for instance (losses.sum(), len(losses))"
        )
    total = jnp.asarray(result[0])
    if total.shape != () or not jnp.issubdtype(total.dtype, jnp.floating):
        raise TypeError(
            f"the total of a loss is a floating scalar, this one has shape {total.shape} and type {total.dtype}; "
            "sum it over the examples"
        )
    return (total, *result[1:])
