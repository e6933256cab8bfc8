"""Exploration: schedules, the action probabilities of an ε-greedy policy, and noise for continuous actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
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


class Noise(NamedTuple):
    """Noise that is added to continuous actions.

    Attributes:
        init: `(num_envs, size) -> carry`, at the start of an episode.
        step: `(carry, first [env], key) -> (carry, noise [env, size])`.
    """

    init: Callable[[int, int], Any]
    step: Callable[[Any, Bool[Array, " env"], Array], tuple[Any, Float[Array, "env size"]]]


def ornstein_uhlenbeck(std: float, theta: float = 0.15, dt: float = 0.01) -> Noise:
    """Noise that drifts for hundreds of steps, so that actions push in one direction for long.

        xₜ₊₁ = (1 − θ dt) xₜ + σ √dt εₜ,    εₜ ~ N(0, 1),    x₀ = 0

    It tends to a standard deviation of about σ / √(2θ), and starts anew with each episode.

    Args:
        std: σ, in units of the actions' bounds.
        theta: θ, the rate at which it returns to zero.
        dt: the length of a step.

    Raises:
        ValueError: for `std` below 0.

    Source: Lillicrap et al. 2016, section 7; `dt` as in Stable-Baselines3.
    """
    _check_std("ornstein_uhlenbeck", std)

    def step(x: Array, first: Array, key: Array) -> tuple[Array, Array]:
        x = jnp.where(first[:, None], 0, x)
        x = (1 - theta * dt) * x + std * dt**0.5 * jax.random.normal(key, x.shape)
        return x, x

    return Noise(lambda num_envs, size: jnp.zeros((num_envs, size)), step)


def normal(std: float) -> Noise:
    """Normal noise, independent at every step.

    Args:
        std: its standard deviation, in units of the actions' bounds.

    Raises:
        ValueError: for `std` below 0.
    """
    _check_std("normal", std)
    # The carry of zeros only tells the shape.
    return Noise(
        lambda num_envs, size: jnp.zeros((num_envs, size)),
        lambda carry, first, key: (carry, std * jax.random.normal(key, carry.shape)),
    )


class StateDependent(NamedTuple):
    """Exploration by noise that is a function of the state; make it with `state_dependent`.

    Attributes:
        steps: how many the same function is used for.
        log_std: logarithm of the standard deviations of its weights, at the start.
    """

    steps: int
    log_std: float

    def init(self, num_envs: int, features: int, size: int) -> Any:
        """The carry at the start of an episode: standard normal weights, and how many steps they have been used for.

        Args:
            num_envs: number of environments.
            features: of the actor, before its last layer.
            size: numbers in an action.
        """
        return jnp.zeros((num_envs, features, size)), jnp.zeros(num_envs, jnp.int32)

    def step(self, carry: Any, first: Bool[Array, " env"], key: Array) -> tuple[Any, Float[Array, "env features size"]]:
        """The next carry, and the weights to act with, drawn anew at the start of an episode and every `steps` steps.

        Args:
            carry: of the step before.
            first: True where an episode begins.
            key: a random key.
        """
        weights, used = carry
        anew = first | (used == 0)
        weights = jnp.where(anew[:, None, None], jax.random.normal(key, weights.shape), weights)
        used = jnp.where(anew, 1, used + 1)
        return (weights, used % self.steps), weights


def state_dependent(steps: int = 8, log_std: float = -3.0) -> StateDependent:
    """State-dependent exploration (gSDE): the same state has the same noise for a while, so that actions are smooth.

        ε(s) = z(s) (W ∘ σ),    W ~ N(0, 1),    π(· | s) = N(μ(s), Σᵢ zᵢ(s)² σᵢ²) in each dimension

    z are the features of the actor before its last layer, and σ is learned by the policy gradient, without one into z.

    Args:
        steps: how many W is used for; a new episode has a new one.
        log_std: log σ at the start.

    Raises:
        ValueError: for `steps` below 1.

    Source: Raffin et al. 2021, section 3.
    """
    if steps < 1:
        raise ValueError(f"rl.exploration.state_dependent(steps={steps}): at least 1")
    return StateDependent(steps, log_std)


def _check_std(name: str, std: float) -> None:
    if std < 0:
        raise ValueError(f"rl.exploration.{name}(std={std}): at least 0")
