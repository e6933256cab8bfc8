"""Conservative Q-learning (Kumar et al. 2020): values of actions that were not recorded are pushed down.

    L(θ) = E[(q(s, a) − y)²] / 2 + α E[ log Σ_a' exp q(s, a') − q(s, a) ]

The sum is over all choices, or for Box actions an average over random actions and those of the policy, each divided by
its probability density.
"""

import math
from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces
from jaxtyping import Array, PyTree

import jdl
from jdl.core.accumulators import Mean
from jdl.core.update import apply_gradients
from rl.continuous import LEAST, actor_critics, check_tau, soft_actor_loss
from rl.distributions import Squashed
from rl.networks import Values
from rl.normalize import Moments
from rl.off_policy import Learning, check_counts, own_part
from rl.offline.learner import offline
from rl.offline.networks import body
from rl.replay.transitions import Transitions
from rl.spaces import zeros
from rl.types import Algorithm, Carry, TimeStep


def cql(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    actor_optimizer: optax.GradientTransformation | None = None,
    alpha: float = 5.0,
    actions: int = 10,
    target_entropy: float | None = None,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    moments: Moments | None = None,
) -> Algorithm:
    """Conservative Q-learning on soft actor-critic, for Box actions with bounds.

    Args:
        observation_space: see `rl.sac`.
        action_space: Box of floating-point numbers, with finite bounds.
        network: see `rl.sac`.
        optimizer: of the critics; by default Adam(3e-4).
        actor_optimizer: of the actor and the temperature; by default Adam(1e-4).
        alpha: α, the weight of the conservative part.
        actions: random actions, and actions of the policy at this and at the next observation, as many of each.
        target_entropy: see `rl.sac`.
        discount: γ; may be traced.
        tau: share of the critics that goes into their targets at each update.
        moments: of the recorded observations, which normalize them (`Dataset.moments()`).

    Raises:
        ValueError: for other actions, and for numbers out of range.

    Source: Kumar et al. 2020, equation 4 and appendix F; goals without an entropy.
    """
    optimizer = optax.adam(3e-4) if optimizer is None else optimizer
    actor_optimizer = optax.adam(1e-4) if actor_optimizer is None else actor_optimizer
    check_counts("cql", actions=actions)
    check_tau("cql", tau)
    _check_alpha("cql", alpha)
    if isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the action space {action_space} is not Box; use rl.offline.discrete_cql")
    nets = actor_critics(observation_space, action_space, network, count=2)
    box = nets.bounds
    if not (jnp.isfinite(box.low) & jnp.isfinite(box.high)).all():
        raise ValueError(f"cql draws actions between bounds, and {action_space} has infinite ones; use rl.offline.iql")
    sought = -float(box.size) if target_entropy is None else target_entropy

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        actor_params, critics = nets.init(key)
        actor = {"network": actor_params, "log_temperature": jnp.zeros(())}
        states = {"actor": actor_optimizer.init(actor), "critics": optimizer.init(critics)}
        return {"actor": actor, "critics": critics}, jax.tree.map(jnp.copy, critics), states

    def policy(actor: PyTree, observation: Any) -> Squashed:
        return Squashed(*nets.actor(actor["network"], observation), box)

    def act(params: PyTree, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry]:
        distribution = policy(params["actor"], timestep.observation)
        return box.action(distribution.mode() if greedy else distribution.sample(key)), carry

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, dict[str, Any]]:
        params, target, states, count = learning
        actor, critics = params["actor"], params["critics"]
        size, keys = len(batch.reward), jax.random.split(key, 3)
        noises = jax.random.normal(keys[0], (2, size, box.size))
        units, _ = policy(actor, batch.next_observation).from_noise(noises[0])
        following = LEAST.following(nets.critics(target, batch.next_observation, units))
        goals = batch.reward[:, None] + batch.discount[:, None] * following
        others, log_density = proposals(actor, batch, keys[1:])
        part = {"transitions": batch, "goals": goals, "noise": noises[1], "others": others, "log_density": log_density}
        part = own_part(part, size)

        grads, loss, measured = jdl.gradients(critic_loss, critics, part, key, separable=True)
        critics, critic_state = apply_gradients(
            optimizer, grads, states["critics"], critics, loss, critic_loss, part, key
        )

        def value(observation: Any, units: Array) -> Array:
            return LEAST.value(nets.critics(critics, observation, units))

        actor_loss = soft_actor_loss(policy, value, None, sought)
        grads, mean, improved = jdl.gradients(actor_loss, actor, part, key, separable=True)
        actor, actor_state = apply_gradients(
            actor_optimizer, grads, states["actor"], actor, mean, actor_loss, part, key
        )
        params = {"actor": actor, "critics": critics}
        target = optax.incremental_update(critics, target, tau)
        learning = Learning(params, target, {"actor": actor_state, "critics": critic_state}, count + 1)
        return learning, {"loss": loss, **measured, **improved}

    def proposals(actor: PyTree, batch: Transitions, keys: Array) -> tuple[Array, Array]:
        """Actions beside the recorded ones [batch, 3 * actions, size], and the logarithms of their densities."""
        size = len(batch.reward)
        uniform = jax.random.uniform(keys[0], (size, actions, box.size), minval=-1.0)
        units, densities = [uniform], [jnp.full((size, actions), -box.size * math.log(2))]
        noises = jax.random.normal(keys[1], (2, actions, size, box.size))
        for noise, observation in zip(noises, (batch.observation, batch.next_observation), strict=True):
            drawn, log_prob = policy(actor, observation).from_noise(noise)
            units.append(jnp.swapaxes(drawn, 0, 1))
            densities.append(log_prob.T)
        return jnp.concatenate(units, 1), jnp.concatenate(densities, 1)

    def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch, others = part["transitions"], part["others"]
        outputs = nets.critics(params, batch.observation, box.units(batch.action))
        size, count = others.shape[:2]
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), batch.observation)
        values = nets.critics(params, repeated, others.reshape(size * count, -1)).reshape(2, size, count)
        everywhere = jax.nn.logsumexp(values - part["log_density"], -1) - math.log(count)
        gap = (everywhere - outputs[..., 0]).sum(0)
        total = batch.weight.sum()
        each = LEAST.loss(outputs, part["goals"]) + alpha * gap
        means = {"value": LEAST.value(outputs), "conservative_gap": gap / 2}
        return each.sum(), total, {name: Mean(mean.sum(), total) for name, mean in means.items()}

    return offline("cql", init=init, act=act, learn=learn, discount=discount, moments=moments)


