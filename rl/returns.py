"""Returns and advantages of rollouts; time is the first axis, and any axes may follow.

Notation, for steps t in [1, T]:

    rₜ          the reward of step t
    v(sₜ)       `value`, of the observation before step t
    v(s'ₜ)      `next_value`, of the observation after step t, before any reset
    endₜ        terminatedₜ or truncatedₜ
    γ, λ        `discount`, `lambda_`

In all functions `terminated` ends the bootstrap, and `terminated | truncated` ends the trace. After a truncation the
value of the observation that was reached still counts; the rewards of the next episode do not. Within an episode
v(s'ₜ) is the same as v(sₜ₊₁); after a truncation and at T it is the value of an observation that `value` lacks.
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
    """Generalized advantage estimates.

        δₜ = rₜ + γ (1 − terminatedₜ) v(s'ₜ) − v(sₜ)
        Âₜ = δₜ + γ λ (1 − endₜ) Âₜ₊₁,    Âₜ₊₁ = 0 for t = T

    Âₜ + v(sₜ) is the λ-return of step t (`lambda_returns`). With λ = 0, Âₜ is the TD(0) error δₜ. With λ = 1 it is the
    Monte-Carlo return minus v(sₜ), bootstrapped from the last value where an episode is cut off by a truncation or by
    the end of the data.

    Args:
        reward: rₜ, for t in [1, T].
        value: v(sₜ), for t in [1, T].
        next_value: v(s'ₜ), for t in [1, T].
        terminated: whether the episode terminated at t, for t in [1, T].
        truncated: whether the episode was cut off after t, for t in [1, T].
        discount: γ in [0, 1].
        lambda_: λ in [0, 1].

    Returns:
        Âₜ, for t in [1, T].

    Source: Schulman et al. 2016, equation 16.
    """
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
    """λ-returns.

        Gₜ = rₜ + γ (1 − terminatedₜ) ((1 − λₜ) v(s'ₜ) + λₜ Gₜ₊₁),    λₜ = 0 where endₜ or t = T, else λ

    - TD(0): λ = 0 gives the one-step targets rₜ + γ (1 − terminatedₜ) v(s'ₜ).
    - TD(λ): 0 < λ < 1 gives the targets of the forward view.
    - Monte Carlo: λ = 1 gives the discounted sum of rewards until the episode ends, plus the discounted last value
      where it is cut off by a truncation or by the end of the data.

    Args:
        reward: rₜ, for t in [1, T].
        next_value: v(s'ₜ), for t in [1, T].
        terminated: whether the episode terminated at t, for t in [1, T].
        truncated: whether the episode was cut off after t, for t in [1, T].
        discount: γ in [0, 1].
        lambda_: λ in [0, 1].

    Returns:
        Gₜ, for t in [1, T].

    Source: Sutton and Barto, equation 12.18.
    """
    ends = (terminated | truncated).at[-1].set(True)  # rewards after the data are unknown: bootstrap there
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
    """n-step returns: the discounted rewards of n steps and the value after them.

        Gₜ⁽¹⁾ = rₜ + γ (1 − terminatedₜ) v(s'ₜ)
        Gₜ⁽ⁿ⁾ = Gₜ⁽¹⁾ where endₜ or t = T, else rₜ + γ Gₜ₊₁⁽ⁿ⁻¹⁾

    Near the end of an episode or of the data there are fewer than n steps, and the value is discounted by the number
    of steps taken. n = 1 gives the targets of TD(0). n ≥ T gives Monte-Carlo returns, the same as `lambda_returns` with
    λ = 1.

    Args:
        reward: rₜ, for t in [1, T].
        next_value: v(s'ₜ), for t in [1, T].
        terminated: whether the episode terminated at t, for t in [1, T].
        truncated: whether the episode was cut off after t, for t in [1, T].
        discount: γ in [0, 1].
        n: number of rewards to sum.

    Returns:
        Gₜ⁽ⁿ⁾, for t in [1, T].

    Raises:
        ValueError: for n below 1.

    Source: Sutton and Barto, equation 7.1.
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
    """The result of `vtrace`.

    Attributes:
        targets: [time, ...]; regression targets for the values.
        advantages: [time, ...]; advantages for the policy gradient, including the importance weight ρₜ.
    """

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
    """V-trace: off-policy value targets and policy-gradient advantages.

        ρₜ = min(ρ̄, exp(log_ratioₜ)),    cₜ = λ min(c̄, exp(log_ratioₜ))
        δₜ = ρₜ (rₜ + γ (1 − terminatedₜ) v(s'ₜ) − v(sₜ))
        xₜ = δₜ + γ cₜ (1 − endₜ) xₜ₊₁,    xₜ₊₁ = 0 for t = T
        targetₜ = v(sₜ) + xₜ
        advantageₜ = ρₜ (rₜ + γ wₜ − v(sₜ)),    wₜ = (1 − terminatedₜ) v(s'ₜ) where endₜ or t = T, else targetₜ₊₁

    - On-policy (log_ratio = 0, ρ̄ and c̄ at least 1): the targets are the λ-returns of `lambda_returns`, so λ = 1 gives
      Monte-Carlo returns, bootstrapped where they are cut off.
    - λ < 1: V-trace with the additional trace parameter of Espeholt et al. 2018, remark 2.
    - λ = 0: one-step targets v(sₜ) + δₜ, which are those of TD(0) with a clipped importance weight.

    Args:
        log_ratio: log-probability of the action under the learned policy minus that under the policy that acted, for
            t in [1, T].
        reward: rₜ, for t in [1, T].
        value: v(sₜ), for t in [1, T].
        next_value: v(s'ₜ), for t in [1, T].
        terminated: whether the episode terminated at t, for t in [1, T].
        truncated: whether the episode was cut off after t, for t in [1, T].
        discount: γ in [0, 1].
        lambda_: λ in [0, 1].
        clip_ratio: ρ̄, the bound of the importance weights of the errors and advantages.
        clip_trace: c̄, the bound of the importance weights of the traces.

    Source: Espeholt et al. 2018, equation 1.
    """
    ratio = jnp.exp(log_ratio)
    rho, c = jnp.minimum(clip_ratio, ratio), lambda_ * jnp.minimum(clip_trace, ratio)
    bootstrap = jnp.where(terminated, 0, next_value)
    boundary = terminated | truncated
    errors = rho * (reward + discount * bootstrap - value)
    excess = _accumulated(errors, jnp.where(boundary, 0, discount * c))
    # Within an episode, bootstrap from the target of the next step; where the trace ends, from the value alone.
    shifted = jnp.concatenate([(value + excess)[1:], bootstrap[-1:]])
    following = jnp.where(boundary, bootstrap, shifted).at[-1].set(bootstrap[-1])
    return VTrace(value + excess, rho * (reward + discount * following - value))


def _accumulated(terms: Array, decay: Array) -> Array:
    """yₜ = termsₜ + decayₜ yₜ₊₁, with y = 0 after the last step."""

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        total = now[0] + now[1] * later
        return total, total

    return jax.lax.scan(step, jnp.zeros_like(terms[0]), (terms, jnp.broadcast_to(decay, terms.shape)), reverse=True)[1]
