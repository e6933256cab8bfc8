"""A learner: training as a few pure functions, which transforms compose as Optax composes optimizers."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jdl.core import seam
from jdl.core.accumulators import Mean

State = Any  # one pytree with everything that changes; it has `.key` (a JAX key) and `.step` (int32, updates taken)
Batch = Any  # a dict of arrays with a leading example axis, whose "mask" is 0 for padding; or another pytree, or None
Metrics = Any  # a dict of metrics (`jdl.metrics`), or of dicts of them
type Loss = Callable[[PyTree, Batch, Array], tuple]  # (params, batch, key) -> (total, weight[, auxiliary]): `gradients`


class Traits(NamedTuple):
    """How a learner takes its data. Transforms read and set these.

    Attributes:
        fed: whether `step` draws or makes its own batches. It is then given the whole data set (or None), which no
            transform divides.
        batch_size: examples of each update, for a learner that draws batches from a data set; None for others.
        example_axis: the axis of a batch's arrays along which examples lie. With `seeds(each=True)` it comes after an
            axis of runs, each with its own batch.
        lanes: a regular expression, searched for in the paths of the state ("runner/observation"). Devices divide the
            matching arrays as they divide examples. "" if there are none.
        example: the shapes and dtypes of a batch (`jax.ShapeDtypeStruct`), for `jdl plan`; () if the learner needs no
            batch, None if the shapes are not known.
    """

    fed: bool = False
    batch_size: int | None = None
    example_axis: int = 0
    lanes: str = ""
    example: Batch = None


class Learner(NamedTuple):
    """Training as pure functions. Transforms take a learner and return a learner.

    With `runs` set, every array of the state, the metrics and the outputs has a leading axis of length `runs`. With
    `steps` above 1, the arrays in the metrics of `step` have an axis of length `steps` next, one entry per update.

    Attributes:
        init: `(key) -> state`, the state before the first update.
        step: `(state, batch) -> (state, metrics)`, `steps` updates. The progress bar shows the metric `"loss"`, if
            there is one.
        evaluate: `(state, batch) -> metrics`, without an update. Examples whose `batch["mask"]` is 0 are padding and do
            not count.
        predict: `(state, batch) -> outputs`, for reports and export; optional.
        steps: updates per call of `step`.
        runs: the number of independent runs inside; None for a single run without a leading axis.
        check: `(data) -> None`, raises ValueError for values that a compiled program cannot check, such as token ids
            outside the vocabulary; optional.
        traits: how the learner takes its data.
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
        """Return the learner with some of its traits replaced, such as `learner.with_traits(batch_size=64)`.

        Args:
            **changes: fields of `Traits` and their new values.
        """
        return self._replace(traits=self.traits._replace(**changes))


def fold(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Derive the key of a named consumer, such as "dropout", so that a new consumer does not change the others' draws.

    Args:
        key: a typed JAX key.
        name: any string; its CRC-32 is folded into the key.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def step_key(state: State) -> Key[Array, ""]:
    """Return the key of the next update: `state.key` with `state.step` folded in.

    Args:
        state: a learner's state, with `key` and `step`.
    """
    return jax.random.fold_in(state.key, state.step)


def gradients(
    loss: Loss, params: PyTree, batch: Batch, key: Array, *, separable: bool = False
) -> tuple[PyTree, Mean, PyTree]:
    """Compute the gradients of a mean loss. Call this in place of `jax.grad`: here transforms act inside a step.

        ∇ = (Σᵢ ∂totalᵢ/∂params) / (Σᵢ weightᵢ)

    over the parts i that transforms divide the batch into: the micro-batches of `accumulate`, the replicas of `pmap`.

    A loop around this call (`jax.lax.scan`, `jax.checkpoint`) needs its body defined inside the step. JAX caches traces
    by function, and a cached trace would keep the transforms that were around an earlier call.

    Args:
        loss: `(params, batch, key) -> (total, weight)` or `(total, weight, auxiliary)`: the loss summed over the
            examples (a floating scalar), the number of examples that count (those not masked), and a pytree of metrics
            and running statistics.
        params: the parameters to differentiate by.
        batch: everything that has an example axis; transforms divide this and nothing else.
        key: for the random draws of the loss. `accumulate` and `pmap` fold the number of the part into it.
        separable: a promise that the loss is a sum over examples which draws nothing at random, and its auxiliary only
            metrics. Devices of `shard` then exchange all sums in one message, which on several parts of a CPU takes
            half of the time; the result is the same.

    Returns:
        The gradients of total / weight, in the structure of `params`, 0 if the weight is 0; the loss as a `Mean`; and
        the auxiliary pytree. Each is over the whole batch, however it was divided. Under `mixed_precision` with
        float16, an overflow in any gradient makes all of them NaN.

    Raises:
        TypeError: for a loss that returns something else, or a total that is not a floating scalar.
    """

    def summed(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
        precision = seam.current().precision

        def scalar(params: PyTree) -> tuple[Array, tuple[Array, Array, PyTree]]:
            total, weight, auxiliary = _in_precision(loss, params, batch, key)
            scaled = total if precision is None or precision.scale is None else total * precision.scale
            return scaled, (total, weight, auxiliary)

        grads, (total, weight, auxiliary) = jax.grad(scalar, has_aux=True)(params)
        if precision is not None and precision.scale is not None:
            grads = _unscaled(grads, precision.scale)
        return seam.Summed(grads, total, weight, auxiliary)

    apart = seam.current().apart if separable else None
    reduced: seam.SummedGradients = summed if apart is None else apart(summed)
    for reduction in reversed(seam.current().reductions):
        reduced = reduction(reduced)
    grads, total, weight, auxiliary = reduced(params, batch, key)
    divisor = jnp.where(weight > 0, weight, 1)  # the sums over a batch of padding are zero
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads), Mean(total, weight), auxiliary


def value(loss: Loss, params: PyTree, batch: Batch, key: Array) -> Array:
    """Compute the mean loss alone, for line searches: over the same parts and in the same precision as `gradients`.

    Args:
        loss: as in `gradients`.
        params: the parameters to evaluate at.
        batch: as in `gradients`.
        key: as in `gradients`; the same key gives the same random draws.

    Returns:
        A scalar, total / weight, or the total if the weight is 0.
    """

    def summed(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
        return seam.Summed((), *_in_precision(loss, params, batch, key))

    reduced: seam.SummedGradients = summed
    for reduction in reversed(seam.current().reductions):
        reduced = reduction(reduced)
    _, total, weight, _ = reduced(params, batch, key)
    return total / jnp.where(weight > 0, weight, 1)


def _in_precision(loss: Loss, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array, PyTree]:
    """The total, weight and auxiliary of a loss, of parameters in the precision that `mixed_precision` asks for."""
    precision = seam.current().precision
    if precision is not None:
        params = seam.cast(params, precision.dtype)
    total, weight, *auxiliary = _checked(loss(params, batch, key))
    total = total if precision is None else total.astype(jnp.float32)
    return total, jnp.asarray(weight, total.dtype), auxiliary[0] if auxiliary else ()


def _unscaled(grads: PyTree, scale: Array) -> PyTree:
    """Divide by the scale. If one gradient overflowed, make all of them NaN: an optimizer that uses signs hides it."""
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
