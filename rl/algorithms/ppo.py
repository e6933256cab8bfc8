"""Proximal policy optimization (Schulman et al. 2017), with the details of Huang et al. 2022."""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Mean, merge_axis
from jdl.core.update import apply_gradients
from jdl.data.shuffle import shuffled_index
from rl.policy import PolicyAgent, advantage_batch, moments, policy, updated
from rl.renamed import renamed
from rl.types import Algorithm, Experience


@renamed(
    rollout="num_steps",
    trace="gae_lambda",
    normalise_advantages="normalize_advantages",
    normalise_observations="normalize_observations",
)
def ppo(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    shared: bool = False,
    num_steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    clip_value: float | None = None,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    normalize_advantages: bool = True,
    normalize_observations: bool = False,
) -> Algorithm:
    """PPO for Discrete, MultiDiscrete, MultiBinary and Box actions.

    `discount`, `gae_lambda`, the clips and the weights may be traced (`jdl.population`).

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        network: a torso (`rl.networks`), by default 64-64 with tanh, or the network of Mnih et al. 2015 for images.
        optimizer: by default Adam(2.5e-4), gradients clipped to a global norm of 0.5.
        shared: one torso for actor and critic instead of one each.
        num_steps: steps of each environment per rollout.
        epochs: passes over each rollout.
        minibatches: updates per epoch.
        discount: γ.
        gae_lambda: λ of the advantages.
        clip: probability ratios are clipped to [1 - clip, 1 + clip].
        clip_value: changes of the value are clipped to [-clip_value, clip_value] in the value loss; None for no
            clipping.
        entropy_weight: weight of the entropy bonus.
        value_weight: weight of the value loss.
        normalize_advantages: to mean 0 and standard deviation 1 over each minibatch.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for unsupported spaces, for counts below 1, and for more minibatches than a rollout has steps.
    """
    if optimizer is None:
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))
    for name, value in (("num_steps", num_steps), ("epochs", epochs), ("minibatches", minibatches)):
        if value < 1:
            raise ValueError(f"ppo({name}={value}): at least 1")
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
        size = len(batch["value"])
        if minibatches > size:
            what = "environments, whose steps stay together with a memory" if pi.initial_carry(1) else "steps in all"
            raise ValueError(f"ppo(minibatches={minibatches}): a rollout has {size} {what}; at most that many")
        number = jnp.arange(epochs * minibatches)
        positions = number[:, None] % minibatches * (size // minibatches) + jnp.arange(size // minibatches)
        # Compute a permutation instead of sorting random keys: on a CPU sorting takes longer than the updates.
        shuffled = jax.vmap(lambda e, p: shuffled_index(key, e, p, size))(number // minibatches, positions)

        def minibatch(state: tuple[PyTree, Any], place: tuple[Array, Array]) -> tuple[tuple[PyTree, Any], Any]:
            params, optimizer_state = state
            indices, number = place
            center, scale = 0.0, 1.0
            if normalize_advantages:
                center, scale = moments(batch["advantage"][indices], batch["valid"][indices])
            own = seam.current().share(indices)  # under `jdl.pmap`, this replica's part of the minibatch
            part = jax.tree.map(lambda leaf: leaf[own], batch)
            part["advantage"] = (part["advantage"] - center) / scale
            own_key = jax.random.fold_in(key, number)
            grads, mean, measured = jdl.gradients(loss, params, part, own_key, separable=True)
            return apply_gradients(optimizer, grads, optimizer_state, params, mean, loss, part, own_key), measured

        (params, optimizer_state), measured = jax.lax.scan(
            minibatch, (agent.params, agent.optimizer), (shuffled, number)
        )
        return updated(agent, params, optimizer_state, experience), merge_axis(measured, 0)

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        distribution, value = pi.replayed(params, part)
        log_ratio = distribution.log_prob(part["action"]) - part["log_prob"]
        ratio = jnp.exp(log_ratio)
        gain = jnp.minimum(ratio * part["advantage"], jnp.clip(ratio, 1 - clip, 1 + clip) * part["advantage"])
        error = (value - part["target"]) ** 2
        if clip_value is not None:
            near = part["value"] + jnp.clip(value - part["value"], -clip_value, clip_value)
            error = jnp.maximum(error, (near - part["target"]) ** 2)
        entropy = distribution.entropy()
        each = {
            "policy_loss": -gain,
            "value_loss": 0.5 * error,
            "entropy": entropy,
            "approximate_kl": ratio - 1 - log_ratio,
            "clip_fraction": (jnp.abs(ratio - 1) > clip).astype(jnp.float32),
        }
        weight = part["valid"].sum()
        means = {name: Mean((x * part["valid"]).sum(), weight) for name, x in each.items()}
        total = means["policy_loss"].total + value_weight * means["value_loss"].total
        return total - entropy_weight * means["entropy"].total, weight, means

    return Algorithm(pi.init, pi.initial_carry, pi.act, update, num_steps, pi.recall)
