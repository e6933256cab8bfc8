"""REINFORCE (Williams 1992): the gradient of the log-probability of each action, times the return that followed."""

from typing import Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Mean
from jdl.core.update import apply_gradients
from rl.policy import PolicyAgent, moments, policy, updated
from rl.renamed import renamed
from rl.returns import lambda_returns
from rl.types import Algorithm, Experience


@renamed(
    rollout="num_steps",
    normalise_returns="normalize_returns",
    normalise_observations="normalize_observations",
)
def reinforce(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    baseline: bool = True,
    num_steps: int = 1024,
    discount: float = 0.99,
    entropy_weight: float = 0.0,
    normalize_returns: bool = True,
    normalize_observations: bool = False,
) -> Algorithm:
    """REINFORCE for Discrete, MultiDiscrete, MultiBinary and Box actions, with or without a baseline.

    Returns are Monte-Carlo returns without a bootstrap: a step counts only if its episode ends within the rollout, so a
    rollout must be longer than an episode.

    Args:
        observation_space: see `rl.ppo`.
        action_space: see `rl.ppo`.
        network: see `rl.ppo`.
        optimizer: by default Adam(1e-3).
        baseline: subtract a learned value of the state from the returns.
        num_steps: steps of each environment per rollout and update.
        discount: γ.
        entropy_weight: weight of the entropy bonus.
        normalize_returns: to mean 0 and standard deviation 1 over the rollout, after the baseline.
        normalize_observations: by running moments; real-valued parts alone.

    Raises:
        ValueError: for unsupported spaces, and for `num_steps` below 1.

    Source: Sutton and Barto, sections 13.3 and 13.4.
    """
    if optimizer is None:
        optimizer = optax.adam(1e-3)
    if num_steps < 1:
        raise ValueError(
            f"reinforce(num_steps={num_steps}): at least 1; longer than an episode, which must end within it"
        )
    pi = policy(
        observation_space,
        action_space,
        network,
        optimizer,
        shared=False,
        normalize_observations=normalize_observations,
    )

    def update(agent: PolicyAgent, experience: Experience, key: Array) -> tuple[PolicyAgent, dict[str, Mean]]:
        boundary = experience.terminated | experience.truncated
        returned = lambda_returns(
            experience.reward, jnp.zeros_like(experience.reward), boundary, jnp.zeros_like(boundary), discount, 1.0
        )
        counted = (experience.valid & _ends_later(boundary)).astype(jnp.float32)
        gain = returned - experience.extras.value if baseline else returned
        center, scale = moments(gain, counted) if normalize_returns else (0.0, 1.0)
        batch = pi.examples(
            {
                "observation": pi.seen(agent, experience.timestep.observation),
                "action_mask": experience.timestep.action_mask,
                "action": experience.action,
                "gain": (gain - center) / scale,
                "return": returned,
                "valid": counted,
            }
        )
        batch |= pi.given(experience)
        own = seam.current().share(jnp.arange(len(batch["gain"])))  # under `jdl.pmap`, this replica's part
        part = jax.tree.map(lambda leaf: leaf[own], batch)
        grads, mean, measured = jdl.gradients(loss, agent.params, part, key, separable=True)
        params, optimizer_state = apply_gradients(
            optimizer, grads, agent.optimizer, agent.params, mean, loss, part, key
        )
        return updated(agent, params, optimizer_state, experience), measured

    def loss(params: PyTree, part: dict[str, Any], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        distribution, value = pi.replayed(params, part)
        each = {
            "policy_loss": -distribution.log_prob(part["action"]) * part["gain"],
            "entropy": distribution.entropy(),
        }
        if baseline:
            each["value_loss"] = 0.5 * (value - part["return"]) ** 2
        weight = part["valid"].sum()
        means = {name: Mean((x * part["valid"]).sum(), weight) for name, x in each.items()}
        total = means["policy_loss"].total - entropy_weight * means["entropy"].total
        return total + (means["value_loss"].total if baseline else 0.0), weight, means

    return Algorithm(pi.init, pi.initial_carry, pi.act, update, num_steps, pi.recall)


def _ends_later(boundary: Bool[Array, "time env"]) -> Bool[Array, "time env"]:
    """Whether the episode of each step ends at that step or at a later step of the rollout."""
    return jax.lax.cummax(boundary.astype(jnp.int32), reverse=True) > 0
