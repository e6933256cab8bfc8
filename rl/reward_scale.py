"""Reward scaling for any algorithm: division by the standard deviation of discounted returns (Engstrom et al. 2020)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl import normalize
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class ScaledAgent:
    """An agent, and the scale of the rewards that it learns from.

    Attributes:
        agent: the agent of the wrapped algorithm.
        returns: moments of the discounted returns so far; the mean is not used.
        returned: [env], float32; the discounted return of the running episode up to now.
    """

    agent: Any
    returns: normalize.Moments
    returned: Any


def scaled_rewards(
    algorithm: Algorithm, *, num_envs: int, discount: float | Array = 0.99, limit: float = 10.0
) -> Algorithm:
    """The same algorithm, learning from rewards that are divided by their scale and clipped.

    The scale is part of the agent. A rollout is added to it before the rewards of that rollout are divided by it. No
    mean is subtracted. Reported returns are those of the environment, unscaled.

    Args:
        algorithm: the algorithm to wrap.
        num_envs: how many environments the runner has.
        discount: that of the algorithm.
        limit: scaled rewards are clipped to [-limit, limit].

    Raises:
        ValueError: for `num_envs` below 1, and when experience of another number of environments arrives.

    Source: Engstrom et al. 2020, section 2.
    """
    if num_envs < 1:
        raise ValueError(f"scaled_rewards(num_envs={num_envs}): at least 1")

    def init(key: Array) -> ScaledAgent:
        return ScaledAgent(algorithm.init(key), normalize.initial(jnp.zeros(())), jnp.zeros(num_envs))

    def act(agent: ScaledAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry, Any]:
        return algorithm.act(agent.agent, carry, timestep, key, greedy)

    def update(agent: ScaledAgent, experience: Experience, key: Array) -> tuple[ScaledAgent, Any]:
        envs = experience.reward.shape[1]
        if envs != num_envs:
            raise ValueError(f"scaled_rewards(num_envs={num_envs}) was given experience of {envs} environments")
        ends = experience.terminated | experience.truncated
        history, returned = discounted(experience.reward, ends, experience.valid, agent.returned, discount)
        returns = normalize.updated(agent.returns, history, jnp.asarray(experience.valid))
        reward = jnp.clip(experience.reward / jnp.sqrt(returns.variance + 1e-8), -limit, limit)
        inner, metrics = algorithm.update(agent.agent, experience._replace(reward=reward), key)
        return ScaledAgent(inner, returns, returned), metrics

    recall = algorithm.recall
    if recall is not None:
        algorithm = algorithm._replace(recall=lambda agent, *rollout: recall(agent.agent, *rollout))
    return algorithm._replace(init=init, act=act, update=update, beliefs=None)  # they are of scaled returns


def discounted(
    reward: Float[Array, "time env"],
    ends: Bool[Array, "time env"],
    valid: Bool[Array, "time env"],
    before: Float[Array, " env"],
    discount: float | Array,
) -> tuple[Float[Array, "time env"], Float[Array, " env"]]:
    """The discounted sum of the past rewards of the episode at each step: Rₜ = γ (1 − endₜ₋₁) Rₜ₋₁ + rₜ.

    A step that is not valid leaves the sum as it is.

    Args:
        reward: rₜ, for t in [1, T].
        ends: terminated or truncated.
        valid: False for steps that do not count.
        before: (1 − end₀) R₀, as the last call returned it; zero at the start.
        discount: γ.

    Returns:
        Rₜ for each step, and (1 − end_T) R_T for the next call.
    """

    def step(returned: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, ends, valid = now
        returned = jnp.where(valid, discount * returned + reward, returned)
        return jnp.where(ends, 0, returned), returned

    after, history = jax.lax.scan(step, before, (reward, ends, valid))
    return history, after
