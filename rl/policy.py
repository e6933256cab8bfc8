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
from rl.memory import RecurrentActorCritic, Remembering
from rl.networks import ActorCritic, independent, torso
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
        carry: leaves [time, env, ...]; the memory after each step, `()` without memory.
    """

    log_prob: Any
    value: Any
    carry: Any = ()


class Policy(NamedTuple):
    """A policy as pure functions, with or without memory.

    The examples that it learns from are steps, or with a memory the sequences of environments: `examples` arranges a
    rollout, [time, env, ...], as [time * env, ...], or as [env, time, ...].

    Attributes:
        init: `(key) -> agent`.
        initial_carry: as `Algorithm.initial_carry`.
        seen: `(agent, observation) -> observation`, normalized if the agent normalizes; the network's input.
        act: as `Algorithm.act`, with `()` as extras.
        recall: as `Algorithm.recall`.
        after: `(agent, experience) -> [time, env]`, the value of the observation after each step, before any reset.
        examples: `(tree) -> tree`, leaves [time, env, ...] arranged as examples.
        given: `(experience) -> dict`, what `replayed` needs beside the observations and masks of a batch.
        replayed: `(params, batch) -> (distribution, values)`, for a batch of examples.
    """

    init: Callable[[Array], PolicyAgent]
    initial_carry: Callable[[int], Carry]
    seen: Callable[[PolicyAgent, Any], Any]
    act: Callable[..., tuple[Any, Carry, Any]]
    recall: Callable[..., Extras]
    after: Callable[[PolicyAgent, Experience], Array]
    examples: Callable[[Any], Any]
    given: Callable[[Experience], dict[str, Any]]
    replayed: Callable[[Any, dict[str, Any]], tuple[Any, Array]]


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
        network: the torso, a module from [batch, ...] to [batch, features], or one with a memory (`rl.memory`); by
            default `rl.networks.torso`.
        optimizer: only its `init` is called here.
        shared: put both heads on one torso instead of one each.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for unsupported spaces.
    """
    body = torso(observation_space) if network is None else network
    outputs = head(action_space)
    recurrent = isinstance(body, Remembering)
    kind = RecurrentActorCritic if recurrent else ActorCritic
    model: Any = kind(body, None if shared else independent(body), outputs.outputs, outputs.stds)

    def init(key: Array) -> PolicyAgent:
        example = spaces.zeros(observation_space, 1)
        if recurrent:
            sequence = jax.tree.map(lambda leaf: leaf[None], example)
            params = model.init(key, model.initial_carry(1), sequence, jnp.ones((1, 1), bool))["params"]
        else:
            params = model.init(key, example)["params"]
        one = jax.tree.map(lambda leaf: leaf[0], example)
        tracked = spaces.real_valued(observation_space)
        moments = normalize.initial(one, tracked) if normalize_observations else None
        return PolicyAgent(params, optimizer.init(params), moments)

    def seen(agent: PolicyAgent, observation: Any) -> Any:
        return observation if agent.observations is None else normalize.normalized(agent.observations, observation)

    def at_once(params: Any, observation: Any, action_mask: Any) -> tuple[Any, Array]:
        numbers, log_std, value = cast(tuple, model.apply({"params": params}, observation))
        return outputs.make(numbers, log_std, action_mask), value

    def in_turn(params: Any, carry: Carry, observation: Any, first: Any) -> tuple[Any, Array, Array, Array]:
        """Carries after each step, outputs, log_std and values, for leaves [time, env, ...]."""
        return model.apply({"params": params}, carry, observation, first)

    def act(
        agent: PolicyAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Any, Carry, tuple[()]]:
        observation = seen(agent, timestep.observation)
        if recurrent:
            sequence = jax.tree.map(lambda leaf: leaf[None], (observation, timestep.first))
            carries, numbers, log_std, _ = in_turn(agent.params, carry, *sequence)
            carry = jax.tree.map(lambda leaf: leaf[0], carries)
            distribution = outputs.make(numbers[0], log_std, timestep.action_mask)
        else:
            distribution, _ = at_once(agent.params, observation, timestep.action_mask)
        return distribution.mode() if greedy else distribution.sample(key), carry, ()

    def recall(agent: PolicyAgent, carry: Carry, timestep: TimeStep, action: Any) -> Extras:
        if recurrent:
            observation = seen(agent, timestep.observation)
            carries, numbers, log_std, value = in_turn(agent.params, carry, observation, timestep.first)
            distribution = outputs.make(numbers, log_std, timestep.action_mask)
            return Extras(distribution.log_prob(action), value, carries)
        shape = jnp.shape(timestep.first)
        timestep, action = flat((timestep, action))
        distribution, value = at_once(agent.params, seen(agent, timestep.observation), timestep.action_mask)
        return Extras(distribution.log_prob(action).reshape(shape), value.reshape(shape))

    def after(agent: PolicyAgent, experience: Experience) -> Array:
        def value(observation: Any, carry: Carry) -> Array:
            observation = seen(agent, observation)
            if not recurrent:
                return at_once(agent.params, observation, None)[1]
            goes_on = jnp.zeros((1, len(jax.tree.leaves(observation)[0])), bool)
            sequence = jax.tree.map(lambda leaf: leaf[None], observation)
            return in_turn(agent.params, carry, sequence, goes_on)[3][0]

        return next_values(value, experience)

    def given(experience: Experience) -> dict[str, Any]:
        return {"carry": experience.carry, "first": by_env(experience.timestep.first)} if recurrent else {}

    def replayed(params: Any, batch: dict[str, Any]) -> tuple[Any, Array]:
        if not recurrent:
            return at_once(params, batch["observation"], batch["action_mask"])
        sequences = by_env((batch["observation"], batch["first"]))  # and back: [time, env, ...]
        _, numbers, log_std, value = in_turn(params, batch["carry"], *sequences)
        return outputs.make(by_env(numbers), log_std, batch["action_mask"]), by_env(value)

    return Policy(
        init,
        model.initial_carry if recurrent else lambda num_envs: (),
        seen,
        act,
        recall,
        after,
        by_env if recurrent else flat,
        given,
        replayed,
    )


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


