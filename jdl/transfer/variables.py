"""Trained variables to start a model from: cut off an old head, and put the body where the new model has it."""

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
    """Remove the variables that match, such as an old head.

    Args:
        variables: variables of a model, by collection
        *patterns: regular expressions, searched for in paths that begin with the collection, such as
            "params/head/kernel"

    Raises:
        ValueError: for a pattern that matches nothing
    """
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    check_patterns(patterns, flat)
    kept = {path: leaf for path, leaf in flat.items() if not matching(patterns, path)}
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def graft(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """Move a body's variables to where it stands within a larger model, in every collection.

    Args:
        variables: variables of the body, by collection
        path: path of the body in the larger model, such as "encoder/encoder"

    Examples:
        >>> graft({"params": {"tokens": 1}, "batch_stats": {"mean": 2}}, "encoder")
        {'params': {'encoder': {'tokens': 1}}, 'batch_stats': {'encoder': {'mean': 2}}}
    """
    for name in reversed(path.split("/")):
        variables = {collection: {name: tree} for collection, tree in variables.items()}
    return dict(variables)


def take(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """Extract the variables of a part of a model: the inverse of `graft`.

    Args:
        variables: variables of the whole model, by collection
        path: path of the part, such as "encoder/encoder"

    Raises:
        ValueError: for a path at which there is nothing
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
    """Compute a model's outputs for every example as NumPy arrays, for linear probes.

    One compiled program evaluates all batches.

    Args:
        model: the model, called as in evaluation
        variables: its variables, by collection
        data: the model's inputs with a leading axis of examples, or a data set that has them as "input"
        batch_size: number of examples in a batch
    """
    inputs = data["input"] if isinstance(data, Mapping) and "input" in data else data
    mode = mode_argument(model)
    apply = jax.jit(lambda variables, inputs: model.apply(variables, inputs, **mode(False)))
    size = len(jax.tree.leaves(inputs)[0])
    batches = padded_batches({"input": inputs}, batch_size)
    outputs = [jax.tree.map(np.asarray, apply(variables, batch["input"])) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *outputs)
