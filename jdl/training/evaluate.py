"""Evaluation of a learner on a data set: each example once, in batches of one shape."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jdl.core.accumulators import is_metric, merge_axis, to_host
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.core.runs_axis import beside
from jdl.data.padded import padded_batches


@runtime_checkable
class Epochs(Protocol):
    """Data that is read one batch after another, such as a `jdl.pipeline`.

    Attributes:
        example: a batch of one example.
        batch_size: examples per batch.
    """

    example: Batch
    batch_size: int

    def epoch(self) -> Iterator[Batch]:
        """Iterate over the batches of one pass over the data, with a mask for padding.

        Raises:
            ValueError: for data that has no passes of each example once, such as shuffled data.
        """
        ...


class Passes(NamedTuple):
    """A data set prepared for repeated evaluation by `fit`.

    Attributes:
        batches: `() -> batches` of one pass.
        shapes: a batch of `jax.ShapeDtypeStruct` or of arrays, for their shapes.
        known: the data whose values can be checked beforehand: all of it, or one example.
    """

    batches: Callable[[], Iterable[Batch]]
    shapes: Batch
    known: Batch


def passes(learner: Learner, state: State, data: Mapping[str, Any] | Epochs, batch_size: int) -> Passes:
    """Prepare repeated evaluation; arrays are put on the devices of the state once.

    Args:
        learner: the learner to evaluate.
        state: a state of it.
        data: a dict of arrays, or data that is read in batches.
        batch_size: examples per batch, for a dict of arrays.

    Raises:
        ValueError: for shuffled data and a batch size that does not fit.
    """
    if isinstance(data, Epochs):
        data.epoch()  # raises if the data has no passes
        as_batch = lambda leaf: jax.ShapeDtypeStruct((data.batch_size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        return Passes(data.epoch, jax.tree.map(as_batch, data.example), data.example)
    batches = [beside(state, batch) for batch in padded_batches(data, batch_size, learner.traits.example_axis)]
    return Passes(lambda: batches, batches[0], data)


def evaluate(learner: Learner, state: State, data: Any, batch_size: int = 1024) -> dict[str, np.ndarray]:
    """Evaluate a learner on a data set.

    Each example counts once. Arrays for more than one batch are padded to whole batches, with 0 in `"mask"` for
    padding, so that one compiled program serves all batches.

    Args:
        learner: the learner, compiled by `jdl.jit` to be fast.
        state: a state of it.
        data: a dict of arrays with a leading example axis, or a pipeline that does not shuffle (its own batches are
            used).
        batch_size: examples per batch, for a dict of arrays.

    Returns:
        The values of the metrics by name, such as "loss", with a leading axis of runs if the learner holds several. A
        metric of several values gives one name for each, such as "confusion/f1_macro".

    Raises:
        ValueError: for empty data, data of another type, and a pipeline that shuffles or leaves examples out.
    """
    if not isinstance(data, Mapping | Epochs) or not data:
        raise ValueError(
            f"data is {'empty' if isinstance(data, Mapping) else f'a {type(data).__name__}'}: evaluate takes a dict of "
            "arrays, or a jdl.pipeline that doesn't shuffle"
        )
    batches = (
        data.epoch() if isinstance(data, Epochs) else padded_batches(data, batch_size, learner.traits.example_axis)
    )
    return compute(merged(learner, state, batches))


def merged(learner: Learner, state: State, batches: Iterable[Batch]) -> Metrics:
    """Evaluate batches and merge their metrics, on the host in float64.

    Args:
        learner: the learner to evaluate.
        state: a state of it.
        batches: batches of one pass, at least one.
    """
    parts = [learner.evaluate(state, beside(state, batch)) for batch in batches]
    return merge_axis(jax.tree.map(lambda *leaves: np.stack(leaves), *map(to_host, parts)), 0)


def compute(metrics: Metrics) -> dict[str, np.ndarray]:
    """Compute the values of a tree of metrics.

    Args:
        metrics: a pytree of metrics; an array in it counts as its own value.

    Returns:
        Arrays by name. Names are the paths in the tree, followed by the key if a metric computes a dict:
        "confusion/f1_macro".
    """
    values: dict[str, np.ndarray] = {}
    for path, metric in jax.tree_util.tree_flatten_with_path(metrics, is_leaf=is_metric)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        computed = metric.compute() if is_metric(metric) else metric
        for part, value in computed.items() if isinstance(computed, Mapping) else [("", computed)]:
            values["/".join(filter(None, (name, part)))] = np.asarray(value)
    return values
