"""What DQN learns about the return of an action: its mean, or its distribution as probabilities or as quantiles.

Notation: Z is the return of an action, y = r + γ Z' a sample of its goal, and n the outputs of an action.

    head            outputs of an action                    value               loss
    mean            q                                       q                   ½ (q − y)²
    categorical     log-probabilities of n fixed returns    Σᵢ pᵢ zᵢ            − Σᵢ p(y)ᵢ log pᵢ
    quantiles       n quantiles, at the midpoints           Σᵢ θᵢ / n           Σᵢ E[ρ_τᵢ(y − θᵢ)]
    implicit        n quantiles, at levels drawn anew       Σᵢ θᵢ / n           Σᵢ E[ρ_τᵢ(y − θᵢ)]

ρ_τ(u) = |τ − [u < 0]| H(u), with H the Huber loss divided by its limit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


class ValueHead(NamedTuple):
    """What the outputs of an action stand for.

    Attributes:
        outputs: numbers for each action.
        values: `(outputs [..., n]) -> [...]`, the mean return.
        goals: `(reward [batch], discount [batch], following [batch, n]) -> [batch, n]`, from the outputs of the next
            action.
        loss: `(outputs [batch, n], goals [batch, n], levels [batch, n] or None) -> [batch]`.
        drawn: levels of quantiles are drawn anew at each use, and the network takes them as input.
        mean: the output is the mean itself, so that an error is a difference of returns.
        distribution: `(outputs [..., n]) -> (returns [..., n], probabilities [..., n])`; None for the mean alone.
        beyond: as `goals`, -> [batch]: the probability of goals that the head cannot represent; None if it can all.
    """

    outputs: int
    values: Callable[[Array], Array]
    goals: Callable[[Array, Array, Array], Float[Array, "batch n"]]
    loss: Callable[[Array, Array, Array | None], Float[Array, " batch"]]
    drawn: bool = False
    mean: bool = False
    distribution: Callable[[Array], tuple[Array, Array]] | None = None
    beyond: Callable[[Array, Array, Array], Float[Array, " batch"]] | None = None


def mean(huber: float | None = None) -> ValueHead:
    """The mean return alone (Mnih et al. 2015).

    Args:
        huber: errors above it count linearly; None for squared errors.
    """

    def loss(outputs: Array, goals: Array, levels: Array | None) -> Array:
        errors = (outputs - goals)[..., 0]
        return optax.l2_loss(errors) if huber is None else optax.huber_loss(errors, delta=huber)

    return ValueHead(1, lambda outputs: outputs[..., 0], _shifted, loss, mean=True)


def categorical(low: float, high: float, atoms: int = 51) -> ValueHead:
    """Probabilities of returns that are fixed, at equal distances (C51).

    Returns beyond the ends count as the ends: choose them wider than the discounted returns of the environment. The
    metric "beyond_support" of DQN is the share of its goals that lie beyond.

    Args:
        low: the lowest return.
        high: the highest return.
        atoms: how many.

    Raises:
        ValueError: for fewer than 2 atoms, and for `low` not below `high`.

    Source: Bellemare, Dabney and Munos 2017, algorithm 1.
    """
    if atoms < 2 or not low < high:
        raise ValueError(f"categorical(low={low}, high={high}, atoms={atoms}): at least 2 atoms, from low up to high")
    returns = jnp.linspace(low, high, atoms)
    width = (high - low) / (atoms - 1)

    def beyond(reward: Array, discount: Array, following: Array) -> Array:
        goal = reward[:, None] + discount[:, None] * returns
        slack = 1e-3 * width  # for rounding
        return (jax.nn.softmax(following) * ((goal < low - slack) | (goal > high + slack))).sum(-1)

    def goals(reward: Array, discount: Array, following: Array) -> Array:
        goal = jnp.clip(reward[:, None] + discount[:, None] * returns, low, high)
        # Each goal gives its probability to its two neighbors, the more the nearer; to one alone where it meets it.
        share = jnp.clip(1 - jnp.abs(goal[:, None, :] - returns[:, None]) / width, 0, 1)  # [batch, atom, goal]
        return (share * jax.nn.softmax(following)[:, None, :]).sum(-1)

    return ValueHead(
        atoms,
        lambda outputs: (jax.nn.softmax(outputs) * returns).sum(-1),
        goals,
        lambda outputs, goals, levels: optax.softmax_cross_entropy(outputs, goals),
        distribution=lambda outputs: (jnp.broadcast_to(returns, outputs.shape), jax.nn.softmax(outputs)),
        beyond=beyond,
    )


def quantiles(count: int = 200, huber: float = 1.0) -> ValueHead:
    """Quantiles of the return at the midpoints (2i − 1) / 2n (QR-DQN).

    Args:
        count: how many.
        huber: errors above it count linearly.

    Raises:
        ValueError: for a count below 1.

    Source: Dabney et al. 2018a, algorithm 1.
    """
    if count < 1:
        raise ValueError(f"quantiles(count={count}): at least 1")
    midpoints = (jnp.arange(count) + 0.5) / count
    return ValueHead(
        count,
        lambda outputs: outputs.mean(-1),
        _shifted,
        lambda outputs, goals, levels: quantile_loss(outputs, goals, midpoints, huber),
        distribution=_equally_likely,
    )


def implicit(count: int = 64, huber: float = 1.0) -> ValueHead:
    """Quantiles of the return at levels that are drawn uniformly at each use (IQN).

    Acting, the levels are midpoints: nothing is random where an agent acts greedily.

    Args:
        count: levels for each observation.
        huber: errors above it count linearly.

    Raises:
        ValueError: for a count below 1.

    Source: Dabney et al. 2018b, section 3.
    """
    if count < 1:
        raise ValueError(f"implicit(count={count}): at least 1")
    return ValueHead(
        count,
        lambda outputs: outputs.mean(-1),
        _shifted,
        lambda outputs, goals, levels: quantile_loss(outputs, goals, levels, huber),
        drawn=True,
        distribution=_equally_likely,
    )


def quantile_loss(
    outputs: Float[Array, "*batch n"], goals: Float[Array, "*batch m"], levels: Array, huber: float
) -> Float[Array, "*batch"]:
    """Huber quantile regression: summed over quantiles, averaged over the samples of the goal.

    Args:
        outputs: quantiles.
        goals: samples of the goal.
        levels: τ of each quantile, [n] or [*batch, n].
        huber: errors above it count linearly.

    Source: Dabney et al. 2018b, equation 3; 2018a, equation 10, where the limit is 1.
    """
    errors = goals[..., None, :] - outputs[..., :, None]
    weight = jnp.abs(levels[..., :, None] - (errors < 0))
    return (weight * optax.huber_loss(errors, delta=huber) / huber).mean(-1).sum(-1)


def _equally_likely(outputs: Array) -> tuple[Array, Array]:
    return outputs, jnp.full_like(outputs, 1 / outputs.shape[-1])


def _shifted(reward: Array, discount: Array, following: Array) -> Array:
    return reward[:, None] + discount[:, None] * following
