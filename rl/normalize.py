"""Running mean and variance as a pure function: part of the agent's state, so saved with it and frozen with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


class Moments(NamedTuple):
    """Mean and variance of what was seen so far."""

    weight: Array
    mean: PyTree
    variance: PyTree


def initial(like: PyTree) -> Moments:
    """Of nothing yet, for values shaped as `like`: normalizing by it changes nothing."""
    floats = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), like)
    return Moments(jnp.zeros(()), floats, jax.tree.map(jnp.ones_like, floats))


def updated(moments: Moments, values: PyTree, weights: Array) -> Moments:
    """With more values, [*weights.shape, ...]; a weight of zero leaves one out (Chan et al. 1979, equation 2.1)."""
    added = weights.sum().astype(jnp.float32)
    count = moments.weight + added
    axes = tuple(range(weights.ndim))
    safe = jnp.maximum(added, 1)

    def one(mean: Array, variance: Array, leaf: Any) -> tuple[Array, Array]:
        leaf = jnp.asarray(leaf, jnp.float32)
        weight = weights.reshape(*weights.shape, *[1] * (leaf.ndim - weights.ndim)).astype(jnp.float32)
        batch_mean = (weight * leaf).sum(axes) / safe
        batch_variance = (weight * (leaf - batch_mean) ** 2).sum(axes) / safe
        change = batch_mean - mean
        share = added / jnp.maximum(count, 1)
        # The first values replace the variance of 1 that there was of nothing.
        spread = (1 - share) * variance + share * batch_variance + share * (1 - share) * change**2
        return mean + share * change, jnp.where(count > 0, spread, variance)

    pairs = jax.tree.map(one, moments.mean, moments.variance, values)
    mean, variance = (
        jax.tree.map(lambda _, pair, i=i: pair[i], moments.mean, pairs, is_leaf=lambda x: False) for i in (0, 1)
    )
    return Moments(count, mean, variance)


def normalized(moments: Moments, values: PyTree, limit: float = 10.0) -> PyTree:
    """Centred, divided by the standard deviation, cut off at a limit."""

    def one(mean: Array, variance: Array, leaf: Any) -> Array:
        return jnp.clip((leaf - mean) / jnp.sqrt(variance + 1e-8), -limit, limit)

    return jax.tree.map(one, moments.mean, moments.variance, values)
