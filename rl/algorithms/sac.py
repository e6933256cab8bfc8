"""Soft actor-critic (Haarnoja et al. 2018): the highest return and entropy together, learned from a replay."""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core.accumulators import Last, Mean
from jdl.core.update import apply_gradients
from rl.continuous import (
    LEAST,
    ValueRule,
    actor_critics,
    check_tau,
    every,
    explored,
    soft_actor_loss,
    weight_of_entropy,
)
from rl.distributions import Squashed
from rl.exploration import Noise, StateDependent
from rl.off_policy import Learning, ReplayAgent, check_counts, off_policy, own_part
from rl.replay.replay import Memory, replay
from rl.replay.transitions import Transitions
from rl.types import Algorithm, Carry, TimeStep


def sac(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    actor_optimizer: optax.GradientTransformation | None = None,
    temperature: float | None = None,
    target_entropy: float | None = None,
    critics: int = 2,
    num_steps: int = 1,
    updates_per_rollout: int | None = None,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    learning_starts: int = 100,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    policy_delay: int = 1,
    values: ValueRule = LEAST,
    n_step: int = 1,
    noise: Noise | StateDependent | None = None,
    stack: int = 1,
    memory: Memory = "device",
    normalize_observations: bool = False,
) -> Algorithm:
    """Soft actor-critic for Box actions, its temperature learned.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Box of floating-point numbers; bounds may differ by dimension, or be infinite.
        network: a torso (`rl.networks`), of which the actor and each critic have their own; by default 256-256 with
            ReLU, or the network of Mnih et al. 2015 for pictures.
        num_envs: how many environments the runner has.
        optimizer: of the critics; by default Adam(3e-4).
        actor_optimizer: of the actor and the temperature; by default the same as the critics'.
        temperature: α, the weight of the entropy; by default it is learned, from 1.
        target_entropy: the entropy that a learned temperature aims at, in nats, for actions in units of their bounds;
            by default minus the numbers in an action.
        critics: how many.
        num_steps: steps of each environment between two phases of learning.
        updates_per_rollout: batches in each phase; by default one for each step of all environments.
        batch_size: transitions per update.
        capacity: transitions kept; the oldest are overwritten.
        learning_starts: environment steps, with actions drawn uniformly, before the first update.
        discount: γ; may be traced (`jdl.population`).
        tau: share of the critics that goes into their targets at each update.
        policy_delay: updates of the critics for each update of the actor.
        values: what the critics learn; the least of their values counts, or quantiles (`rl.tqc`).
        n_step: rewards summed before bootstrapping.
        noise: added to the actions while exploring (`rl.exploration`), for rewards that independent noise never finds;
            `rl.exploration.state_dependent` takes the place of the policy's own noise.
        stack: frames in an observation, as for `rl.replay.replay`.
        memory: where the replay's observations lie, as for `rl.replay.replay`.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for other actions, for counts below 1, for `tau` and `temperature` out of range, and for a replay
            that does not fit in memory.

    Source: Haarnoja et al. 2018b, algorithm 1, with a target entropy of minus the dimensions (appendix D).
    """
    if optimizer is None:
        optimizer = optax.adam(3e-4)
    if actor_optimizer is None:
        actor_optimizer = optimizer
    check_counts("sac", policy_delay=policy_delay, critics=critics)
    check_tau("sac", tau)
    if temperature is not None and temperature < 0:
        raise ValueError(f"sac(temperature={temperature}): at least 0; None to learn it")
    dependent, noise = (noise, None) if isinstance(noise, StateDependent) else (None, noise)
    nets = actor_critics(
        observation_space, action_space, network, count=critics, outputs=values.outputs, exploration=dependent
    )
    buffer = replay(
        observation_space,
        action_space,
        capacity=capacity,
        num_envs=num_envs,
        n_step=n_step,
        stack=stack,
        memory=memory,
    )
    sought = -float(nets.bounds.size) if target_entropy is None else target_entropy

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        actor_params, critic_params = nets.init(key)
        actor = {"network": actor_params}
        if temperature is None:
            actor["log_temperature"] = jnp.zeros(())
        states = {"actor": actor_optimizer.init(actor), "critics": optimizer.init(critic_params)}
        return {"actor": actor, "critics": critic_params}, jax.tree.map(jnp.copy, critic_params), states

    def policy(actor: PyTree, observation: Any) -> Squashed:
        return Squashed(*nets.actor(actor["network"], observation), nets.bounds)

    def act(agent: ReplayAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry, Any]:
        distribution = policy(agent.params["actor"], timestep.observation)
        if greedy:
            return nets.bounds.action(distribution.mode()), carry, ()
        draw_key, key = jax.random.split(key)
        if dependent is None:
            units = distribution.sample(draw_key)
        else:
            carry, weights = dependent.step(carry, timestep.first, draw_key)
            network_params = agent.params["actor"]["network"]
            units = nets.bounds.unit(nets.actor(network_params, timestep.observation, weights)[0])
        action, carry = explored(nets.bounds, agent, units, timestep, carry, key, noise, learning_starts)
        return action, carry, ()

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, None, dict[str, Any]]:
        params, target, states, count = learning
        actor, critic_params = params["actor"], params["critics"]
        noises = jax.random.normal(key, (2, batch_size, nets.bounds.size))
        units, log_prob = policy(actor, batch.next_observation).from_noise(noises[0])
        following = values.following(nets.critics(target, batch.next_observation, units))
        following = following - (weight_of_entropy(actor, temperature) * log_prob)[:, None]
        goals = batch.reward[:, None] + batch.discount[:, None] * following
        part = own_part({"transitions": batch, "goals": goals, "noise": noises[1]}, batch_size)

        grads, loss, measured = jdl.gradients(critic_loss, critic_params, part, key, separable=True)
        critic_params, critic_state = apply_gradients(
            optimizer, grads, states["critics"], critic_params, loss, critic_loss, part, key
        )

        def value(observation: Any, units: Array) -> Array:
            return values.value(nets.critics(critic_params, observation, units))

        actor_loss = soft_actor_loss(policy, value, temperature, sought)

        def improve() -> tuple[PyTree, Any, dict[str, Mean]]:
            grads, mean, measured = jdl.gradients(actor_loss, actor, part, key, separable=True)
            return *apply_gradients(
                actor_optimizer, grads, states["actor"], actor, mean, actor_loss, part, key
            ), measured

        count = count + 1
        actor, actor_state, improved = every(policy_delay, count, improve, (actor, states["actor"]))
        learning = Learning(
            {"actor": actor, "critics": critic_params},
            optax.incremental_update(critic_params, target, tau),
            {"actor": actor_state, "critics": critic_state},
            count,
        )
        return learning, None, {"loss": loss, **measured, **improved}

    def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        outputs = nets.critics(params, batch.observation, nets.bounds.units(batch.action))
        weight = batch.weight.sum()
        value = Mean((values.value(outputs) * batch.weight).sum(), weight)
        return (values.loss(outputs, part["goals"]) * batch.weight).sum(), weight, {"value": value}

    def initial_carry(num_envs: int) -> Carry:
        if dependent is not None:
            return dependent.init(num_envs, *jax.eval_shape(nets.init, jax.random.key(0))[0]["log_std"].shape)
        return () if noise is None else noise.init(num_envs, nets.bounds.size)

    def also(agent: ReplayAgent) -> dict[str, Last]:
        return {"temperature": Last(jnp.asarray(weight_of_entropy(agent.params["actor"], temperature), jnp.float32))}

    return off_policy(
        "sac",
        observation_space,
        buffer,
        init=init,
        act=act,
        learn=learn,
        initial_carry=initial_carry,
        also=also,
        num_steps=num_steps,
        updates_per_rollout=num_steps * num_envs if updates_per_rollout is None else updates_per_rollout,
        batch_size=batch_size,
        learning_starts=learning_starts,
        discount=discount,
        normalize_observations=normalize_observations,
    )
