"""Evaluation of a learner on a data set: each example once, in batches of one shape."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.core.metrics import is_metric, merge_axis, to_host
from jdl.core.runs_axis import beside
from jdl.data.padded import padded_batches


@runtime_checkable
class Epochs(Protocol):
    """Data that is read a batch after the other, such as a `jdl.pipeline`; `example` is a batch of one."""

    example: Batch
    batch_size: int

    def epoch(self) -> Iterator[Batch]: ...


class Passes(NamedTuple):
    """Passes over a data set: the batches of one, when called for; the shapes of a batch; what can be judged before."""

    batches: Callable[[], Iterable[Batch]]
    shapes: Batch
    known: Batch  # all the data, or an example


def passes(learner: Learner, state: State, data: Mapping[str, Any] | Epochs, batch_size: int) -> Passes:
    """Over arrays, put on the device once, or over data that is read."""
    if isinstance(data, Epochs):
        data.epoch()  # raises where it cannot be
        of_batch = lambda leaf: jax.ShapeDtypeStruct((data.batch_size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        return Passes(data.epoch, jax.tree.map(of_batch, data.example), data.example)
    batches = [beside(state, batch) for batch in padded_batches(data, batch_size, learner.traits.example_axis)]
    return Passes(lambda: batches, batches[0], data)


def evaluate(learner: Learner, state: State, data: Any, batch_size: int = 1024) -> dict[str, np.ndarray]:
    """The metrics of `learner.evaluate` over a data set, by name, with a leading axis of runs where there are several.

    data: a dict of arrays, or a pipeline that doesn't shuffle, whose own batches are taken.
    Data of more than one batch is padded to whole batches with zeros in `"mask"`, so one program serves them all. A
    metric of several values gives a name for each ("confusion/f1_macro").
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
    """The metrics over several batches, on the host in float64."""
    parts = [learner.evaluate(state, beside(state, batch)) for batch in batches]
    return merge_axis(jax.tree.map(lambda *leaves: np.stack(leaves), *map(to_host, parts)), 0)


def compute(metrics: Metrics) -> dict[str, np.ndarray]:
    """The values of a tree of metrics, by name."""
    values: dict[str, np.ndarray] = {}
    for path, metric in jax.tree_util.tree_flatten_with_path(metrics, is_leaf=is_metric)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        computed = metric.compute() if is_metric(metric) else metric
        for part, value in computed.items() if isinstance(computed, Mapping) else [("", computed)]:
            values["/".join(filter(None, (name, part)))] = np.asarray(value)
    return values
