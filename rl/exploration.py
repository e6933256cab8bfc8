"""Exploration: schedules, and the action probabilities of an ε-greedy policy."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

type Schedule = Callable[[Any], Any]  # from a count to a number, like Optax's schedules


def at(schedule: float | Array | Schedule, count: Any) -> Any:
    """The value of a schedule at a count; a number stands for a constant schedule."""
    return schedule(count) if callable(schedule) else schedule


def epsilon_greedy(
    values: Float[Array, "env actions"], allowed: Bool[Array, "env actions"], epsilon: Any
) -> Float[Array, "env actions"]:
    """The probability of each action under an ε-greedy policy.

    Epsilon is shared equally by all allowed actions, and the rest equally by the allowed actions of highest value.

    Args:
        values: action values.
        allowed: True for the allowed actions.
        epsilon: a number, clipped to [0, 1].
    """
    # A compiled schedule that ends at zero may round to slightly less, and a negative probability has no logarithm.
    epsilon = jnp.clip(epsilon, 0, 1)
    masked = jnp.where(allowed, values, -jnp.inf)
    best = (masked == masked.max(-1, keepdims=True)) & allowed
    return epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * best / best.sum(-1, keepdims=True)
