"""What is measured of a model's outputs, as metrics that merge exactly (`jdl.core.accumulators`).

The functions are given to a learner: `metrics={"accuracy": accuracy, "top_3": top_k(k=3)}`. Each maps `(outputs,
batch)` to a metric and reads `batch["target"]` and, if there is padding, `batch["mask"]` (nonzero for examples that
count). Called with options alone, by keyword, it returns a function with those options. Masked values have no effect,
even if they are NaN. A compiled step cannot raise for a label outside `0 … classes − 1` (`fit` checks labels
beforehand): `accuracy`, `top_k` and `calibration` count it as wrong, `confusion` leaves it out.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Real

from jdl.core.accumulators import Batch, align_mask, divide
from jdl.core.accumulators import Calibration as Calibration
from jdl.core.accumulators import Confusion as Confusion
from jdl.core.accumulators import Last as Last
from jdl.core.accumulators import Mean as Mean
from jdl.core.accumulators import Metric as Metric
from jdl.core.accumulators import MetricFunction as MetricFunction
from jdl.core.accumulators import Regression as Regression
from jdl.core.accumulators import is_metric as is_metric
from jdl.core.accumulators import merge_axis as merge_axis
from jdl.core.accumulators import to_host as to_host
from jdl.core.labels import class_labels


def _metric[**P, M](measure: Callable[P, M]) -> Callable[..., Any]:
    """Make a function of (outputs, batch) return, if called with options alone, the function with those options."""
    name = measure.__name__
    options = list(inspect.signature(measure).parameters.values())[2:]
    example = f"jdl.metrics.{name}" + (f"({options[0].name}=...)" if options else "")

    @functools.wraps(measure)
    def metric(*arguments: Any, **given: Any) -> Any:
        if len(arguments) == 2:
            return cast(Any, measure)(*arguments, **given)
        if len(arguments) == 1 and isinstance(arguments[0], int) and options and not given:
            warnings.warn(
                f"jdl.metrics.{name}({arguments[0]}) is written {name}({options[0].name}={arguments[0]}) now; the old "
                "way goes with the next version",
                FutureWarning,
                stacklevel=2,
            )
            return metric(**{options[0].name: arguments[0]})
        strange = given.keys() - {option.name for option in options}
        if arguments or strange or not options:
            made = "options are given by keyword" if options else "it has no options, so it is not called"
            raise TypeError(
                f"{name} takes (outputs, batch), and {made}: metrics={{'{name}': {example}}}; it was called with "
                f"{len(arguments)} positional argument(s) and {', '.join(given) or 'no'} keyword(s)"
            )
        _checked_options(name, given)
        return functools.partial(metric, **given)

    return metric


def _checked_options(name: str, given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}({option}={value}): it must be 1 or more")


@_metric
def accuracy(outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch) -> Mean:
    """The fraction of examples, or of time steps, whose largest logit is the target's.

    Args:
        outputs: logits or probabilities, `[..., classes]`; of equal ones the lower class is predicted.
        batch: integer labels in `"target"`, `[...]` or `[..., 1]`, and optionally `"mask"`, `[...]` or its first axes.

    Returns:
        A `Mean`.

    Raises:
        KeyError: for a batch without `"target"`.
        TypeError: for targets that are not integers.
        ValueError: for a target or mask of another shape.
    """
    target = class_labels(outputs, batch)
    return Mean.of(jnp.argmax(outputs, -1) == target, batch.get("mask"))


@_metric
def top_k(outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch, *, k: int = 5) -> Mean:
    """The fraction of examples whose target is among the k largest logits: `jdl.metrics.top_k(k=3)`.

    Of equal logits the lower class comes first, so `top_k(k=1)` is `accuracy`. (In scikit-learn's
    `top_k_accuracy_score` the higher class comes first.)

    Args:
        outputs: logits or probabilities, `[..., classes]`.
        batch: as in `accuracy`.
        k: how many classes, at most all of them.

    Returns:
        A `Mean`.

    Raises:
        ValueError: for a k below 1 or above the number of classes; otherwise as `accuracy`.
    """
    target = class_labels(outputs, batch)
    if k > outputs.shape[-1]:
        raise ValueError(f"k is {k} and there are {outputs.shape[-1]} classes; choose k among them")
    _, best = jax.lax.top_k(jnp.asarray(outputs), k)
    return Mean.of((best == target[..., None]).any(-1), batch.get("mask"))


@_metric
def confusion(
    outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch, *, num_classes: int | None = None
) -> Confusion:
    """The confusion matrix of the class with the largest logit.

    Labels outside the classes are left out.

    Args:
        outputs: logits or probabilities, `[..., classes]`.
        batch: as in `accuracy`.
        num_classes: the number of classes that the outputs must have; None accepts any.

    Returns:
        A `Confusion`; it computes accuracy, precision, recall and F1 too.

    Raises:
        ValueError: for outputs of another number of classes; otherwise as `accuracy`.
    """
    target = class_labels(outputs, batch)
    classes = outputs.shape[-1]
    if num_classes not in (None, classes):
        raise ValueError(f"outputs have {classes} classes and num_classes is {num_classes}")
    kept = _mask(batch, target.shape) & (target >= 0)  # a negative index would count from the end
    counts = jnp.zeros((classes, classes), jnp.int32)  # integers add the same in any order
    add = counts.at[target, jnp.argmax(outputs, -1)].add
    return Confusion(add(kept.astype(jnp.int32), mode="drop"))


@_metric
def regression(outputs: Real[Array | np.ndarray, "batch *outputs"], batch: Batch) -> Regression:
    """Errors and explained variance of real predictions.

    Args:
        outputs: predictions, `[batch]` or `[batch, outputs]`.
        batch: `"target"` of the same shape, and optionally `"mask"`, `[batch]`.

    Returns:
        A `Regression`, in float32 or wider.

    Raises:
        KeyError: for a batch without `"target"`.
        ValueError: for a target of another shape, and for other numbers of axes.
    """
    target = _target(batch)
    if outputs.shape != target.shape or outputs.ndim not in (1, 2):
        raise ValueError(
            f"outputs are {list(outputs.shape)} and batch['target'] is {list(target.shape)}; regression "
            "wants both as [batch] or both as [batch, outputs] (squeeze or reshape them)"
        )
    # A single output gets a trailing axis of length 1, so that leading axes are always runs, steps or devices.
    rows = (len(target), -1)
    dtype = jnp.promote_types(jnp.promote_types(outputs.dtype, target.dtype), jnp.float32)
    outputs, target = jnp.asarray(outputs, dtype).reshape(rows), target.astype(dtype).reshape(rows)
    kept = jnp.broadcast_to(_mask(batch, target.shape[:1])[:, None], target.shape)
    count = kept.sum(0, dtype=dtype)
    error = jnp.where(kept, outputs - target, 0)
    shift = jnp.where(count > 0, target[jnp.argmax(kept[:, 0])], 0)  # the first that is not padding
    deviation = jnp.where(kept, target - shift, 0)
    mean = divide(deviation.sum(0), count, 0.0)
    squared_deviation = jnp.where(kept, (deviation - mean) ** 2, 0).sum(0)
    return Regression(count, shift, mean, squared_deviation, (error**2).sum(0), abs(error).sum(0))


@_metric
def calibration(outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch, *, bins: int = 15) -> Calibration:
    """Calibration of the largest softmax probability.

    Args:
        outputs: logits, `[..., classes]`; not probabilities, the softmax is taken here.
        batch: as in `accuracy`.
        bins: the number of bins of equal width in (0, 1].

    Returns:
        A `Calibration`, in float32 or wider.

    Raises:
        ValueError: for less than 1 bin; otherwise as `accuracy`.
    """
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    target = class_labels(outputs, batch)
    logits = jnp.asarray(outputs, jnp.promote_types(outputs.dtype, jnp.float32))
    kept = _mask(batch, target.shape)
    confidence = jnp.where(kept, jax.nn.softmax(logits).max(-1), 0)
    correct = jnp.where(kept, jnp.argmax(logits, -1) == target, 0)
    # The bin is the number of edges strictly below. Sum one-hot rows: a scatter of floats has no fixed order on a GPU,
    # and so no fixed last bits.
    index = (confidence[..., None] > jnp.asarray(edges, confidence.dtype)).sum(-1)
    member = jax.nn.one_hot(index, bins, dtype=confidence.dtype) * kept[..., None]
    axes = tuple(range(target.ndim))
    sums = [(member * x[..., None]).sum(axes) for x in (confidence, correct)]
    return Calibration(member.sum(axes), *sums)


def _target(batch: Batch) -> Array:
    if "target" not in batch:
        raise KeyError(f"batch has {sorted(batch)} and no 'target', which this metric compares with")
    return jnp.asarray(batch["target"])


def _mask(batch: Batch, shape: tuple[int, ...]) -> Array:
    """Return `batch["mask"]` as booleans of the given shape; all true if there is none."""
    mask = batch.get("mask")
    return jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(align_mask(mask, shape), shape)
