"""Estimates of a policy's value from recorded experience, without playing: fitted Q evaluation, importance sampling."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jdl.core.learner import fold
from rl.off_policy import check_counts
from rl.offline.dataset import Dataset
from rl.offline.networks import offline_critics
from rl.types import Agent, Algorithm, TimeStep


def fitted_q_evaluation(
    algorithm: Algorithm,
    agents: Agent,
    dataset: Dataset,
    network: nn.Module | None = None,
    *,
    key: Array,
    optimizer: optax.GradientTransformation | None = None,
    updates: int = 10_000,
    batch_size: int = 256,
    discount: float = 0.99,
    tau: float = 0.005,
) -> Float[np.ndarray, " runs"]:
    """The discounted return that greedy agents are expected to have where the recorded episodes begin.

    A critic learns the value of each agent's policy from the recorded transitions:

        q(s, a)  →  r + γ (1 − terminated) q_target(s', π(s'))

    Args:
        algorithm: the algorithm that trained the agents, without memory.
        agents: leaves [runs, ...].
        dataset: recorded episodes.
        network: a torso of the critic (`rl.networks`), by default 256-256 with ReLU.
        key: a random key.
        optimizer: by default Adam(3e-4).
        updates: of each critic.
        batch_size: transitions per update.
        discount: γ.
        tau: share of the critic that goes into its target at each update.

    Raises:
        ValueError: for counts below 1, and for agents with a memory.

    Source: Le, Voloshin and Yue 2019, section 4.2; with a target that follows by a share.
    """
    check_counts("fitted_q_evaluation", updates=updates, batch_size=batch_size)
    if jax.tree.leaves(algorithm.initial_carry(1)):
        raise ValueError("fitted_q_evaluation asks for actions in any order, and these agents have a memory")
    rule = optax.adam(3e-4) if optimizer is None else optimizer
    critics = offline_critics(dataset.observation_space, dataset.action_space, network, 1)

    def action(agent: Agent, observation: Any, key: Array) -> Any:
        begins = jnp.zeros(len(jax.tree.leaves(observation)[0]), bool)
        return algorithm.act(agent, (), TimeStep(observation, begins), key, True)[0]

    def one(agent: Agent, key: Array, data: dict[str, Any], first: Any) -> Array:
        params = critics.init(fold(key, "init"))

        def update(now: tuple[Any, Any, Any], key: Array) -> tuple[tuple[Any, Any, Any], None]:
            params, target, state = now
            drawn = jax.random.randint(fold(key, "draw"), (batch_size,), 0, len(data["reward"]))
            batch = jax.tree.map(lambda leaf: leaf[drawn], data)
            chosen = action(agent, batch["next_observation"], fold(key, "act"))
            following = critics.value(target, batch["next_observation"], chosen)[0]
            goals = batch["reward"] + discount * jnp.where(batch["terminated"], 0, following)

            def loss(params: Any) -> Array:
                return optax.l2_loss(critics.value(params, batch["observation"], batch["action"])[0], goals).mean()

            changes, state = rule.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, changes)
            return (params, optax.incremental_update(params, target, tau), state), None

        keys = jax.random.split(fold(key, "updates"), updates)
        (params, *_), _ = jax.lax.scan(update, (params, params, rule.init(params)), keys)
        return critics.value(params, first, action(agent, first, key))[0].mean()

    learned = {name: jnp.asarray(dataset.transitions[name]) for name in ("reward", "terminated", "action")}
    for name in ("observation", "next_observation"):
        learned[name] = jax.tree.map(jnp.asarray, dataset.transitions[name])
    count = len(jax.tree.leaves(agents)[0])
    keys, first = jax.random.split(key, count), jax.tree.map(jnp.asarray, dataset.first_observations)

    @jax.jit
    def all_of_them(agents: Agent, keys: Array, data: dict[str, Any], first: Any) -> Array:
        return jax.lax.map(lambda pair: one(pair[0], pair[1], data, first), (agents, keys))

    agents = jax.device_put(jax.device_get(agents))
    return np.asarray(all_of_them(agents, keys, learned, first))


class WeightedEstimate(NamedTuple):
    """An estimate from weighted episodes.

    Attributes:
        value: the discounted return.
        episodes: how many episodes of equal weight would be as good; few mean that the estimate is mostly chance.
    """

    value: float
    episodes: float


def weighted_importance_sampling(
    dataset: Dataset, log_ratio: Float[np.ndarray, " step"], discount: float = 0.99
) -> WeightedEstimate:
    """The discounted return of a policy, from episodes of another one, each weighted by how likely the policy makes it.

        ŵᵢ = Π_t π(a_t | s_t) / μ(a_t | s_t),    value = Σᵢ ŵᵢ Gᵢ / Σᵢ ŵᵢ

    Args:
        dataset: recorded episodes.
        log_ratio: log π(a | s) − log μ(a | s) of each recorded step: the policy's log-probability minus that of the
            policy that was recorded. Minus infinity where the policy never does what was recorded.
        discount: γ.

    Raises:
        ValueError: for another number of ratios than steps, for NaN, and where the policy makes every episode
            impossible.

    Source: Precup, Sutton and Singh 2000, section 3.
    """
    ratio = np.asarray(log_ratio, np.float64)
    if ratio.shape != dataset.reward.shape or np.isnan(ratio).any():
        raise ValueError(
            f"log_ratio has the shape {ratio.shape} and {int(np.isnan(ratio).sum())} NaN; give one number for each of "
            f"the {len(dataset.reward)} steps"
        )
    time = dataset.transitions["time"]
    returns = np.add.reduceat(dataset.reward * discount**time, dataset.starts)
    log_weight = np.add.reduceat(ratio, dataset.starts)
    if log_weight.max() == -np.inf:
        raise ValueError(
            "the policy never does what was recorded, in any of the episodes; give it some probability for every "
            "action, such as 0.01 shared by all"
        )
    weight = np.exp(log_weight - log_weight.max())
    weight = weight / weight.sum()
    return WeightedEstimate(float(weight @ returns), float(1 / (weight**2).sum()))