def next_values(values: Callable[[Any, Carry], Array], experience: Experience) -> Array:
    """The value of the observation after each step, [time, env], before any reset.

    Within an episode it is the value computed for acting one step later, `experience.extras.value`. It must be computed
    anew after the last step of the rollout and after truncations. If any earlier step was truncated, all values are
    computed anew, since a compiled program cannot select a varying number of steps. Values after a termination mean
    nothing: returns do not use them.

    Args:
        values: function from observations [batch, ...] and what is remembered of the steps before to values [batch].
        experience: a rollout with `Extras`.
    """
    observation, known, carry = experience.next_observation, experience.extras.value, experience.extras.carry
    last = values(*jax.tree.map(lambda leaf: leaf[-1], (observation, carry)))
    shifted = jnp.concatenate([known[1:], last[None]])

    def compute() -> Array:
        return jnp.where(experience.truncated, values(*flat((observation, carry))).reshape(known.shape), shifted)

    return jax.lax.cond(experience.truncated[:-1].any(), compute, lambda: shifted)


def advantage_batch(
    pi: Policy, agent: PolicyAgent, experience: Experience, discount: float | Array, gae_lambda: float | Array
) -> dict[str, Any]:
    """A rollout as examples for the losses of actor-critic methods (`Policy.examples`).

    Args:
        pi: the policy.
        agent: the one that acted.
        experience: the rollout, with the extras of `pi.recall`.
        discount, gae_lambda: of `generalized_advantages`.

    Returns:
        "observation" (as the network sees it), "action_mask", "action", "log_prob", "value", "advantage", "target" (of
        the value) and "valid" (1.0, or 0.0 for a step that does not count), and what `Policy.given` adds.
    """
    value, following = experience.extras.value, pi.after(agent, experience)
    advantages = generalized_advantages(
        experience.reward, value, following, experience.terminated, experience.truncated, discount, gae_lambda
    )
    batch = {
        "observation": pi.seen(agent, experience.timestep.observation),
        "action_mask": experience.timestep.action_mask,
        "action": experience.action,
        "log_prob": experience.extras.log_prob,
        "value": value,
        "advantage": advantages,
        "target": advantages + value,
        "valid": experience.valid.astype(jnp.float32),
    }
    return {**pi.examples(batch), **pi.given(experience)}


def flat(tree: Any) -> Any:
    """[time, env, ...] -> [time * env, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def by_env(tree: Any) -> Any:
    """[time, env, ...] -> [env, time, ...], and back."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


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
