"""Synchronous advantage actor-critic (Mnih et al. 2016, section 4), with one update per rollout."""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Mean
from jdl.core.update import apply_gradients
from rl.policy import PolicyAgent, advantage_batch, moments, policy, updated
from rl.renamed import renamed
from rl.types import Algorithm, Experience


@renamed(
    rollout="num_steps",
    trace="gae_lambda",
    normalise_advantages="normalize_advantages",
    normalise_observations="normalize_observations",
)
def a2c(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    shared: bool = False,
    num_steps: int = 5,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    entropy_weight: float = 0.0,
    value_weight: float = 0.5,
    normalize_advantages: bool = False,
    normalize_observations: bool = False,
) -> Algorithm:
    """A2C for Discrete, MultiDiscrete, MultiBinary and Box actions.

    Args:
        observation_space: see `rl.ppo`.
        action_space: see `rl.ppo`.
        network: see `rl.ppo`.
        optimizer: by default RMSProp(7e-4, decay 0.99), gradients clipped to a global norm of 0.5.
        shared: see `rl.ppo`.
        num_steps: steps of each environment per rollout and update.
        discount: γ.
        gae_lambda: λ of the advantages; 1 uses all rewards of the rollout before bootstrapping.
        entropy_weight: weight of the entropy bonus.
        value_weight: weight of the value loss.
        normalize_advantages: to mean 0 and standard deviation 1 over the rollout.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for unsupported spaces, and for `num_steps` below 1.
    """
    if optimizer is None:
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(7e-4, decay=0.99, eps=1e-5))
    if num_steps < 1:
        raise ValueError(f"a2c(num_steps={num_steps}): at least 1")
    pi = policy(
        observation_space,
        action_space,
        network,
        optimizer,
        shared=shared,
        normalize_observations=normalize_observations,
    )

    def update(agent: PolicyAgent, experience: Experience, key: Array) -> tuple[PolicyAgent, dict[str, Mean]]:
        batch = advantage_batch(pi, agent, experience, discount, gae_lambda)
        if normalize_advantages:
            center, scale = moments(batch["advantage"], batch["valid"])
            batch["advantage"] = (batch["advantage"] - center) / scale
        own = seam.current().share(jnp.arange(len(batch["value"])))  # under `jdl.pmap`, this replica's part
        part = jax.tree.map(lambda leaf: leaf[own], batch)
        grads, mean, measured = jdl.gradients(loss, agent.params, part, key, separable=True)
        params, optimizer_state = apply_gradients(
            optimizer, grads, agent.optimizer, agent.params, mean, loss, part, key
        )
        return updated(agent, params, optimizer_state, experience), measured

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        distribution, value = pi.replayed(params, part)
        each = {
            "policy_loss": -distribution.log_prob(part["action"]) * part["advantage"],
            "value_loss": 0.5 * (value - part["target"]) ** 2,
            "entropy": distribution.entropy(),
        }
        weight = part["valid"].sum()
        means = {name: Mean((x * part["valid"]).sum(), weight) for name, x in each.items()}
        total = means["policy_loss"].total + value_weight * means["value_loss"].total
        return total - entropy_weight * means["entropy"].total, weight, means

    return Algorithm(pi.init, pi.initial_carry, pi.act, update, num_steps, pi.recall)
