"""Which trained variables a model starts from: those of a body without its old head, put where the new model has it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from jdl.core.paths import check_patterns, matching
from jdl.data.padded import padded_batches
from jdl.nn.layers.mode import mode_argument


def cut(variables: Mapping[str, PyTree], *patterns: str) -> dict[str, PyTree]:
    """Variables without those that match, such as an old head; paths begin with the collection, "params/head/kernel".

    Raises ValueError for a pattern that matches nothing.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    check_patterns(patterns, flat)
    kept = {path: leaf for path, leaf in flat.items() if not matching(patterns, path)}
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def graft(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """Variables of a body as those of the part of a larger model that stands at this path, in every collection.

    >>> graft({"params": {"tokens": 1}, "batch_stats": {"mean": 2}}, "encoder")
    {'params': {'encoder': {'tokens': 1}}, 'batch_stats': {'encoder': {'mean': 2}}}
    """
    for name in reversed(path.split("/")):
        variables = {collection: {name: tree} for collection, tree in variables.items()}
    return dict(variables)


def take(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """The variables of the part of a model that stands at this path: the inverse of `graft`.

    Raises ValueError where nothing stands there.
    """
    taken = {}
    for collection, tree in variables.items():
        for name in path.split("/"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        if tree is not None:
            taken[collection] = tree
    if not taken:
        flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
        raise ValueError(f"nothing stands at {path!r}; there are {', '.join(flat)}")
    return taken


def features(model: nn.Module, variables: Mapping[str, PyTree], data: Any, batch_size: int = 256) -> Any:
    """A model's outputs for every example as NumPy arrays, evaluated in batches by one program: for linear probes.

    data: the model's inputs with a leading axis of examples, or a data set whose "input" they are.
    """
    inputs = data["input"] if isinstance(data, Mapping) and "input" in data else data
    mode = mode_argument(model)
    apply = jax.jit(lambda variables, inputs: model.apply(variables, inputs, **mode(False)))
    size = len(jax.tree.leaves(inputs)[0])
    batches = padded_batches({"input": inputs}, batch_size)
    outputs = [jax.tree.map(np.asarray, apply(variables, batch["input"])) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *outputs)
