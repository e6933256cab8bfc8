"""TD3+BC (Fujimoto and Gu 2021): TD3 whose actor also imitates what was recorded."""

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
from rl.continuous import LEAST, actor_critics, check_tau, every
from rl.normalize import Moments
from rl.off_policy import Learning, check_counts, own_part
from rl.offline.learner import offline
from rl.replay.transitions import Transitions
from rl.types import Algorithm, Carry, TimeStep


def td3_bc(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    alpha: float = 2.5,
    target_noise: float = 0.2,
    target_noise_limit: float = 0.5,
    policy_delay: int = 2,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    moments: Moments | None = None,
) -> Algorithm:
    """TD3+BC for Box actions.

    Args:
        observation_space: see `rl.sac`.
        action_space: see `rl.sac`.
        network: see `rl.sac`.
        optimizer: of the actor and the critics, each with a state of its own; by default Adam(3e-4).
        alpha: α, the weight of the values beside the imitation; 0 is behavior cloning.
        target_noise: see `rl.td3`.
        target_noise_limit: see `rl.td3`.
        policy_delay: see `rl.td3`.
        discount: γ; may be traced.
        tau: see `rl.td3`.
        moments: of the recorded observations, which normalize them (`Dataset.moments()`), as in the paper.

    Raises:
        ValueError: for other actions, and for `tau` and `alpha` out of range.

    Source: Fujimoto and Gu 2021, equations 3 and 5; section 4.
    """
    optimizer = optax.adam(3e-4) if optimizer is None else optimizer
    check_counts("td3_bc", policy_delay=policy_delay)
    check_tau("td3_bc", tau)
    if alpha < 0:
        raise ValueError(f"td3_bc(alpha={alpha}): at least 0")
    nets = actor_critics(observation_space, action_space, network, count=2, spread=False)
    box = nets.bounds

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        actor, critics = nets.init(key)
        params = {"actor": actor, "critics": critics}
        states = {name: optimizer.init(part) for name, part in params.items()}
        return params, jax.tree.map(jnp.copy, params), states

    def policy(actor: PyTree, observation: Any) -> Array:
        return box.unit(nets.actor(actor, observation)[0])

    def act(params: PyTree, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry]:
        return box.action(policy(params["actor"], timestep.observation)), carry

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, dict[str, Any]]:
        params, target, states, count = learning
        actor, critics = params["actor"], params["critics"]
        smoothing = target_noise * jax.random.normal(key, (len(batch.reward), box.size))
        units = policy(target["actor"], batch.next_observation)
        units = box.clipped(units + jnp.clip(smoothing, -target_noise_limit, target_noise_limit))
        following = LEAST.following(nets.critics(target["critics"], batch.next_observation, units))
        goals = batch.reward[:, None] + batch.discount[:, None] * following
        part = own_part({"transitions": batch, "goals": goals}, len(batch.reward))
        grads, loss, measured = jdl.gradients(critic_loss, critics, part, key, separable=True)
        critics, critic_state = apply_gradients(
            optimizer, grads, states["critics"], critics, loss, critic_loss, part, key
        )

        # λ is a mean over the whole batch, wherever its parts are: the losses weigh by it what each part has summed.
        values = nets.critics(critics, batch.observation, policy(actor, batch.observation))[0, :, 0]
        weight = alpha / jnp.abs(values).mean()

        def actor_loss(actor: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
            batch = part["transitions"]
            units = policy(actor, batch.observation)
            value = nets.critics(critics, batch.observation, units)[0, :, 0]
            error = ((units - box.units(batch.action)) ** 2).mean(-1)
            total = batch.weight.sum()
            return (error - weight * value).sum(), total, {"imitation_error": Mean(error.sum(), total)}

        def improve() -> tuple[PyTree, Any, dict[str, Mean]]:
            grads, mean, measured = jdl.gradients(actor_loss, actor, part, key, separable=True)
            after, state = apply_gradients(optimizer, grads, states["actor"], actor, mean, actor_loss, part, key)
            return after, state, measured

        count = count + 1
        actor, actor_state, improved = every(policy_delay, count, improve, (actor, states["actor"]))
        params = {"actor": actor, "critics": critics}
        share = jnp.where(count % policy_delay == 0, tau, 0.0)
        target = optax.incremental_update(params, target, share)  # type: ignore[arg-type]
        learning = Learning(params, target, {"actor": actor_state, "critics": critic_state}, count)
        return learning, {"loss": loss, **measured, **improved}

    def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        outputs = nets.critics(params, batch.observation, box.units(batch.action))
        total = batch.weight.sum()
        return LEAST.loss(outputs, part["goals"]).sum(), total, {"value": Mean(LEAST.value(outputs).sum(), total)}

    return offline("td3_bc", init=init, act=act, learn=learn, discount=discount, moments=moments)
