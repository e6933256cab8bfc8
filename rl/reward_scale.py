"""Rewards over the standard deviation of discounted returns, for any algorithm (Engstrom et al. 2020, section 2)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl import normalize
from rl.types import Algorithm, Carry, Experience, TimeStep


@flax.struct.dataclass
class ScaledAgent:
    """An agent, and the scale of the rewards that it learns from."""

    agent: Any
    returns: normalize.Moments  # of the discounted returns so far
    returned: Any  # [env], of the episode under way


def scaled_rewards(
    algorithm: Algorithm, *, num_envs: int, discount: float | Array = 0.99, limit: float = 10.0
) -> Algorithm:
    """The same algorithm, learning from rewards that are divided by their scale, and cut off at a limit.

    The scale is kept with the agent, and grows with each rollout before it is used; nothing is subtracted. Reported
    returns are those of the environment. num_envs: as many as the runner has; discount: the algorithm's own.
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
    return algorithm._replace(init=init, act=act, update=update)


def discounted(
    reward: Float[Array, "time env"],
    ends: Bool[Array, "time env"],
    valid: Bool[Array, "time env"],
    before: Float[Array, " env"],
    discount: float | Array,
) -> tuple[Float[Array, "time env"], Float[Array, " env"]]:
    """What was received in the episode up to each step, the older the more discounted; and what is to go on with."""

    def step(returned: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, ends, valid = now
        returned = jnp.where(valid, discount * returned + reward, returned)
        return jnp.where(ends, 0, returned), returned

    after, history = jax.lax.scan(step, before, (reward, ends, valid))
    return history, after
