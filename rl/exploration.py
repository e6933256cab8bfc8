"""What changes while an agent explores less and less."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

type Schedule = Callable[[Any], Any]  # of a count, as Optax has them


def at(schedule: float | Array | Schedule, count: Any) -> Any:
    """A number, or what a schedule says at a count."""
    return schedule(count) if callable(schedule) else schedule


def epsilon_greedy(
    values: Float[Array, "env actions"], allowed: Bool[Array, "env actions"], epsilon: Any
) -> Float[Array, "env actions"]:
    """The probability of each action: a share of epsilon over all that are allowed, the rest over the best of them."""
    # Compiled, a schedule that ends at zero may end a rounding below, and a negative probability has no logarithm.
    epsilon = jnp.clip(epsilon, 0, 1)
    masked = jnp.where(allowed, values, -jnp.inf)
    best = (masked == masked.max(-1, keepdims=True)) & allowed
    return epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * best / best.sum(-1, keepdims=True)
