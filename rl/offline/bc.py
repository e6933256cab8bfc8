"""Behavior cloning: a policy that does what was recorded."""

from typing import Any

import flax.linen as nn
import gymnasium
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core.update import apply_gradients
from rl.normalize import Moments
from rl.off_policy import Learning, own_part
from rl.offline.learner import offline
from rl.offline.networks import offline_policy
from rl.replay.transitions import Transitions
from rl.types import Algorithm, Carry, TimeStep


def bc(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    moments: Moments | None = None,
) -> Algorithm:
    """Behavior cloning, by the log-likelihood of the recorded actions.

    Args:
        observation_space: any space that `rl.networks.torso` or the given network takes.
        action_space: any space that `rl.distributions.head` takes.
        network: a torso (`rl.networks`), by default 256-256 with ReLU.
        optimizer: by default Adam(3e-4).
        moments: of the recorded observations, which normalize them (`Dataset.moments()`).

    Raises:
        ValueError: for unsupported spaces.

    Source: Pomerleau 1991.
    """
    optimizer = optax.adam(3e-4) if optimizer is None else optimizer
    policy = offline_policy(observation_space, action_space, network)

    def init(key: Array) -> tuple[PyTree, PyTree, Any]:
        params = policy.init(key)
        return params, (), optimizer.init(params)

    def act(params: PyTree, carry: Carry, timestep: TimeStep, key: Array, greedy: bool) -> tuple[Any, Carry]:
        return policy.act(params, timestep.observation, key, greedy), carry

    def learn(learning: Learning, batch: Transitions, key: Array) -> tuple[Learning, dict[str, Any]]:
        part = own_part(batch, len(batch.reward))
        grads, mean, _ = jdl.gradients(loss, learning.params, part, key, separable=True)
        params, state = apply_gradients(optimizer, grads, learning.optimizer, learning.params, mean, loss, part, key)
        return Learning(params, (), state, learning.updates + 1), {"loss": mean}

    def loss(params: PyTree, batch: Transitions, key: Array) -> tuple[Array, Array]:
        return -policy.log_prob(params, batch.observation, batch.action).sum(), batch.weight.sum()

    return offline("bc", init=init, act=act, learn=learn, discount=1.0, moments=moments)
