"""What policy-gradient algorithms share: a policy and a value function on one network, and how they act."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl import normalize, spaces
from rl.distributions import head
from rl.networks import ActorCritic, torso
from rl.types import Carry, Experience, TimeStep


@flax.struct.dataclass
class PolicyAgent:
    """Everything that changes while a policy is learnt."""

    params: Any
    optimizer: Any
    observations: Any  # moments of the observations; None where they are not normalized


class Extras(NamedTuple):
    """What learning wants to know of the agent that acted."""

    log_prob: Any
    value: Any


class Policy(NamedTuple):
    """A policy as pure functions."""

    init: Callable[[Array], PolicyAgent]  # (key) -> agent
    apply: Callable[..., tuple[Any, Array]]  # (params, observation seen, action mask) -> distribution, values
    seen: Callable[[PolicyAgent, Any], Any]  # observations as the network is given them
    act: Callable[..., tuple[Any, Carry, Any]]  # (agent, carry, timestep, key, greedy) -> action, carry, ()
    recall: Callable[..., Extras]  # (agent, carry, timestep, action) of a rollout


def policy(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None,
    optimizer: optax.GradientTransformation,
    *,
    shared: bool,
    normalize_observations: bool,
) -> Policy:
    """A policy and a value head on a torso each, or on one if `shared`; raises ValueError for unsupported spaces."""
    body = torso(observation_space) if network is None else network
    outputs = head(action_space)
    model = ActorCritic(body, None if shared else body.clone(), outputs.outputs, outputs.stds)
    example = spaces.zeros(observation_space, 1)

    def init(key: Array) -> PolicyAgent:
        params = model.init(key, example)["params"]
        one = jax.tree.map(lambda leaf: leaf[0], example)
        tracked = spaces.real_valued(observation_space)
        moments = normalize.initial(one, tracked) if normalize_observations else None
        return PolicyAgent(params, optimizer.init(params), moments)

    def apply(params: Any, observation: Any, action_mask: Any) -> tuple[Any, Array]:
        numbers, log_std, value = cast(tuple, model.apply({"params": params}, observation))
        return outputs.make(numbers, log_std, action_mask), value

    def seen(agent: PolicyAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def act(
        agent: PolicyAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Carry, tuple[()]]:
        distribution, _ = apply(agent.params, seen(agent, timestep.observation), timestep.action_mask)
        return distribution.mode() if greedy else distribution.sample(key), carry, ()

    def recall(agent: PolicyAgent, carry: Carry, timestep: TimeStep, action: Any) -> Extras:
        shape = jnp.shape(timestep.first)
        timestep, action = flat((timestep, action))
        distribution, value = apply(agent.params, seen(agent, timestep.observation), timestep.action_mask)
        return Extras(distribution.log_prob(action).reshape(shape), value.reshape(shape))

    return Policy(init, apply, seen, act, recall)


def updated(agent: PolicyAgent, params: Any, optimizer: Any, experience: Experience) -> PolicyAgent:
    """The agent after learning; its normalizer last, so that acting and learning saw the same numbers."""
    moments = agent.observations
    if moments is not None:
        moments = normalize.updated(moments, experience.timestep.observation, experience.valid)
    return PolicyAgent(params, optimizer, moments)


def next_values(values: Callable[[Any], Array], experience: Experience) -> Array:
    """The value of each observation reached, [time, env], before any reset.

    Mostly it is known from acting one step later. It has to be computed after the last step, and where an episode
    was cut off: only then, and all at once, since a compiled program cannot pick the few.
    """
    observation, known = experience.next_observation, experience.extras.value
    last = values(jax.tree.map(lambda leaf: leaf[-1], observation))
    shifted = jnp.concatenate([known[1:], last[None]])

    def compute() -> Array:
        return jnp.where(experience.truncated, values(flat(observation)).reshape(known.shape), shifted)

    return jax.lax.cond(experience.truncated[:-1].any(), compute, lambda: shifted)


def flat(tree: Any) -> Any:
    """[time, env, ...] -> [time * env, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of what has a weight; of a single number the deviation is 1."""
    count = jnp.maximum(weights.sum(), 1)
    mean = (weights * x).sum() / count
    deviation = jnp.sqrt((weights * (x - mean) ** 2).sum() / count)
    return mean, jnp.where(count > 1, deviation + 1e-8, 1.0)
