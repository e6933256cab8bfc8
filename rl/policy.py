"""The part that policy-gradient algorithms share: a policy and a value function, how they act, and their values."""

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
from rl.returns import generalized_advantages
from rl.types import Carry, Experience, TimeStep


@flax.struct.dataclass
class PolicyAgent:
    """Everything that changes while a policy is learned.

    Attributes:
        params: parameters of the `ActorCritic` network.
        optimizer: state of the Optax optimizer.
        observations: `rl.normalize.Moments` of the observations; None if they are not normalized.
    """

    params: Any
    optimizer: Any
    observations: Any


class Extras(NamedTuple):
    """Quantities of the agent that acted, which learning needs.

    Attributes:
        log_prob: [time, env], float32; log-probability of each action taken.
        value: [time, env], float32; value of each observation acted on.
    """

    log_prob: Any
    value: Any


class Policy(NamedTuple):
    """A policy as pure functions.

    Attributes:
        init: `(key) -> agent`.
        apply: `(params, observation, action_mask) -> (distribution, values [batch])`, for observations [batch, ...]
            that have been through `seen`.
        seen: `(agent, observation) -> observation`, normalized if the agent normalizes; the network's input.
        act: as `Algorithm.act`, with `()` as extras.
        recall: as `Algorithm.recall`.
    """

    init: Callable[[Array], PolicyAgent]
    apply: Callable[..., tuple[Any, Array]]
    seen: Callable[[PolicyAgent, Any], Any]
    act: Callable[..., tuple[Any, Carry, Any]]
    recall: Callable[..., Extras]


def policy(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None,
    optimizer: optax.GradientTransformation,
    *,
    shared: bool,
    normalize_observations: bool,
) -> Policy:
    """A policy head and a value head, and the functions that act and learn with them.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: any space that `rl.distributions.head` takes.
        network: the torso, a module from [batch, ...] to [batch, features]; by default `rl.networks.torso`.
        optimizer: only its `init` is called here.
        shared: put both heads on one torso instead of one each.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for unsupported spaces.
    """
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
    """The agent after an update.

    Its normalizer is updated last, so that acting and learning on a rollout see the same normalized observations.

    Args:
        agent: the agent before.
        params: new parameters.
        optimizer: new optimizer state.
        experience: the rollout whose observations are added to the normalizer.
    """
    moments = agent.observations
    if moments is not None:
        moments = normalize.updated(moments, experience.timestep.observation, experience.valid)
    return PolicyAgent(params, optimizer, moments)


def next_values(values: Callable[[Any], Array], experience: Experience) -> Array:
    """The value of the observation after each step, [time, env], before any reset.

    Within an episode it is the value computed for acting one step later, `experience.extras.value`. It must be computed
    anew after the last step of the rollout and after truncations. If any earlier step was truncated, all values are
    computed anew, since a compiled program cannot select a varying number of steps. Values after a termination mean
    nothing: returns do not use them.

    Args:
        values: function from observations [batch, ...] to values [batch].
        experience: a rollout with `Extras`.
    """
    observation, known = experience.next_observation, experience.extras.value
    last = values(jax.tree.map(lambda leaf: leaf[-1], observation))
    shifted = jnp.concatenate([known[1:], last[None]])

    def compute() -> Array:
        return jnp.where(experience.truncated, values(flat(observation)).reshape(known.shape), shifted)

    return jax.lax.cond(experience.truncated[:-1].any(), compute, lambda: shifted)


def advantage_batch(
    pi: Policy, agent: PolicyAgent, experience: Experience, discount: float | Array, gae_lambda: float | Array
) -> dict[str, Any]:
    """The steps of a rollout as examples, [time * env, ...], for the losses of actor-critic methods.

    Args:
        pi: the policy.
        agent: the one that acted.
        experience: the rollout, with the extras of `pi.recall`.
        discount, gae_lambda: of `generalized_advantages`.

    Returns:
        "observation" (as the network sees it), "action_mask", "action", "log_prob", "value", "advantage", "target" (of
        the value) and "valid" (1.0, or 0.0 for a step that does not count).
    """
    value = experience.extras.value
    following = next_values(lambda x: pi.apply(agent.params, pi.seen(agent, x), None)[1], experience)
    advantages = generalized_advantages(
        experience.reward, value, following, experience.terminated, experience.truncated, discount, gae_lambda
    )
    return flat(
        {
            "observation": pi.seen(agent, experience.timestep.observation),
            "action_mask": experience.timestep.action_mask,
            "action": experience.action,
            "log_prob": experience.extras.log_prob,
            "value": value,
            "advantage": advantages,
            "target": advantages + value,
            "valid": experience.valid.astype(jnp.float32),
        }
    )


def flat(tree: Any) -> Any:
    """[time, env, ...] -> [time * env, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean and standard deviation; the deviation of a single number is 1.

    Args:
        x: numbers.
        weights: of the same shape; 1 for numbers that count, 0 for others.
    """
    count = jnp.maximum(weights.sum(), 1)
    mean = (weights * x).sum() / count
    deviation = jnp.sqrt((weights * (x - mean) ** 2).sum() / count)
    return mean, jnp.where(count > 1, deviation + 1e-8, 1.0)
