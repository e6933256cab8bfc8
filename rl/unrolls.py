"""Steps of rollouts that follow each other, as a learned model is trained on them: real, absorbed, or unknown.

From a step t of a rollout a model is unrolled over the actions that were taken; position k stands for step t + k.

    real        a step of the same episode: it has a policy, a value and a reward
    absorbed    after a termination, forever: value and reward are 0, and any action leads there again
    unknown     after a truncation or the end of the rollout: it counts nowhere
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Kept(NamedTuple):
    """What is kept of rollouts; leaves [rollout, time, env, ...], or without the first axis those of one.

    Attributes:
        observation: of each step, as the environment gave it.
        action: int32.
        reward: float32.
        value: float32; the target of the value of each observation.
        weights: [..., actions], float32; what the search made of the policy.
        allowed: [..., actions], bool.
        terminated: bool.
        truncated: bool.
        valid: bool; False for steps that count nowhere.
    """

    observation: Any
    action: Any
    reward: Any
    value: Any
    weights: Any
    allowed: Any
    terminated: Any
    truncated: Any
    valid: Any


class Unrolled(NamedTuple):
    """Examples for a learned model; "positions" is 1 + the number of steps.

    Attributes:
        observation: leaves [batch, ...]; where the model begins.
        action: [batch, steps], int32.
        reward: [batch, steps], float32; of each action.
        value: [batch, positions], float32.
        weights: [batch, positions, actions], float32.
        allowed: [batch, positions, actions], bool.
        real: [batch, positions], bool.
        known: [batch, positions], bool; real or absorbed.
    """

    observation: Any
    action: Int[Array, "batch steps"]
    reward: Float[Array, "batch steps"]
    value: Float[Array, "batch positions"]
    weights: Float[Array, "batch positions actions"]
    allowed: Bool[Array, "batch positions actions"]
    real: Bool[Array, "batch positions"]
    known: Bool[Array, "batch positions"]


def unrolled(kept: Kept, rollout: Array, time: Array, env: Array, steps: int) -> Unrolled:
    """The steps from some places on.

    Args:
        kept: rollouts, with all three axes.
        rollout: [batch], int32; the places on the first axis.
        time: [batch], int32; on the second.
        env: [batch], int32; on the third.
        steps: how many actions.
    """
    length = kept.action.shape[1]
    wanted = time[:, None] + jnp.arange(steps + 1)
    places = rollout[:, None], jnp.minimum(wanted, length - 1), env[:, None]
    at = jax.tree.map(lambda leaf: leaf[places], kept._replace(observation=()))
    goes_on = ~(at.terminated | at.truncated)
    real = _until_now(at.valid & (wanted < length), goes_on)
    over = jnp.cumsum(real & at.terminated, 1) > 0
    absorbed = jnp.concatenate([jnp.zeros_like(over[:, :1]), over[:, :-1]], 1)
    return Unrolled(
        observation=jax.tree.map(lambda leaf: leaf[rollout, time, env], kept.observation),
        action=at.action[:, :-1],
        reward=jnp.where(real, at.reward, 0)[:, :-1],
        value=jnp.where(real, at.value, 0),
        weights=at.weights,
        allowed=at.allowed,
        real=real,
        known=real | absorbed,
    )


def _until_now(there: Array, goes_on: Array) -> Array:
    """Whether a position is there and every one before it was, and went on."""
    before = jnp.concatenate([jnp.ones_like(goes_on[:, :1]), (there & goes_on)[:, :-1]], 1)
    return there & (jnp.cumprod(before, 1) > 0)
