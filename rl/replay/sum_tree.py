"""Sampling in proportion to priorities (Schaul et al. 2016, appendix B.2.1): a binary tree of sums in one array.

Node 1 is the root, the children of node i are 2i and 2i + 1, the leaves come last. Sums are always those of the two
children as they are now, so that rounding does not pile up.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def empty(leaves: int) -> Float[Array, " nodes"]:
    """A tree of zeros for as many priorities."""
    return jnp.zeros(2 * 2 ** math.ceil(math.log2(max(leaves, 2))))


def total(tree: Float[Array, " nodes"]) -> Float[Array, ""]:
    """The sum of all priorities."""
    return tree[1]


def priorities(tree: Float[Array, " nodes"], leaves: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The priorities of these leaves."""
    return tree[len(tree) // 2 + leaves]


def assign(
    tree: Float[Array, " nodes"], leaves: Int[Array, " batch"], values: Float[Array, " batch"]
) -> Float[Array, " nodes"]:
    """The tree with new priorities; a negative leaf is left out, one that is named twice has the same value twice."""
    half = len(tree) // 2
    nodes = jnp.where(leaves >= 0, half + leaves, len(tree))
    tree = tree.at[nodes].set(values, mode="drop")
    for _ in range(int(math.log2(half))):
        nodes = jnp.where(nodes < len(tree), nodes // 2, len(tree))
        sums = tree.at[2 * nodes].get(mode="fill", fill_value=0) + tree.at[2 * nodes + 1].get(mode="fill", fill_value=0)
        tree = tree.at[nodes].set(sums, mode="drop")
    return tree


def sample(tree: Float[Array, " nodes"], key: Array, count: int) -> Int[Array, " count"]:
    """Leaves drawn in proportion to their priorities, one from each of `count` equal parts of the sum.

    One of priority zero is never drawn, whatever the rounding; where all are zero the result means nothing.
    """
    at = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * total(tree)
    node = jnp.ones(count, jnp.int32)
    for _ in range(int(math.log2(len(tree) // 2))):
        left, right = tree[2 * node], tree[2 * node + 1]
        to_the_right = ((at >= left) & (right > 0)) | (left <= 0)
        at = jnp.where(to_the_right, at - left, at)
        node = 2 * node + to_the_right
    return node - len(tree) // 2
