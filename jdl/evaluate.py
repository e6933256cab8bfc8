"""Evaluation of a learner on a data set: each example once, in batches of one shape."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jdl.learner import Learner, Metrics, State
from jdl.metrics import is_metric, merge_axis, to_host
from jdl.placement import beside


def evaluate(learner: Learner, state: State, data: Mapping[str, Any], batch_size: int = 1024) -> dict[str, np.ndarray]:
    """The metrics of `learner.evaluate` over a data set, by name, with a leading axis of runs where there are several.

    Data of more than one batch is padded to whole batches with zeros in `"mask"`, so one program serves them all. A
    metric of several values gives a name for each ("confusion/f1_macro").
    """
    return compute(merged(learner, state, padded_batches(data, batch_size)))


def padded_batches(data: Mapping[str, Any], batch_size: int) -> list[dict[str, Any]]:
    """Batches of one size that cover each example once; where there are several, a mask marks the padding."""
    if batch_size < 1:
        raise ValueError(f"evaluation batch_size={batch_size}: a batch has at least 1 example")
    arrays = jax.tree.map(np.asarray, dict(data))
    size = len(jax.tree.leaves(arrays)[0])
    if size <= batch_size:
        return [arrays]
    arrays = {"mask": np.ones(size, np.float32), **arrays}
    padding = -size % batch_size
    padded = jax.tree.map(lambda leaf: np.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1)), arrays)
    return [
        jax.tree.map(lambda leaf, start=start: leaf[start : start + batch_size], padded)
        for start in range(0, size, batch_size)
    ]


def merged(learner: Learner, state: State, batches: list[PyTree]) -> Metrics:
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
