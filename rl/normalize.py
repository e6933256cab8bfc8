"""Running mean and variance as a pure function: part of the agent's state, so saved with it and frozen with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


class Moments(NamedTuple):
    """Mean and variance of the values seen so far; `()` in place of a leaf that is left as it is."""

    weight: Array
    mean: PyTree
    variance: PyTree


def initial(like: PyTree, tracked: PyTree | None = None) -> Moments:
    """Moments of no values yet; normalizing by them changes nothing.

    Args:
        like: an example of the values.
        tracked: a tree of booleans like the example's, True for the leaves to normalize (`rl.spaces.real_valued`);
            by default all of them.
    """
    leaves, structure = jax.tree.flatten(like)
    chosen = [True] * len(leaves) if tracked is None else structure.flatten_up_to(tracked)
    shapes = [jnp.shape(leaf) if keep else None for leaf, keep in zip(leaves, chosen, strict=True)]
    mean = structure.unflatten([() if shape is None else jnp.zeros(shape) for shape in shapes])
    return Moments(jnp.zeros(()), mean, jax.tree.map(jnp.ones_like, mean))


def updated(moments: Moments, values: PyTree, weights: Array) -> Moments:
    """Moments with more values added (Chan et al. 1979, equation 2.1).

    Args:
        moments: those so far.
        values: leaves of shape [*weights.shape, ...].
        weights: how much each value counts; zero leaves it out.
    """
    added = weights.sum().astype(jnp.float32)
    count = moments.weight + added
    axes = tuple(range(weights.ndim))
    safe = jnp.maximum(added, 1)

    def one(mean: Any, variance: Any, leaf: Any) -> tuple[Any, Any]:
        if _left_alone(mean):
            return (), ()
        leaf = jnp.asarray(leaf, jnp.float32)
        weight = weights.reshape(*weights.shape, *[1] * (leaf.ndim - weights.ndim)).astype(jnp.float32)
        batch_mean = (weight * leaf).sum(axes) / safe
        batch_variance = (weight * (leaf - batch_mean) ** 2).sum(axes) / safe
        change = batch_mean - mean
        share = added / jnp.maximum(count, 1)
        # The first values replace the initial variance of 1.
        spread = (1 - share) * variance + share * batch_variance + share * (1 - share) * change**2
        return mean + share * change, jnp.where(count > 0, spread, variance)

    structure, triples = _aligned(moments, values)
    pairs = [one(*triple) for triple in triples]
    mean, variance = (structure.unflatten([pair[i] for pair in pairs]) for i in (0, 1))
    return Moments(count, mean, variance)


def normalized(moments: Moments, values: PyTree, limit: float = 10.0) -> PyTree:
    """Values centered, divided by the standard deviation, and clipped to [-limit, limit].

    Args:
        moments: the running moments; the parts that they leave alone stay as they are.
        values: leaves [..., *shape of one value].
        limit: in standard deviations.
    """

    def one(mean: Any, variance: Any, leaf: Any) -> Any:
        if _left_alone(mean):
            return leaf
        return jnp.clip((leaf - mean) / jnp.sqrt(variance + 1e-8), -limit, limit)

    structure, triples = _aligned(moments, values)
    return structure.unflatten([one(*triple) for triple in triples])


def _aligned(moments: Moments, values: PyTree) -> tuple[Any, list[tuple[Any, Any, Any]]]:
    """The structure of the values, and mean, variance and value of each leaf."""
    leaves, structure = jax.tree.flatten(values)
    means, variances = structure.flatten_up_to(moments.mean), structure.flatten_up_to(moments.variance)
    return structure, list(zip(means, variances, leaves, strict=True))


def _left_alone(mean: Any) -> bool:
    return isinstance(mean, tuple)
