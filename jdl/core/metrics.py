"""Metrics that merge exactly: sums and counts first, ratios last.

A metric is a pytree of sums and counts. Because no ratio is taken before `compute`, merging the metrics
of uneven batches, of scanned steps or of devices gives what one pass over all the data would have given.

Both `merge` and `compute` act elementwise over leading axes: the metric of eight runs in one program is
one metric with leaves `[8, ...]`. Both take JAX arrays (inside a step) and NumPy arrays (in the host's
float64), and stay in the kind they were given. Counts kept in float32 on a device are exact up to 2²⁴
examples between two visits to the host.

The functions at the end, such as `accuracy`, are given to a learner:
`metrics={"accuracy": accuracy, "top_3": top_k(k=3)}`. Each maps `(outputs, batch)` to a metric, reading
`batch["target"]` and, where there is padding, `batch["mask"]` (nonzero: counted). Options, given alone by keyword,
make a metric with those options. Values under the mask, even NaN, have no effect. A label outside
`0 … classes − 1` cannot raise inside a compiled step (`fit` checks it before): `accuracy`, `top_k` and
`calibration` count it as wrong, `confusion` leaves it out.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from types import ModuleType
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Num, Real, Shaped

from jdl.core.labels import class_labels
from jdl.runtime import processes

AnyArray = Array | np.ndarray | np.generic
"""A JAX array or tracer, a NumPy array, or the scalar that NumPy makes of a 0-d sum."""

Leaf = Any
"""A field of a metric: an array, but anything at all (a sharding, an axis number) while a tree is mapped."""

Batch = Mapping[str, Any]


@runtime_checkable
class Metric(Protocol):
    """A pytree of sums and counts; both methods act elementwise over leading axes."""

    def merge(self, other: Any) -> Any: ...

    def compute(self) -> Any: ...


MetricFunction = Callable[[Array, Batch], Metric]


def is_metric(value: object) -> bool:
    """Whether `value` is a metric (an instance, not a class)."""
    return isinstance(value, Metric) and not isinstance(value, type)


def to_host(tree: Any) -> Any:
    """Brings a pytree to NumPy, widened so that merging there is exact.

    Inexact leaves become float64 (complex: complex128), integers int64, booleans stay.
    """

    def widen(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return leaf.astype(np.complex128)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):  # of jnp, which knows bfloat16
            return leaf.astype(np.float64)
        return leaf.astype(np.int64) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf

    return jax.tree.map(widen, jax.device_get(processes.gathered(tree)))


def merge_axis(metrics: Any, axis: int = 0) -> Any:
    """Merges a stacked axis away from every metric in a pytree of metrics.

    Neighbors merge in pairs, so n entries take about log₂ n vectorized merges and the rounding error
    grows as log n. Order is kept (`Last` stays the last). Works on NumPy and on traced arrays.

    `axis` counts from the front, among the leading axes that every leaf has: of metrics stacked as
    `[runs, steps]`, `merge_axis(metrics, axis=1)` leaves one metric a run.

    Raises ValueError where a leaf lacks the axis, its length differs between leaves, or it is 0 long;
    TypeError where a leaf is no metric.
    """
    if axis < 0:
        raise ValueError(f"axis is {axis}; count it from the front, since metrics differ in trailing axes")
    at = (slice(None),) * axis

    def merge_one(path: Any, metric: Any) -> Any:
        name = jax.tree_util.keystr(path) or "the metric"
        if not is_metric(metric):
            raise TypeError(f"{name} is a {type(metric).__name__}, not a metric; wrap it: Mean.of(value)")
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(metric)]
        lengths = {shape[axis] if axis < len(shape) else 0 for shape in shapes}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{name} has leaves {shapes}; all must have axis {axis}, alike and not empty")
        (length,) = lengths

        def take(metric: Any, index: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[(*at, index)], metric)

        tails = []  # an odd level's last entry; the later a tail was set aside, the earlier is its place
        while length > 1:
            if length % 2:
                tails.append(take(metric, length - 1))
            even, odd = slice(0, length - 1, 2), slice(1, length, 2)
            metric = take(metric, even).merge(take(metric, odd))
            length //= 2
        return reduce(lambda left, right: left.merge(right), reversed(tails), take(metric, 0))

    return jax.tree_util.tree_map_with_path(merge_one, metrics, is_leaf=is_metric)


def _namespace(*arrays: Any) -> ModuleType:
    """jax.numpy where any argument is a JAX array, else numpy, which alone keeps float64."""
    return jnp if any(isinstance(array, Array) for array in arrays) else np


def _divide(numerator: Any, denominator: Any, otherwise: float) -> Any:
    """The ratio, or `otherwise` where the denominator is 0 (no warning, no division by 0)."""
    xp = _namespace(numerator, denominator)
    empty = denominator == 0
    return xp.where(empty, otherwise, numerator / xp.where(empty, 1, denominator))


@struct.dataclass
class Mean:
    """A weighted mean: `total / weight`, NaN where nothing was counted."""

    total: Leaf
    weight: Leaf

    @staticmethod
    def of(values: Shaped[AnyArray, "..."] | float, mask: Shaped[AnyArray, "..."] | None = None) -> "Mean":
        """The mean over all of `values`, or over those where `mask` is nonzero.

        The mask has the shape of the values or of their first axes (a mask `[batch]` drops whole rows
        of values `[batch, time]`). Sums are taken in float32 at least; NumPy values in float64.
        """
        xp = _namespace(values, mask)
        array = xp.asarray(values)
        dtype = np.float64 if xp is np else jnp.promote_types(array.dtype, jnp.float32)
        kept = xp.broadcast_to(_align_mask(True if mask is None else mask, array.shape, xp), array.shape)
        return Mean(xp.where(kept, array, 0).sum(dtype=dtype), kept.sum(dtype=dtype))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Num[AnyArray, "..."]:
        return _divide(self.total, self.weight, np.nan)


@struct.dataclass
class Last:
    """The value seen last: a learning rate, a temperature. Of devices, the last one's."""

    value: Leaf

    def merge(self, other: "Last") -> "Last":
        return other

    def compute(self) -> Shaped[AnyArray, "..."]:
        return self.value


