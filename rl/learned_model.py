"""The network of MuZero: a model of the environment in states of its own, which a search can step through.

    s⁰ = representation(observation)
    sᵏ, rᵏ = dynamics(sᵏ⁻¹, aᵏ)
    pᵏ, vᵏ = prediction(sᵏ)

Source: Schrittwieser et al. 2020.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

# `network.apply({"params": params}, *arrays, method=name)`
Apply = Callable[..., Any]


class LearnedModel(nn.Module):
    """Representation, dynamics and prediction; rewards and values are logits of bins (`rl.two_hot`).

    The last layers begin at zero: an untrained model expects nothing, and prefers no action.

    Attributes:
        torso: network from observations to features.
        actions: number of actions.
        bins: outputs for a reward, and for a value.
        width: numbers in a state, and features of the hidden layers.
    """

    torso: nn.Module
    actions: int
    bins: int
    width: int = 64

    def setup(self) -> None:
        last = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)
        self.first_state = nn.Dense(self.width)
        self.transition, self.next_state = nn.Dense(self.width), nn.Dense(self.width)
        self.reward_hidden, self.reward = nn.Dense(self.width), last(self.bins)
        self.policy_hidden, self.policy = nn.Dense(self.width), last(self.actions)
        self.value_hidden, self.value = nn.Dense(self.width), last(self.bins)

    def __call__(self, observation: Any) -> tuple[Array, Array, Array]:
        """All parts once, so that `init` makes the parameters of each."""
        state = self.represent(observation)
        _, reward = self.step(state, jnp.zeros(state.shape[:-1], jnp.int32))
        return *self.predict(state), reward

    def represent(self, observation: Any) -> Float[Array, "batch width"]:
        """The state of an observation.

        Args:
            observation: leaves [batch, ...].
        """
        return _scaled(self.first_state(self.torso(observation)))

    def step(
        self, state: Float[Array, "*batch width"], action: Int[Array, "*batch"]
    ) -> tuple[Float[Array, "*batch width"], Float[Array, "*batch bins"]]:
        """The state after an action, and the reward on the way.

        Args:
            state: of the model.
            action: counted from 0.
        """
        both = jnp.concatenate([state, jax.nn.one_hot(action, self.actions, dtype=state.dtype)], -1)
        after = _scaled(state + self.next_state(nn.relu(self.transition(both))))
        return after, self.reward(nn.relu(self.reward_hidden(both)))

    def predict(
        self, state: Float[Array, "*batch width"]
    ) -> tuple[Float[Array, "*batch actions"], Float[Array, "*batch bins"]]:
        """Logits of the policy, and the value.

        Args:
            state: of the model.
        """
        return self.policy(nn.relu(self.policy_hidden(state))), self.value(nn.relu(self.value_hidden(state)))


def applied(model: LearnedModel) -> Callable[[PyTree], tuple[Apply, Apply, Apply]]:
    """The three parts of a model as functions of its parameters.

    Args:
        model: the network.

    Returns:
        `(params) -> (represent, step, predict)`.
    """

    def parts(params: PyTree) -> tuple[Apply, Apply, Apply]:
        def part(name: str) -> Apply:
            return lambda *arrays: model.apply({"params": params}, *arrays, method=name)

        return part("represent"), part("step"), part("predict")

    return parts


def _scaled(state: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """States from 0 to 1, as actions are (appendix G)."""
    low, high = state.min(-1, keepdims=True), state.max(-1, keepdims=True)
    return (state - low) / jnp.maximum(high - low, 1e-5)
