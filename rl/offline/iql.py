"""Implicit Q-learning (Kostrikov et al. 2022): values of the best recorded actions, without asking for any other."""

from typing import Any, cast

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

import jdl
from jdl.core.accumulators import Mean
from jdl.core.update import apply_gradients
from rl.continuous import check_tau
from rl.normalize import Moments
from rl.off_policy import Learning, own_part
from rl.offline.learner import offline
from rl.offline.networks import StateValue, body, offline_critics, offline_policy
from rl.replay.transitions import Transitions
from rl.spaces import zeros
from rl.types import Algorithm, Carry, TimeStep


def iql(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    actor_optimizer: optax.GradientTransformation | None = None,
    expectile: float = 0.7,
    beta: float = 3.0,
    limit: float = 100.0,
    discount: float | Array = 0.99,
    tau: float = 0.005,
    moments: Moments | None = None,
) -> Algorithm:
    """Implicit Q-learning for Discrete or Box actions.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete, or Box of floating-point numbers.
        network: a torso (`rl.networks`), by default 256-256 with ReLU.
        optimizer: of the values; by default Adam(3e-4).
        actor_optimizer: by default the same as that of the values; the paper decays it by a cosine.
        expectile: τ of the state values: 0.5 is the mean over the recorded actions, towards 1 their best.
        beta: β, how much advantages weigh the recorded actions; 0 is behavior cloning.
        limit: of these weights.
        discount: γ; may be traced.
        tau: share of the critics that goes into their targets at each update.
        moments: of the recorded observations, which normalize them (`Dataset.moments()`).

    Raises:
        ValueError: for other actions, and for numbers out of range.

    Source: Kostrikov et al. 2022, equations 5 to 7.
    """
    optimizer = optax.adam(3e-4) if optimizer is None else optimizer
    actor_optimizer = optimizer if actor_optimizer is None else actor_optimizer
    check_tau("iql", tau)
    if not 0 < expectile < 1:
        raise ValueError(f"iql(expectile={expectile}): between 0 and 1")
    if beta < 0 or limit <= 0:
        raise ValueError(f"iql(beta={beta}, limit={limit}): beta at least 0, limit above 0")
    policy = offline_policy(observation_space, action_space, network)
    critics = offline_critics(observation_space, action_space, network, 2)
    state_value = StateValue(body(observation_space, network))

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        keys = jax.random.split(key, 3)
        value = state_value.init(keys[2], zeros(observation_space, 1))["params"]
        params = {"actor": policy.init(keys[0]), "critics": critics.init(keys[1]), "value": value}
        states = {name: (actor_optimizer if name == "actor" else optimizer).init(part) for name, part in params.items()}
        return params, jax.tree.map(jnp.copy, params["critics"]), states

    def act(params: PyTree, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry]:
        return policy.act(params["actor"], timestep.observation, key, greedy), carry

    def values(params: PyTree, observation: Any) -> Float[Array, " batch"]:
        return cast(Array, state_value.apply({"params": params}, observation))

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, dict[str, Any]]:
        params, target, states, count = learning
        best = critics.value(target, batch.observation, batch.action).min(0)
        goals = batch.reward + batch.discount * values(params["value"], batch.next_observation)
        advantage = best - values(params["value"], batch.observation)
        weight = jnp.minimum(jnp.exp(beta * advantage), limit)
        part = own_part({"transitions": batch, "best": best, "goals": goals, "weight": weight}, len(batch.reward))
        new, metrics = {}, {}
        for name, loss in (("value", value_loss), ("critics", critic_loss), ("actor", actor_loss)):
            rule = actor_optimizer if name == "actor" else optimizer
            grads, mean, measured = jdl.gradients(loss, params[name], part, key, separable=True)
            new[name] = apply_gradients(rule, grads, states[name], params[name], mean, loss, part, key)
            metrics |= {f"{name}_loss": mean, **measured}
        params, states = ({name: pair[i] for name, pair in new.items()} for i in (0, 1))
        target = optax.incremental_update(params["critics"], target, tau)
        return Learning(params, target, states, count + 1), metrics

    def value_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        value = values(params, batch.observation)
        error, total = part["best"] - value, batch.weight.sum()
        return (jnp.abs(expectile - (error < 0)) * error**2).sum(), total, {"value": Mean(value.sum(), total)}

    def critic_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        error = critics.value(params, batch.observation, batch.action) - part["goals"]
        return (error**2).mean(0).sum(), batch.weight.sum(), {}

    def actor_loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        batch = part["transitions"]
        log_prob, total = policy.log_prob(params, batch.observation, batch.action), batch.weight.sum()
        return -(part["weight"] * log_prob).sum(), total, {"weight": Mean(part["weight"].sum(), total)}

    return offline("iql", init=init, act=act, learn=learn, discount=discount, moments=moments)