def discrete_cql(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    alpha: float = 1.0,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    moments: Moments | None = None,
) -> Algorithm:
    """Conservative Q-learning on double Q-learning, for Discrete actions.

    Args:
        observation_space: see `rl.dqn`.
        action_space: Discrete.
        network: a torso (`rl.networks`), by default 256-256 with ReLU.
        optimizer: by default Adam(3e-4).
        alpha: α, the weight of the conservative part; 0 is double Q-learning.
        discount: γ; may be traced.
        tau: share of the values that goes into their targets at each update.
        moments: of the recorded observations, which normalize them (`Dataset.moments()`).

    Raises:
        ValueError: for other actions, and for numbers out of range.

    Source: Kumar et al. 2020, equation 4; van Hasselt et al. 2016.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the action space {action_space} is not Discrete; use rl.offline.cql")
    optimizer = optax.adam(3e-4) if optimizer is None else optimizer
    check_tau("discrete_cql", tau)
    _check_alpha("discrete_cql", alpha)
    model = Values(body(observation_space, network), int(action_space.n))

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        params = model.init(key, zeros(observation_space, 1), None)["params"]
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params)

    def values(params: PyTree, observation: Any) -> Array:
        return model.apply({"params": params}, observation, None)[..., 0]  # type: ignore[index]

    def act(params: PyTree, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry]:
        now = values(params, timestep.observation)
        if timestep.action_mask is not None:
            now = jnp.where(timestep.action_mask, now, -jnp.inf)
        return now.argmax(-1), carry

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, dict[str, Any]]:
        best = values(learning.params, batch.next_observation).argmax(-1)
        following = _taken(values(learning.target, batch.next_observation), best)
        goals = batch.reward + batch.discount * following
        part = own_part({"transitions": batch, "goals": goals}, len(batch.reward))
        grads, mean, measured = jdl.gradients(loss, learning.params, part, key, separable=True)
        params, state = apply_gradients(optimizer, grads, learning.optimizer, learning.params, mean, loss, part, key)
        target = optax.incremental_update(params, learning.target, tau)
        return Learning(params, target, state, learning.updates + 1), {"loss": mean, **measured}

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        now = values(params, batch.observation)
        taken, total = _taken(now, batch.action), batch.weight.sum()
        gap = jax.nn.logsumexp(now, -1) - taken
        each = optax.l2_loss(taken, part["goals"]) + alpha * gap
        means = {"value": taken, "conservative_gap": gap}
        return each.sum(), total, {name: Mean(mean.sum(), total) for name, mean in means.items()}

    return offline("discrete_cql", init=init, act=act, learn=learn, discount=discount, moments=moments)


def _taken(values: Array, action: Array) -> Array:
    return jnp.take_along_axis(values, action[:, None].astype(int), -1)[:, 0]


def _check_alpha(name: str, alpha: float) -> None:
    if alpha < 0:
        raise ValueError(f"{name}(alpha={alpha}): at least 0")