@struct.dataclass
class Confusion:
    """A confusion matrix: `counts[..., true, predicted]`.

    Computes `matrix`, `accuracy`, and `precision`, `recall`, `f1`, each as `_macro`, `_micro` and
    `_per_class`: scikit-learn's `precision_recall_fscore_support(labels=range(classes),
    zero_division=0)`. So a macro average takes in all the classes, also one that never occurred (as 0);
    with one label an example, the three `_micro` are the accuracy. Accuracy over nothing is NaN.
    """

    counts: Leaf

    def merge(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts)

    def compute(self) -> dict[str, Num[AnyArray, "..."]]:
        correct = self.counts.diagonal(0, -2, -1)
        actual, predicted = self.counts.sum(-1), self.counts.sum(-2)
        result = {"matrix": self.counts, "accuracy": _divide(correct.sum(-1), actual.sum(-1), np.nan)}
        ratios = {
            "precision": (correct, predicted),
            "recall": (correct, actual),
            "f1": (2 * correct, predicted + actual),  # = 2 tp / (2 tp + fp + fn)
        }
        for name, (numerator, denominator) in ratios.items():
            per_class = _divide(numerator, denominator, 0.0)
            result[f"{name}_per_class"] = per_class
            result[f"{name}_macro"] = per_class.mean(-1)
            result[f"{name}_micro"] = _divide(numerator.sum(-1), denominator.sum(-1), 0.0)
        return result


@struct.dataclass
class Regression:
    """Errors and explained variance; every leaf is `[..., outputs]`.

    Computes `mse`, `rmse`, `mae` and `r2`, each the uniform average over outputs of the per-output
    value, as scikit-learn's `uniform_average`. NaN over nothing, and `r2` also over one example.

    The variance of the target is merged by the pairwise formula of Chan, Golub & LeVeque (1983),
    never as a difference of two large sums. The target's mean is held as `shift + mean`, where
    `shift` is one of the targets, so that float32 holds it to full relative precision of the *spread*
    even where the offset is a million times larger.
    """

    count: Leaf
    shift: Leaf
    mean: Leaf
    squared_deviation: Leaf
    squared_error: Leaf
    absolute_error: Leaf

    def merge(self, other: "Regression") -> "Regression":
        xp = _namespace(self.count, other.count)
        some, both = self.count > 0, (self.count > 0) & (other.count > 0)
        # The difference of two targets near each other is exact, and so is what is added to it.
        delta = xp.where(both, (other.shift - self.shift) + (other.mean - self.mean), 0)
        share = _divide(other.count, self.count + other.count, 0.0)
        between = delta**2 * self.count * share
        return Regression(
            count=self.count + other.count,
            shift=xp.where(some, self.shift, other.shift),
            mean=xp.where(some, self.mean + delta * share, other.mean),
            squared_deviation=self.squared_deviation + other.squared_deviation + between,
            squared_error=self.squared_error + other.squared_error,
            absolute_error=self.absolute_error + other.absolute_error,
        )

    def compute(self) -> dict[str, Num[AnyArray, "..."]]:
        xp = _namespace(self.count)
        mse = _divide(self.squared_error, self.count, np.nan)
        # A constant target: 1 if predicted exactly, else 0 (scikit-learn's force_finite).
        exact = xp.where(self.squared_error == 0, 1.0, 0.0)
        ratio = _divide(self.squared_error, self.squared_deviation, 0.0)
        r2 = xp.where(self.squared_deviation == 0, exact, 1 - ratio)
        r2 = xp.where(self.count < 2, np.nan, r2)
        mae = _divide(self.absolute_error, self.count, np.nan)
        return {"mse": mse.mean(-1), "rmse": (mse**0.5).mean(-1), "mae": mae.mean(-1), "r2": r2.mean(-1)}


