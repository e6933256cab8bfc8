"""Metrics as pytrees of sums and counts, which merge exactly.

No ratio is taken before `compute`, so merging the metrics of uneven batches, of scanned steps or of devices gives the
same as one pass over all the data.

Both `merge` and `compute` act elementwise over leading axes: the metric of eight runs in one program is one metric with
leaves `[8, ...]`. Both take JAX arrays (inside a step) or NumPy arrays (on the host, in float64) and return the same
kind. Counts kept in float32 on a device are exact up to 2²⁴ examples; `fit` and `evaluate` merge on the host.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Num, Shaped

from jdl.runtime import processes

AnyArray = Array | np.ndarray | np.generic
"""A JAX array or tracer, a NumPy array, or the scalar that NumPy returns for a 0-d sum."""

Leaf = Any
"""A field of a metric: an array, or anything (a sharding, an axis number) while a tree is mapped."""

Batch = Mapping[str, Any]


@runtime_checkable
class Metric(Protocol):
    """A pytree of sums and counts. Both methods act elementwise over leading axes.

    A metric of your own is a `flax.struct.dataclass` with these two methods.
    """

    def merge(self, other: Any) -> Any:
        """Return the metric of this one's examples and the other's together."""
        ...

    def compute(self) -> Any:
        """Return the value, an array, or a dict of arrays by name."""
        ...


MetricFunction = Callable[[Array, Batch], Metric]


def is_metric(value: object) -> bool:
    """Whether `value` is a metric: an instance, not a class."""
    return isinstance(value, Metric) and not isinstance(value, type)


def to_host(tree: Any) -> Any:
    """Copy a pytree to the host as NumPy arrays, in types wide enough to merge exactly.

    Floating arrays become float64, complex ones complex128 and integers int64; booleans stay. Arrays that are divided
    among processes are gathered, so every process must call this.
    """

    def widen(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return leaf.astype(np.complex128)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):  # unlike NumPy's, jnp's issubdtype knows bfloat16
            return leaf.astype(np.float64)
        return leaf.astype(np.int64) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf

    return jax.tree.map(widen, jax.device_get(processes.gathered(tree)))


def merge_axis(metrics: Any, axis: int = 0) -> Any:
    """Merge metrics that are stacked along an axis, and remove the axis.

    Neighbors merge in pairs, so that n entries take about log₂ n vectorized merges and the rounding error grows as
    log n. The order is kept: `Last` stays the last. Works on NumPy arrays and inside a compiled function.

    Args:
        metrics: a pytree of metrics, such as a dict.
        axis: an axis that every leaf has, counted from the front. For metrics stacked as `[runs, steps]`, axis 1
            leaves one metric per run.

    Raises:
        ValueError: for a negative axis, a leaf without that axis, and an axis that is empty or whose length differs
            between the leaves of a metric.
        TypeError: for a value that is not a metric.
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

        tails = []  # the last entries of levels of odd length; a tail set aside later comes earlier in the order
        while length > 1:
            if length % 2:
                tails.append(take(metric, length - 1))
            even, odd = slice(0, length - 1, 2), slice(1, length, 2)
            metric = take(metric, even).merge(take(metric, odd))
            length //= 2
        return reduce(lambda left, right: left.merge(right), reversed(tails), take(metric, 0))

    return jax.tree_util.tree_map_with_path(merge_one, metrics, is_leaf=is_metric)


def _namespace(*arrays: Any) -> ModuleType:
    """Choose jax.numpy if any argument is a JAX array, else numpy, which keeps float64."""
    return jnp if any(isinstance(array, Array) for array in arrays) else np


def divide(numerator: Any, denominator: Any, otherwise: float) -> Any:
    """Return the ratio, or `otherwise` where the denominator is 0, without dividing by 0."""
    xp = _namespace(numerator, denominator)
    empty = denominator == 0
    return xp.where(empty, otherwise, numerator / xp.where(empty, 1, denominator))


