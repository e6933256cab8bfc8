"""The format that every data source returns: train, validation and test parts, split, checked and normalized.

A part is a dict of arrays with a leading example axis, under the keys `"input"`, `"target"` and, where lengths
differ, `"mask"`. A value may itself be a dict of arrays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Data = dict[str, Any]
PARTS = ("train", "validation", "test")


def check(data: Mapping[str, Any], num_classes: int | None = None, name: str = "data") -> Mapping[str, Any]:
    """Return `data` unchanged if it can be trained on, and raise ValueError otherwise.

    Every array must be numeric or boolean, have the same nonzero number of examples along axis 0, and contain no NaN
    or infinity.

    Args:
        data: a dict of arrays, or of dicts of arrays, with a leading example axis.
        num_classes: if given, `data["target"]` must hold integers in `[0, num_classes)` wherever the mask (if there
            is one) is true, or rows of `num_classes` probabilities.
        name: the name of the data in error messages.

    Raises:
        ValueError: for data that fails a check; the message names the key, the value and the remedy.
    """
    if not isinstance(data, Mapping):
        raise ValueError(
            f'{name} is a {type(data).__name__}, not a dict of arrays: pass {{"input": inputs, "target": targets}}.'
        )
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(data), is_leaf=lambda leaf: isinstance(leaf, list))
    arrays = {name + jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if not arrays:
        raise ValueError(f'{name} holds no array: give it at least the key "input".')
    for key, array in arrays.items():
        _check_array(key, array)
    sizes = {key: array.shape[0] for key, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{key} has {size}" for key, size in sizes.items())
        raise ValueError(f"every array of {name} needs the same number of examples along axis 0, but {listed}.")
    if 0 in sizes.values():
        raise ValueError(f"{name} has no examples: axis 0 of {', '.join(sizes)} has length 0.")
    if num_classes is not None and "target" in data:
        _check_labels(f"{name}['target']", data["target"], data.get("mask"), num_classes)
    return data


def _check_array(key: str, array: Any) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{key} is a {type(array).__name__}, not an array: convert it with numpy.asarray.")
    # jax's issubdtype, unlike NumPy's, knows that bfloat16 is a number.
    if not (jnp.issubdtype(array.dtype, np.number) or jnp.issubdtype(array.dtype, np.bool_)):
        raise ValueError(
            f"{key} has dtype {array.dtype}, which no device can hold: pad examples of unequal length to one "
            f'length and give a "mask", and encode strings or categories as integers.'
        )
    if array.ndim == 0:
        raise ValueError(f"{key} is a scalar: every array needs a leading example axis.")
    if jnp.issubdtype(array.dtype, np.inexact):
        finite = np.isfinite(np.asarray(array))
        if not finite.all():
            count = finite.size - np.count_nonzero(finite)
            first = _first_index(~finite)
            raise ValueError(
                f"{key} has {count} value(s) that are NaN or infinite, the first "
                f"({np.asarray(array)[first]}) at index {first}: remove or impute them before training."
            )


def _check_labels(key: str, target: Any, mask: Any, num_classes: int) -> None:
    if jnp.issubdtype(target.dtype, np.inexact):
        if target.ndim > 1 and target.shape[-1] == num_classes:
            return  # one-hot or soft labels
        raise ValueError(
            f"{key} has dtype {target.dtype} and shape {target.shape}, but there are {num_classes} classes: "
            f"give integer labels (astype(numpy.int32)) or rows of {num_classes} probabilities."
        )
    labels = np.asarray(target)
    wrong = (labels < 0) | (labels >= num_classes)
    # Padding may carry any label; -1 and -100 are common.
    if mask is not None and mask.shape == labels.shape[: mask.ndim]:
        wrong &= np.asarray(mask, bool).reshape(mask.shape + (1,) * (labels.ndim - mask.ndim))
    if wrong.any():
        first = _first_index(wrong)
        raise ValueError(
            f"{key} has {np.count_nonzero(wrong)} label(s) outside [0, {num_classes}), the first "
            f"({labels[first]}) at index {first}: number the classes from 0, or correct num_classes."
        )


def _first_index(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Normalizer:
    """Shift and scale inputs by a mean and a standard deviation, both float32.

    It is a pytree, so it can be saved. `normalizer(inputs)` and `normalizer.invert(normalized)` take NumPy or JAX
    arrays, or pytrees of the structure that it was fitted on. Floating dtypes are kept; integers become float32.

    Examples:
        >>> import numpy as np
        >>> normalizer = Normalizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> normalizer(np.array([[1.0, 6.0]]))
        array([[-1.,  1.]])
    """

    mean: Any
    std: Any

    @classmethod
    def fit(cls, inputs: Any, axes: str | Sequence[int] = "per feature") -> "Normalizer":
        """Measure the mean and the population standard deviation of `inputs`.

        A feature that never varies gets standard deviation 1.

        Args:
            inputs: an array, or a pytree of arrays, with a leading example axis; pass the training part only.
            axes: what to average over: `"per feature"` (axis 0), `"per channel"` (all axes except the last), or axis
                numbers, which must include 0.

        Raises:
            ValueError: for unknown `axes`, axes without 0, or inputs without examples.
        """
        moments = jax.tree.map(lambda array: _moments(np.asarray(array), axes), inputs)
        mean, std = (jax.tree.map(lambda _, pair, i=i: pair[i], inputs, moments) for i in range(2))
        return cls(mean, std)

    def __call__(self, inputs: Any) -> Any:
        return self._map(lambda x, mean, std: (x - mean) / std, inputs)

    def invert(self, normalized: Any) -> Any:
        """Undo the normalization: `normalized * std + mean`.

        Args:
            normalized: one example or a batch of them, as this normalizer returned it.
        """
        return self._map(lambda x, mean, std: x * std + mean, normalized)

    def _map(self, function: Callable[[Any, Any, Any], Any], inputs: Any) -> Any:
        def apply(mean: Any, std: Any, x: Any) -> Any:
            if not _fits(mean.shape, x.shape):
                raise ValueError(
                    f"the normalizer was fitted on examples of shape {mean.shape} (1 stands for any length) "
                    f"and cannot take an array of shape {x.shape}: fit it on inputs of that shape."
                )
            dtype = x.dtype if jnp.issubdtype(x.dtype, np.floating) else np.float32
            return function(x, mean, std).astype(dtype)

        return jax.tree.map(apply, self.mean, self.std, inputs)


def _fits(fitted: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of `shape` (a batch or one example) broadcasts with `fitted` and keeps its shape."""
    last = shape[len(shape) - len(fitted) :] if len(shape) >= len(fitted) else ()
    return len(last) == len(fitted) and all(a in (1, b) for a, b in zip(fitted, last, strict=True))