@struct.dataclass
class Calibration:
    """How far confidence is from accuracy, over equal-width bins of confidence; every leaf `[..., bins]`.

    Computes `ece` and `mce`, the expected and the maximum calibration error (Guo et al. 2017, eq. 3 and
    5). Bin m of M holds the confidences in ((m − 1)/M, m/M]. A reliability diagram plots
    `correct / count` against `confidence / count`.
    """

    count: Leaf
    confidence: Leaf
    correct: Leaf

    def merge(self, other: "Calibration") -> "Calibration":
        confidence, correct = self.confidence + other.confidence, self.correct + other.correct
        return Calibration(self.count + other.count, confidence, correct)

    def compute(self) -> dict[str, Num[AnyArray, "..."]]:
        gap, total = abs(self.correct - self.confidence), self.count.sum(-1)
        worst = _divide(gap, self.count, 0.0).max(-1)
        return {
            "ece": _divide(gap.sum(-1), total, np.nan),
            "mce": _namespace(gap).where(total == 0, np.nan, worst),
        }


def _metric[**P, M](measure: Callable[P, M]) -> Callable[..., Any]:
    """A metric by the one rule: a function of (outputs, batch), whose options, given alone by keyword, make another."""
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
    """The share of examples (or of time steps) whose largest logit is the target's; ties: the lower class."""
    target = class_labels(outputs, batch)
    return Mean.of(jnp.argmax(outputs, -1) == target, batch.get("mask"))


@_metric
def top_k(outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch, *, k: int = 5) -> Mean:
    """The share of examples whose target is among the `k` largest logits: `jdl.metrics.top_k(k=3)`.

    Of equal logits the lower class comes first, so `top_k(k=1)` is `accuracy`; scikit-learn's
    `top_k_accuracy_score` prefers the higher class.
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
    """The confusion matrix of the largest logit, [classes, classes].

    Args:
        outputs: the logits.
        batch: integer labels in "target".
        num_classes: what the outputs are held against, if given.
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
    """Errors of real predictions `[batch]` or `[batch, outputs]` against a target of the same shape."""
    target = _target(batch)
    if outputs.shape != target.shape or outputs.ndim not in (1, 2):
        raise ValueError(
            f"outputs are {list(outputs.shape)} and batch['target'] is {list(target.shape)}; regression "
            "wants both as [batch] or both as [batch, outputs] (squeeze or reshape them)"
        )
    # One output is a trailing axis of 1: leading axes are then always runs, steps or devices.
    rows = (len(target), -1)
    dtype = jnp.promote_types(jnp.promote_types(outputs.dtype, target.dtype), jnp.float32)
    outputs, target = jnp.asarray(outputs, dtype).reshape(rows), target.astype(dtype).reshape(rows)
    kept = jnp.broadcast_to(_mask(batch, target.shape[:1])[:, None], target.shape)
    count = kept.sum(0, dtype=dtype)
    error = jnp.where(kept, outputs - target, 0)
    shift = jnp.where(count > 0, target[jnp.argmax(kept[:, 0])], 0)  # the first that is not padding
    deviation = jnp.where(kept, target - shift, 0)
    mean = _divide(deviation.sum(0), count, 0.0)
    squared_deviation = jnp.where(kept, (deviation - mean) ** 2, 0).sum(0)
    return Regression(count, shift, mean, squared_deviation, (error**2).sum(0), abs(error).sum(0))


@_metric
def calibration(outputs: Real[Array | np.ndarray, "*batch classes"], batch: Batch, *, bins: int = 15) -> Calibration:
    """Calibration of the softmax of the logits, over `bins` equal widths of the largest probability."""
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    target = class_labels(outputs, batch)
    logits = jnp.asarray(outputs, jnp.promote_types(outputs.dtype, jnp.float32))
    kept = _mask(batch, target.shape)
    confidence = jnp.where(kept, jax.nn.softmax(logits).max(-1), 0)
    correct = jnp.where(kept, jnp.argmax(logits, -1) == target, 0)
    # The number of edges strictly below is the bin. A one-hot sum, not a scatter of floats, whose
    # order (and so whose last bits) a GPU does not promise.
    index = (confidence[..., None] > jnp.asarray(edges, confidence.dtype)).sum(-1)
    member = jax.nn.one_hot(index, bins, dtype=confidence.dtype) * kept[..., None]
    axes = tuple(range(target.ndim))
    sums = [(member * x[..., None]).sum(axes) for x in (confidence, correct)]
    return Calibration(member.sum(axes), *sums)


def _target(batch: Batch) -> Array:
    if "target" not in batch:
        raise KeyError(f"batch has {sorted(batch)} and no 'target', which this metric compares with")
    return jnp.asarray(batch["target"])


def _align_mask(mask: Any, shape: tuple[int, ...], xp: ModuleType = jnp) -> Any:
    """The mask as booleans, with trailing axes of 1 up to the rank of `shape`."""
    mask = xp.asarray(mask) != 0
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"mask is {list(mask.shape)}; for values {list(shape)} it must be their first axes")
    return mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))


def _mask(batch: Batch, shape: tuple[int, ...]) -> Array:
    """`batch["mask"]` as booleans of the given shape; all true where there is none."""
    mask = batch.get("mask")
    return jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(_align_mask(mask, shape), shape)
