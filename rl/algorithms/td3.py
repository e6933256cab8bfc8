"""Twin delayed deep deterministic policy gradients (Fujimoto et al. 2018), and DDPG, which they mend."""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core.accumulators import Mean
from jdl.core.update import apply_gradients
from rl import exploration
from rl.continuous import LEAST, actor_critics, check_tau, every, explored
from rl.exploration import Noise
from rl.off_policy import Learning, ReplayAgent, check_counts, off_policy, own_part
from rl.replay.replay import Memory, replay
from rl.replay.transitions import Transitions
from rl.types import Algorithm, Carry, TimeStep

_NOISE = exploration.normal(0.1)


def td3(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    actor_optimizer: optax.GradientTransformation | None = None,
    noise: Noise | None = _NOISE,
    target_noise: float = 0.2,
    target_noise_limit: float = 0.5,
    policy_delay: int = 2,
    critics: int = 2,
    num_steps: int = 1,
    updates_per_rollout: int | None = None,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    learning_starts: int = 1000,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    n_step: int = 1,
    stack: int = 1,
    memory: Memory = "device",
    normalize_observations: bool = False,
) -> Algorithm:
    """TD3 for Box actions: a policy without randomness that climbs the value of its action.

    Args:
        observation_space: see `rl.sac`.
        action_space: see `rl.sac`.
        network: see `rl.sac`.
        num_envs: see `rl.sac`.
        optimizer: of the critics; by default Adam(1e-3).
        actor_optimizer: of the actor; by default the same as the critics'.
        noise: added to the actions while exploring (`rl.exploration`).
        target_noise: standard deviation of the noise in the goals' actions, in units of the bounds.
        target_noise_limit: beyond which that noise is clipped.
        policy_delay: updates of the critics for each update of the actor and of the targets.
        critics: how many; the least of their values counts.
        num_steps: see `rl.sac`.
        updates_per_rollout: see `rl.sac`.
        batch_size: see `rl.sac`.
        capacity: see `rl.sac`.
        learning_starts: see `rl.sac`.
        discount: see `rl.sac`.
        tau: share of the actor and the critics that goes into their targets at each update of the actor.
        n_step: see `rl.sac`.
        stack: see `rl.sac`.
        memory: see `rl.sac`.
        normalize_observations: see `rl.sac`.

    Raises:
        ValueError: as `rl.sac`.

    Source: Fujimoto et al. 2018, algorithm 1.
    """
    if optimizer is None:
        optimizer = optax.adam(1e-3)
    if actor_optimizer is None:
        actor_optimizer = optimizer
    check_counts("td3", policy_delay=policy_delay, critics=critics)
    check_tau("td3", tau)
    nets = actor_critics(observation_space, action_space, network, count=critics, spread=False)
    box = nets.bounds
    buffer = replay(
        observation_space,
        action_space,
        capacity=capacity,
        num_envs=num_envs,
        n_step=n_step,
        stack=stack,
        memory=memory,
    )

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        actor, critic_params = nets.init(key)
        params = {"actor": actor, "critics": critic_params}
        states = {"actor": actor_optimizer.init(actor), "critics": optimizer.init(critic_params)}
        return params, jax.tree.map(jnp.copy, params), states

    def policy(actor: PyTree, observation: Any) -> Array:
        return box.unit(nets.actor(actor, observation)[0])

    def act(agent: ReplayAgent, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry, Any]:
        units = policy(agent.params["actor"], timestep.observation)
        if greedy:
            return box.action(units), carry, ()
        action, carry = explored(box, agent, units, timestep, carry, key, noise, learning_starts)
        return action, carry, ()

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, None, dict[str, Any]]:
        params, target, states, count = learning
        actor, critic_params = params["actor"], params["critics"]
        smoothing = target_noise * jax.random.normal(key, (batch_size, box.size))
        units = policy(target["actor"], batch.next_observation)
        units = box.clipped(units + jnp.clip(smoothing, -target_noise_limit, target_noise_limit))
        following = LEAST.following(nets.critics(target["critics"], batch.next_observation, units))
        goals = batch.reward[:, None] + batch.discount[:, None] * following
        part = own_part({"transitions": batch, "goals": goals}, batch_size)

        grads, loss, measured = jdl.gradients(critic_loss, critic_params, part, key, separable=True)
        critic_params, critic_state = apply_gradients(
            optimizer, grads, states["critics"], critic_params, loss, critic_loss, part, key
        )

        def actor_loss(actor: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array]:
            batch = part["transitions"]
            outputs = nets.critics(critic_params, batch.observation, policy(actor, batch.observation))
            return -(outputs[0, :, 0] * batch.weight).sum(), batch.weight.sum()

        def improve() -> tuple[PyTree, Any, dict[str, Mean]]:
            grads, mean, _ = jdl.gradients(actor_loss, actor, part, key, separable=True)
            after, state = apply_gradients(actor_optimizer, grads, states["actor"], actor, mean, actor_loss, part, key)
            return after, state, {"actor_loss": mean}

        count = count + 1
        actor, actor_state, improved = every(policy_delay, count, improve, (actor, states["actor"]))
        params = {"actor": actor, "critics": critic_params}
        share = jnp.where(count % policy_delay == 0, tau, 0.0)
        target = optax.incremental_update(params, target, share)  # type: ignore[arg-type]
        learning = Learning(params, target, {"actor": actor_state, "critics": critic_state}, count)
        return learning, None, {"loss": loss, **measured, **improved}

    def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        outputs = nets.critics(params, batch.observation, box.units(batch.action))
        weight = batch.weight.sum()
        value = Mean((LEAST.value(outputs) * batch.weight).sum(), weight)
        return (LEAST.loss(outputs, part["goals"]) * batch.weight).sum(), weight, {"value": value}

    return off_policy(
        "td3",
        observation_space,
        buffer,
        init=init,
        act=act,
        learn=learn,
        initial_carry=lambda envs: () if noise is None else noise.init(envs, box.size),
        num_steps=num_steps,
        updates_per_rollout=num_steps * num_envs if updates_per_rollout is None else updates_per_rollout,
        batch_size=batch_size,
        learning_starts=learning_starts,
        discount=discount,
        normalize_observations=normalize_observations,
    )


def ddpg(
    observation_space: gymnasium.Space, action_space: gymnasium.Space, network: nn.Module | None = None, **options: Any
) -> Algorithm:
    """DDPG for Box actions: `rl.td3` with one critic, an actor that learns at every update, and plain goals.

    Args:
        observation_space: see `rl.sac`.
        action_space: see `rl.sac`.
        network: see `rl.sac`.
        **options: see `rl.td3`; `num_envs` is required.

    Raises:
        ValueError: as `rl.sac`.

    Source: Lillicrap et al. 2016, algorithm 1.
    """
    plain = {"critics": 1, "policy_delay": 1, "target_noise": 0.0}
    return td3(observation_space, action_space, network, **{**plain, **options})