def _moments(array: np.ndarray, axes: str | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    named = {"per feature": (0,), "per channel": tuple(range(max(array.ndim - 1, 1)))}
    if isinstance(axes, str) and axes not in named:
        raise ValueError(f"axes is {axes!r}: it must be one of {list(named)} or a sequence of axis numbers.")
    chosen = named[axes] if isinstance(axes, str) else tuple(axes)
    if 0 not in chosen:
        raise ValueError(f"axes is {chosen}: it must contain 0, the example axis.")
    if array.shape[0] == 0:
        raise ValueError("inputs has no examples: a normalizer needs at least one.")
    count = math.prod(array.shape[axis] for axis in chosen)

    def total(function: Any) -> np.ndarray:
        # In float64, a thousand examples at a time: a whole image data set may not fit in memory.
        starts = range(0, array.shape[0], 1000)
        pieces = (function(array[i : i + 1000].astype(np.float64)).sum(chosen, keepdims=True) for i in starts)
        return sum(pieces, start=np.zeros(()))

    mean = total(lambda x: x) / count
    std = np.sqrt(total(lambda x: np.square(x - mean)) / count)
    # Compare exactly: rounding in the mean gives a constant feature a deviation of about 1e-17 instead of 0.
    constant = array.max(chosen, keepdims=True) == array.min(chosen, keepdims=True)
    std = np.where(constant, 1.0, std)
    return np.asarray(mean[0], np.float32), np.asarray(std[0], np.float32)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The train, validation and test parts of one data set, checked when it is created.

    Attributes:
        train: a dict of arrays with a leading example axis.
        validation: the same, or None if there is no validation part.
        test: the same.
        num_classes: None for regression.
        class_names: one name per class, or None.
        name: the name of the data set in error messages.
        normalizer: the one already applied to every part's input, or None if none was applied.
        target_normalizer: the one applied to the targets of a regression, or None.
    """

    train: Data
    validation: Data | None
    test: Data
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    name: str = "data"
    normalizer: Normalizer | None = None
    target_normalizer: Normalizer | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            if (data := getattr(self, part)) is not None:
                check(data, self.num_classes, f"{self.name}.{part}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name} has {len(self.class_names)} class_names but num_classes is {self.num_classes}: "
                f"give one name a class."
            )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{_num_examples(data)} {part}" for part in PARTS if (data := getattr(self, part)))
        kind = "regression" if self.num_classes is None else f"{self.num_classes} classes"
        return f"Dataset({self.name}: {sizes}, {kind})"


def split(
    data: Mapping[str, Any],
    fractions: Sequence[float] = (0.8, 0.0, 0.2),
    *,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    stratify: bool = True,
) -> tuple[Data, Data | None, Data]:
    """Split examples at random into (train, validation, test), stratified by class where there are classes.

    With no validation part, the result is that of scikit-learn's
    `train_test_split(..., stratify=target, random_state=seed)`.

    Args:
        data: a dict of arrays with a leading example axis.
        fractions: the fractions for train, validation and test, which sum to 1; validation and test sizes are rounded
            up, as in scikit-learn.
        sizes: numbers of examples to use instead of `fractions`; they may leave some examples out.
        seed: determines the random split.
        stratify: whether to keep the class proportions in every part; only integer targets of shape `[examples]` are
            stratified.

    Returns:
        The train, validation and test parts; the validation part is None if its fraction or size is 0.

    Raises:
        ValueError: for a part that would be empty, or a class with too few members.
    """
    check(data)
    num_examples = _num_examples(data)
    counts = _counts(num_examples, fractions, sizes)
    target = data.get("target")
    # Sequence labels and regression targets have no class proportions to keep.
    has_classes = target is not None and getattr(target, "ndim", 0) == 1 and target.dtype.kind in "biu"
    labels = np.asarray(target) if stratify and has_classes else None
    everything = np.arange(num_examples)
    rest, test = _divide(everything, labels, counts[0] + counts[1], counts[2], seed, "test")
    if counts[1] == 0:
        return take(data, rest), None, take(data, test)
    train, validation = _divide(rest, labels, counts[0], counts[1], seed, "validation")
    return take(data, train), take(data, validation), take(data, test)


def take(data: Mapping[str, Any], index: np.ndarray) -> Data:
    """Select the examples at the integer positions `index` from every array of `data`, as NumPy arrays."""
    return jax.tree.map(lambda array: np.asarray(array)[index], dict(data))


def _num_examples(data: Mapping[str, Any]) -> int:
    return jax.tree.leaves(dict(data))[0].shape[0]


def _counts(num_examples: int, fractions: Sequence[float], sizes: Sequence[int] | None) -> tuple[int, int, int]:
    asked = fractions if sizes is None else sizes
    what = "fractions" if sizes is None else "sizes"
    if len(asked) != 3 or min(asked) < 0:
        raise ValueError(
            f"{what} is {tuple(asked)}: give three numbers, none negative, for train, validation and test."
        )
    if sizes is None:
        if abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions is {tuple(fractions)}, which sums to {sum(fractions):g}, not to 1.")
        # Round first, so that a product such as 30.000000000000004 is not rounded up to 31.
        validation, test = (math.ceil(round(fraction * num_examples, 6)) for fraction in fractions[1:])
        counts = (num_examples - validation - test, validation, test)
    else:
        if sum(sizes) > num_examples:
            raise ValueError(f"sizes is {tuple(sizes)}, which sums to {sum(sizes)}, but data has {num_examples}.")
        counts = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    for part, count, wanted in zip(PARTS, counts, asked, strict=True):
        if count <= 0 and (part != "validation" or wanted > 0):
            raise ValueError(
                f"the {part} part would be empty: {num_examples} examples at {what} {tuple(asked)} leave it "
                f"{max(count, 0)} (its own is {wanted}); raise it, or give more examples."
            )
    return counts


def _divide(
    index: np.ndarray, labels: np.ndarray | None, kept: int, drawn: int, seed: int, part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divide `index` into `kept` and `drawn` examples; the drawn ones become the part named `part`."""
    # Imported here: importing scikit-learn takes a second, and most of this file does not need it.
    from sklearn.model_selection import train_test_split

    if labels is not None:
        classes, members = np.unique(labels[index], return_counts=True)
        rarest = int(np.argmin(members))
        if members[rarest] < 2:
            raise ValueError(
                f"class {classes[rarest]} has {members[rarest]} example left to divide between {part} and "
                f"the rest, and needs 2: give more, drop the class, or split with stratify=False."
            )
        if min(kept, drawn) < len(classes):
            raise ValueError(
                f"{min(kept, drawn)} examples for {part} or for what is left cannot hold each of "
                f"{len(classes)} classes: enlarge the part, or split with stratify=False."
            )
    chosen = None if labels is None else labels[index]
    left, right = train_test_split(index, train_size=kept, test_size=drawn, stratify=chosen, random_state=seed)
    return np.asarray(left), np.asarray(right)
