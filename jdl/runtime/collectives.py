"""Collectives over pytrees. Small arrays share one call, since every call costs time however little data it moves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

_SMALL = 2**14  # elements; arrays with fewer share one call


def summed(tree: PyTree, axis_name: str) -> PyTree:
    """Sum each array over the replicas."""
    return _small_ones_together(lambda leaf: jax.lax.psum(leaf, axis_name), tree)


def stacked(tree: PyTree, axis_name: str) -> PyTree:
    """Gather each array from all replicas, stacked along a new first axis."""
    return _small_ones_together(lambda leaf: jax.lax.all_gather(leaf, axis_name), tree)


def joined(tree: PyTree, axis_name: str, axis: int) -> PyTree:
    """Gather each array from all replicas, concatenated along `axis`."""

    def join(leaf: Array) -> Array:
        parts = jnp.moveaxis(leaf, 0, axis)
        return parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])

    return jax.tree.map(join, stacked(tree, axis_name))


def _small_ones_together(collective: Callable[[Array], Array], tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    done = {i: collective(leaf) for i, leaf in enumerate(leaves) if leaf.size >= _SMALL}
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        small = [i for i, leaf in enumerate(leaves) if i not in done and leaf.dtype == dtype]
        if not small:
            continue
        result = collective(jnp.concatenate([leaves[i].ravel() for i in small]))
        ends = np.cumsum([leaves[i].size for i in small])
        for i, part in zip(small, jnp.split(result, ends[:-1], axis=-1), strict=True):
            done[i] = part.reshape(*result.shape[:-1], *leaves[i].shape)
    return jax.tree.unflatten(structure, [done[i] for i in range(len(leaves))])
