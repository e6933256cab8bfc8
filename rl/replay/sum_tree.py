"""Sampling in proportion to priorities (Schaul et al. 2016, appendix B.2.1): a binary tree of sums in one array.

Node 1 is the root, the children of node i are 2i and 2i + 1, and the leaves come last. Every changed sum is computed
anew from its two children, so rounding errors do not accumulate.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def empty(leaves: int) -> Float[Array, " nodes"]:
    """A tree of zeros with room for this many priorities."""
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
    """The tree with new priorities.

    Args:
        tree: the tree.
        leaves: indices of leaves; negative ones are ignored, and repeated ones must have equal values.
        values: their new priorities.
    """
    half = len(tree) // 2
    nodes = jnp.where(leaves >= 0, half + leaves, len(tree))
    tree = tree.at[nodes].set(values, mode="drop")
    for _ in range(int(math.log2(half))):
        nodes = jnp.where(nodes < len(tree), nodes // 2, len(tree))
        sums = tree.at[2 * nodes].get(mode="fill", fill_value=0) + tree.at[2 * nodes + 1].get(mode="fill", fill_value=0)
        tree = tree.at[nodes].set(sums, mode="drop")
    return tree


def sample(tree: Float[Array, " nodes"], key: Array, count: int) -> Int[Array, " count"]:
    """Draw leaves in proportion to their priorities, one from each of `count` equal parts of the sum.

    A leaf with priority zero is never drawn, despite rounding. If all priorities are zero the result is meaningless.
    """
    at = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * total(tree)
    node = jnp.ones(count, jnp.int32)
    for _ in range(int(math.log2(len(tree) // 2))):
        left, right = tree[2 * node], tree[2 * node + 1]
        to_the_right = ((at >= left) & (right > 0)) | (left <= 0)
        at = jnp.where(to_the_right, at - left, at)
        node = 2 * node + to_the_right
    return node - len(tree) // 2
