"""A market with a planted signal, whose best log growth is known: what finds nothing here finds nothing anywhere.

There are no real prices. Each step the price goes up or down by half, like a coin, and a signal says which, rightly
with a known probability.
"""

from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from rl.envs.environment import Environment, Outcome, time_limit

MAX_STEPS = 50
MOVE = 0.5  # of the price, in one step
PAST = 4  # returns that are shown
RELIABILITY = 0.65


class Prices(NamedTuple):
    """The state of the market.

    Attributes:
        past: [4], the last returns; the latest is last.
        following: 0.5 or -0.5, the return of the next step, which no one sees.
        signal: -1 or 1.
    """

    past: Any
    following: Any
    signal: Any


def market(reliability: float = RELIABILITY, max_steps: int = MAX_STEPS) -> Environment:
    """Choose the share of one's wealth to hold, from -1 (short) to 1, before each move of the price.

    The observation is the last four returns and the signal. The reward is the logarithm of the wealth's growth; so the
    return of an episode is its log growth. There are no costs, and holdings do not move the price.

    Args:
        reliability: the probability that the signal is right, at least 0.5; at 1 it is tomorrow's return, leaked.
        max_steps: steps after which an episode is truncated.

    Raises:
        ValueError: for a reliability outside [0.5, 1].
    """
    _check(reliability)
    return time_limit(_untimed(reliability, "Market-v0"), max_steps)


def market_leaked(max_steps: int = MAX_STEPS) -> Environment:
    """`market` whose signal is always right: a probe that every algorithm should pass.

    Args:
        max_steps: steps after which an episode is truncated.
    """
    return time_limit(_leaked(), max_steps)


def best_growth(reliability: float = RELIABILITY) -> tuple[float, float]:
    """The oracle of `market`: the best share of the wealth to hold in the signal's direction, and its growth.

    With p the reliability, m the move and f the share, the growth is p log(1 + f m) + (1 - p) log(1 - f m), largest at
    f = (2 p - 1) / m, or at 1 if that is more.

    Args:
        reliability: the probability that the signal is right.

    Returns:
        The share, and the mean log growth per step.

    Raises:
        ValueError: for a reliability outside [0.5, 1].

    Source: Kelly 1956, "A new interpretation of information rate".
    """
    _check(reliability)
    share = min((2 * reliability - 1) / MOVE, 1.0)
    right, wrong = np.log1p(share * MOVE), np.log1p(-share * MOVE)
    return share, float(reliability * right + (1 - reliability) * wrong)


def _untimed(reliability: float, name: str) -> Environment:
    def drawn(past: Array, key: Array) -> tuple[Prices, Array]:
        keys = jax.random.split(key)
        following = jnp.where(jax.random.bernoulli(keys[0]), MOVE, -MOVE)
        right = jax.random.bernoulli(keys[1], reliability)
        prices = Prices(past, following, jnp.where(right, 1.0, -1.0) * jnp.sign(following))
        return prices, jnp.append(past, prices.signal)

    def reset(key: Array) -> tuple[Prices, Outcome]:
        keys = jax.random.split(key)
        past = MOVE * jax.random.rademacher(keys[0], (PAST,), jnp.float32)
        prices, seen = drawn(past, keys[1])
        return prices, Outcome(seen, jnp.float32(0), np.False_, np.False_)

    def step(prices: Prices, action: Any, key: Array) -> tuple[Prices, Outcome]:
        growth = jnp.log1p(jnp.clip(action[0], -1, 1) * prices.following)
        prices, seen = drawn(jnp.append(prices.past[1:], prices.following), key)
        return prices, Outcome(seen, growth.astype(jnp.float32), np.False_, np.False_)

    return Environment(
        name, reset, step, spaces.Box(-1, 1, (PAST + 1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    )


def _planted() -> Environment:
    return _untimed(RELIABILITY, "Market-v0")


def _leaked() -> Environment:
    return _untimed(1.0, "MarketLeaked-v0")


def _check(reliability: float) -> None:
    if not 0.5 <= reliability <= 1:
        raise ValueError(f"reliability={reliability}: from 0.5 (the signal says nothing) to 1 (it is always right)")


def register() -> None:
    """Register the Gymnasium environments of this file."""
    for name, make in (("Market-v0", _planted), ("MarketLeaked-v0", _leaked)):
        entry = "rl.envs.as_gymnasium:AsGymnasium"
        gymnasium.register(name, entry, kwargs={"env": make}, max_episode_steps=MAX_STEPS)
