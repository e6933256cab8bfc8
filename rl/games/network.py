"""Networks for board games: from what the player to move sees to a policy and a value."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

import jdl


class PolicyValue(nn.Module):
    """A policy head and a value head on one torso.

    Attributes:
        torso: module from observations [batch, ...] to features [batch, features].
        actions: number of actions.
    """

    torso: nn.Module
    actions: int

    @nn.compact
    def __call__(self, observation: Float[Array, "batch ..."]) -> tuple[Array, Array]:
        """Logits [batch, actions], and values [batch] between -1 and 1."""
        features = self.torso(observation)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        logits = nn.Dense(self.actions, kernel_init=small, name="policy")(features)
        return logits, jnp.tanh(nn.Dense(1, kernel_init=small, name="value")(features)[..., 0])


class BoardMLP(nn.Module):
    """Dense layers on the whole board; all but the first add to what comes in (residual).

    Attributes:
        widths: features of each layer.
    """

    widths: Sequence[int] = (256, 256, 256)

    @nn.compact
    def __call__(self, observation: Float[Array, "batch ..."]) -> Float[Array, "batch features"]:
        x = observation.reshape(len(observation), -1)
        for width in self.widths:
            y = nn.relu(nn.Dense(width)(nn.LayerNorm()(x) if x.shape[-1] == width else x))
            x = x + y if x.shape == y.shape else y
        return x


class BoardCNN(nn.Module):
    """A residual convolutional tower on a board, without batch statistics, so that search and training see the same.

    Attributes:
        features: channels.
        blocks: residual blocks of two convolutions each.
        width: features of the dense layer at the end.
    """

    features: int = 32
    blocks: int = 2
    width: int = 128

    @nn.compact
    def __call__(self, observation: Float[Array, "batch rows columns planes"]) -> Float[Array, "batch width"]:
        x = nn.relu(jdl.nn.Conv(self.features, (3, 3))(observation))
        for block in range(self.blocks):
            y = nn.relu(jdl.nn.Conv(self.features, (3, 3))(x))
            # A block begins as the identity, in the place of normalization (De and Smith 2020).
            gain = self.param(f"gain_{block}", nn.initializers.zeros, ())
            x = nn.relu(x + gain * jdl.nn.Conv(self.features, (3, 3))(y))
        return nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
