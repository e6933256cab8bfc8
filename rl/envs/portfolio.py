"""Weights of shares over the days of an array of returns, with costs: real prices or any others.

The order of a day, which is where such environments go wrong: the agent sees the returns up to the close of yesterday
and the weights that it holds then; it trades at that close and pays for it; today's returns move the wealth, and the
weights with it. No number of today is seen before the trade.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

from rl.envs.environment import Environment, Outcome, time_limit

COST = 0.001  # of what is bought or sold: 10 basis points one way
PAST = 5  # days of returns that are seen
MAX_STEPS = 252  # trading days of a year
SPREAD = 3.0  # the largest weight is at most exp(2 * 3), 400 times, the smallest


class Holdings(NamedTuple):
    """The state of the environment.

    Attributes:
        day: int32, the index of the return that comes next.
        weights: [shares], the shares' parts of the wealth now, moved by the returns since the last trade; zeros for an
            episode that begins, since all is cash then.
    """

    day: Any
    weights: Any


def portfolio(
    returns: Float[np.ndarray, "days shares"],
    cost: float = COST,
    past: int = PAST,
    max_steps: int = MAX_STEPS,
    leaked: bool = False,
    name: str = "Portfolio-v0",
) -> Environment:
    """Choose the weights of shares each day, long only, after costs.

    The observation is a Dict of "returns" [past, shares], the latest last, and "weights" [shares], those held now. An
    action [shares] from -1 to 1 stands for the weights `weights_of(action)`. The reward is the logarithm of the growth
    of the wealth after costs, less that of equal weights without costs: no action changes the latter, and without it
    the market's moves would drown what an action does. An episode begins with cash, on a random day that leaves room
    for `max_steps` days.

    Args:
        returns: simple returns of each day, above -1.
        cost: share of each amount bought or sold that is lost, below 0.5.
        past: days of returns in the observation.
        max_steps: days after which an episode is truncated; with `len(returns) - past` there is one episode, all days.
        leaked: a probe: the observation has also "tomorrow" [shares], the returns that come. Who does not grow rich
            with these has an error.
        name: of the environment.

    Raises:
        ValueError: for returns that are not finite, not above -1 or not of two shares or more, and for other numbers
            outside their ranges.
    """
    return time_limit(untimed(returns, cost, past, max_steps, leaked, name), max_steps)


def untimed(
    returns: np.ndarray,
    cost: float = COST,
    past: int = PAST,
    max_steps: int = MAX_STEPS,
    leaked: bool = False,
    name: str = "Portfolio-v0",
) -> Environment:
    """`portfolio` without its limit of time, which Gymnasium adds by itself.

    Args:
        returns, cost, past, max_steps, leaked, name: as of `portfolio`.
    """
    returns = np.asarray(returns)
    _check(returns, cost, past, max_steps)
    days, shares = returns.shape
    all_days = jnp.asarray(returns, jnp.float32)

    def observe(holdings: Holdings) -> dict[str, Array]:
        seen = jax.lax.dynamic_slice_in_dim(all_days, holdings.day - past, past)
        observation = {"returns": seen, "weights": holdings.weights}
        return {**observation, "tomorrow": all_days[jnp.minimum(holdings.day, days - 1)]} if leaked else observation

    def reset(key: Array) -> tuple[Holdings, Outcome]:
        day = jax.random.randint(key, (), past, days - max_steps + 1, jnp.int32)
        holdings = Holdings(day, jnp.zeros(shares))
        return holdings, Outcome(observe(holdings), jnp.float32(0), np.False_, np.False_)

    def step(holdings: Holdings, action: Array, key: Array) -> tuple[Holdings, Outcome]:
        weights, today = weights_of(action), all_days[holdings.day]
        traded = jnp.abs(weights - holdings.weights).sum()
        moved = weights @ today
        growth = jnp.log1p(-cost * traded) + jnp.log1p(moved)
        held = Holdings(holdings.day + 1, weights * (1 + today) / (1 + moved))
        reward = growth - jnp.log1p(today.mean())
        return held, Outcome(observe(held), reward.astype(jnp.float32), np.False_, np.False_)

    parts: dict[str, spaces.Space] = {
        "returns": spaces.Box(-1, np.inf, (past, shares), np.float32),
        "weights": spaces.Box(0, 1, (shares,), np.float32),
    }
    if leaked:
        parts["tomorrow"] = spaces.Box(-1, np.inf, (shares,), np.float32)
    return Environment(name, reset, step, spaces.Dict(parts), spaces.Box(-1, 1, (shares,), np.float32))


def weights_of(action: Float[Array, "*batch shares"]) -> Float[Array, "*batch shares"]:
    """The weights that an action of `portfolio` stands for: softmax(3 a), of the action clipped to [-1, 1].

    Args:
        action: any numbers; equal ones are equal weights.
    """
    return jax.nn.softmax(SPREAD * jnp.clip(action, -1, 1))


def _check(returns: np.ndarray, cost: float, past: int, max_steps: int) -> None:
    if returns.ndim != 2 or returns.shape[1] < 2:
        raise ValueError(f"portfolio(returns of shape {returns.shape}): [days, shares], with two shares or more")
    wrong = np.argwhere(~(np.isfinite(returns) & (returns > -1)))
    if len(wrong):
        day, share = wrong[0]
        raise ValueError(
            f"portfolio(returns): {returns[day, share]} on day {day} of share {share} ({len(wrong)} in all); simple "
            "returns are finite and above -1: p[1:] / p[:-1] - 1 of prices without gaps"
        )
    if not 0 <= cost < 0.5:
        raise ValueError(f"portfolio(cost={cost}): a share of what is traded, from 0 to below 0.5; 10 bp are 0.001")
    if past < 1 or max_steps < 1 or past + max_steps > len(returns):
        raise ValueError(
            f"portfolio(past={past}, max_steps={max_steps}): at least 1 each, and together at most the {len(returns)} "
            "days of the returns"
        )