@struct.dataclass
class Mean:
    """A weighted mean, total / weight.

    `compute` returns the mean `[...]`, NaN where the weight is 0.

    Attributes:
        total: `[...]`; the weighted sum of the values.
        weight: `[...]`; the sum of the weights, often the number of examples.
    """

    total: Leaf
    weight: Leaf

    @staticmethod
    def of(values: Shaped[AnyArray, "..."] | float, mask: Shaped[AnyArray, "..."] | None = None) -> "Mean":
        """Make the mean over all of `values`, or over those where `mask` is nonzero.

        Args:
            values: an array of any shape, summed in float32 or wider; NumPy arrays are summed in float64.
            mask: the shape of `values` or of its first axes; a mask `[batch]` drops whole rows of values
                `[batch, time]`. Masked values may be NaN.

        Raises:
            ValueError: for a mask of another shape.
        """
        xp = _namespace(values, mask)
        array = xp.asarray(values)
        dtype = np.float64 if xp is np else jnp.promote_types(array.dtype, jnp.float32)
        kept = xp.broadcast_to(align_mask(True if mask is None else mask, array.shape, xp), array.shape)
        return Mean(xp.where(kept, array, 0).sum(dtype=dtype), kept.sum(dtype=dtype))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Num[AnyArray, "..."]:
        return divide(self.total, self.weight, np.nan)


@struct.dataclass
class Last:
    """The last value, such as a learning rate; over several devices, the last device's.

    Attributes:
        value: `[...]`; what `compute` returns.
    """

    value: Leaf

    def merge(self, other: "Last") -> "Last":
        return other

    def compute(self) -> Shaped[AnyArray, "..."]:
        return self.value


@struct.dataclass
class Confusion:
    """A confusion matrix, and the accuracy, precision, recall and F1 score computed from it.

        precisionₖ = TPₖ / (TPₖ + FPₖ),    recallₖ = TPₖ / (TPₖ + FNₖ),    f1ₖ = 2 TPₖ / (2 TPₖ + FPₖ + FNₖ)

    `compute` returns a dict:

    - `matrix`, the counts `[..., classes, classes]`, and `accuracy` `[...]`, NaN without examples
    - `precision_per_class`, `recall_per_class` and `f1_per_class`, each `[..., classes]`, 0 where the ratio is 0 / 0
    - the same ending in `_macro`, `[...]`, the mean over all classes, including those that never occur
    - the same ending in `_micro`, `[...]`, from the sums of TP, FP and FN over classes; with one label per example, all
      three are the accuracy

    The values are those of scikit-learn's `precision_recall_fscore_support(labels=range(classes), zero_division=0)`.

    Attributes:
        counts: `[..., classes, classes]`; numbers of examples, indexed by true class, then predicted class.
    """

    counts: Leaf

    def merge(self, other: "Confusion") -> "Confusion":
        return Confusion(self.counts + other.counts)

    def compute(self) -> dict[str, Num[AnyArray, "..."]]:
        correct = self.counts.diagonal(0, -2, -1)
        actual, predicted = self.counts.sum(-1), self.counts.sum(-2)
        result = {"matrix": self.counts, "accuracy": divide(correct.sum(-1), actual.sum(-1), np.nan)}
        ratios = {
            "precision": (correct, predicted),
            "recall": (correct, actual),
            "f1": (2 * correct, predicted + actual),  # 2 TP / (2 TP + FP + FN)
        }
        for name, (numerator, denominator) in ratios.items():
            per_class = divide(numerator, denominator, 0.0)
            result[f"{name}_per_class"] = per_class
            result[f"{name}_macro"] = per_class.mean(-1)
            result[f"{name}_micro"] = divide(numerator.sum(-1), denominator.sum(-1), 0.0)
        return result


