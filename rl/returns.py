"""Returns and advantages over a stretch of time, the first axis; any axes may follow.

Everywhere `terminated` ends the bootstrap and `terminated | truncated` ends the trace: after a truncation the value
of the observation that was reached is still worth having, the rewards of the next episode are not.
`next_value` is the value of the observation after each step, before any reset.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalized_advantages(
    reward: Float[Array, "time *batch"],
    value: Float[Array, "time *batch"],
    next_value: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    lambda_: float | Array,
) -> Float[Array, "time *batch"]:
    """Generalized advantage estimates (Schulman et al. 2016, equation 16); `advantages + value` are λ-returns."""
    errors = reward + discount * jnp.where(terminated, 0, next_value) - value
    return _accumulated(errors, jnp.where(terminated | truncated, 0, discount * lambda_))


def lambda_returns(
    reward: Float[Array, "time *batch"],
    next_value: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    lambda_: float | Array,
) -> Float[Array, "time *batch"]:
    """λ-returns (Sutton and Barto, equation 12.18); with λ = 1, discounted sums of rewards and the last bootstrap."""
    ends = (terminated | truncated).at[-1].set(True)  # what comes after the data is known by its value alone
    share = jnp.where(ends, 0, lambda_)
    immediate = reward + discount * jnp.where(terminated, 0, (1 - share) * next_value)
    return _accumulated(immediate, discount * share)


def n_step_returns(
    reward: Float[Array, "time *batch"],
    next_value: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    n: int,
) -> Float[Array, "time *batch"]:
    """The rewards of n steps and the value after them (Sutton and Barto, equation 7.1).

    Fewer steps before the end of an episode or of the data; the discount's exponent counts those taken.
    """
    if n < 1:
        raise ValueError(f"n_step_returns(n={n}): n is at least 1")
    one = reward + discount * jnp.where(terminated, 0, next_value)
    ends = (terminated | truncated).at[-1].set(True)
    returns = one
    for _ in range(n - 1):
        later = jnp.concatenate([returns[1:], jnp.zeros_like(returns[:1])])
        returns = jnp.where(ends, one, reward + discount * later)
    return returns


class VTrace(NamedTuple):
    """Targets of the values, and advantages for the policy gradient."""

    targets: Array
    advantages: Array


def vtrace(
    log_ratio: Float[Array, "time *batch"],
    reward: Float[Array, "time *batch"],
    value: Float[Array, "time *batch"],
    next_value: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    lambda_: float | Array = 1.0,
    clip_ratio: float | Array = 1.0,
    clip_trace: float | Array = 1.0,
) -> VTrace:
    """Off-policy targets (Espeholt et al. 2018, equation 1).

    log_ratio: log-probability of the action under the policy learnt minus that under the one that acted.
    """
    ratio = jnp.exp(log_ratio)
    rho, c = jnp.minimum(clip_ratio, ratio), lambda_ * jnp.minimum(clip_trace, ratio)
    bootstrap = jnp.where(terminated, 0, next_value)
    boundary = terminated | truncated
    errors = rho * (reward + discount * bootstrap - value)
    excess = _accumulated(errors, jnp.where(boundary, 0, discount * c))
    # Within an episode the target of the next step; at its end, and at that of the data, the bare value.
    shifted = jnp.concatenate([(value + excess)[1:], bootstrap[-1:]])
    following = jnp.where(boundary, bootstrap, shifted).at[-1].set(bootstrap[-1])
    return VTrace(value + excess, rho * (reward + discount * following - value))


def _accumulated(terms: Array, decay: Array) -> Array:
    """y[t] = terms[t] + decay[t] * y[t + 1], with y = 0 after the end."""

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        total = now[0] + now[1] * later
        return total, total

    return jax.lax.scan(step, jnp.zeros_like(terms[0]), (terms, jnp.broadcast_to(decay, terms.shape)), reverse=True)[1]