@struct.dataclass
class Regression:
    """Squared error, absolute error and explained variance of real predictions.

        mse = Σᵢ (ŷᵢ − yᵢ)² / n,    rmse = √mse,    mae = Σᵢ |ŷᵢ − yᵢ| / n,    r2 = 1 − Σᵢ (ŷᵢ − yᵢ)² / Σᵢ (yᵢ − ȳ)²

    `compute` returns a dict of these four, `[...]`, each averaged over the outputs (scikit-learn's `uniform_average`).
    All are NaN without examples, and r2 also with a single one. For a constant target, r2 is 1 if every prediction is
    exact, else 0.

    The variance of the target is merged by a pairwise formula instead of as a difference of two large sums. The mean of
    the target is stored as `shift + mean`, where `shift` is one of the targets. So float32 keeps full precision
    relative to the spread of the target, even if the offset is a million times larger.

    Attributes:
        count: `[..., outputs]`; the number of examples n.
        shift: `[..., outputs]`; one of the targets.
        mean: `[..., outputs]`; the mean of the target minus `shift`.
        squared_deviation: `[..., outputs]`; Σ (y − ȳ)².
        squared_error: `[..., outputs]`; Σ (ŷ − y)².
        absolute_error: `[..., outputs]`; Σ |ŷ − y|.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
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
        # The difference of two targets that are near each other is exact, and the means are small numbers.
        delta = xp.where(both, (other.shift - self.shift) + (other.mean - self.mean), 0)
        share = divide(other.count, self.count + other.count, 0.0)
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
        mse = divide(self.squared_error, self.count, np.nan)
        # For a constant target 1 if it is predicted exactly, else 0 (scikit-learn's force_finite).
        exact = xp.where(self.squared_error == 0, 1.0, 0.0)
        ratio = divide(self.squared_error, self.squared_deviation, 0.0)
        r2 = xp.where(self.squared_deviation == 0, exact, 1 - ratio)
        r2 = xp.where(self.count < 2, np.nan, r2)
        mae = divide(self.absolute_error, self.count, np.nan)
        return {"mse": mse.mean(-1), "rmse": (mse**0.5).mean(-1), "mae": mae.mean(-1), "r2": r2.mean(-1)}


@struct.dataclass
class Calibration:
    """The difference between confidence and accuracy, over bins of confidence of equal width.

        ece = Σₘ |Bₘ| / n · |acc(Bₘ) − conf(Bₘ)|,    mce = maxₘ |acc(Bₘ) − conf(Bₘ)|

    `compute` returns a dict of `ece`, the expected calibration error, and `mce`, the maximum calibration error, each
    `[...]` and NaN without examples. Bin Bₘ of M holds the confidences in ((m − 1) / M, m / M]. A reliability diagram
    plots `correct / count` against `confidence / count`.

    Attributes:
        count: `[..., bins]`; examples in each bin.
        confidence: `[..., bins]`; the sum of their confidences.
        correct: `[..., bins]`; how many of them are classified correctly.

    Source: Guo et al., "On calibration of modern neural networks", 2017, equations 3 and 5.
    """

    count: Leaf
    confidence: Leaf
    correct: Leaf

    def merge(self, other: "Calibration") -> "Calibration":
        confidence, correct = self.confidence + other.confidence, self.correct + other.correct
        return Calibration(self.count + other.count, confidence, correct)

    def compute(self) -> dict[str, Num[AnyArray, "..."]]:
        gap, total = abs(self.correct - self.confidence), self.count.sum(-1)
        worst = divide(gap, self.count, 0.0).max(-1)
        return {
            "ece": divide(gap.sum(-1), total, np.nan),
            "mce": _namespace(gap).where(total == 0, np.nan, worst),
        }


def align_mask(mask: Any, shape: tuple[int, ...], xp: ModuleType = jnp) -> Any:
    """Return the mask as booleans, with trailing axes of length 1 up to the rank of `shape`."""
    mask = xp.asarray(mask) != 0
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"mask is {list(mask.shape)}; for values {list(shape)} it must be their first axes")
    return mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
