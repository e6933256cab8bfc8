"""Networks for agents: a torso turns a batch of observations into features, and the algorithm adds its heads.

A torso is any Flax module that takes a batch of observations from the space, not encoded, and returns
[batch, features].
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import gymnasium
import jax.numpy as jnp
from jaxtyping import Array, Float

import jdl
from rl.spaces import encode, is_image

_orthogonal = nn.initializers.orthogonal


class MLP(nn.Module):
    """Dense layers on encoded observations, initialized as in Huang et al. 2022, details 2 and 3.

    Attributes:
        encode: function from a batch of observations to vectors (`rl.spaces.encode`).
        widths: features of each layer.
        activation: applied after each layer.
    """

    encode: Callable[[Any], Array]
    widths: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = nn.tanh

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        x = self.encode(observation)
        for width in self.widths:
            x = self.activation(nn.Dense(width, kernel_init=_orthogonal(2**0.5))(x))
        return x


class NatureCNN(nn.Module):
    """The convolutional network of Mnih et al. 2015, for uint8 images [batch, height, width, channels].

    Attributes:
        width: features of the dense layer at the end.
        channels_first: images are [batch, channels, height, width], as Gymnasium stacks frames.
    """

    width: int = 512
    channels_first: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch features"]:
        x = jnp.moveaxis(observation, 1, -1) if self.channels_first else observation
        x = x.astype(jnp.float32) / 255
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            conv = jdl.nn.Conv(
                features, (size, size), (stride, stride), padding="VALID", kernel_init=_orthogonal(2**0.5)
            )
            x = nn.relu(conv(x))
        return nn.relu(nn.Dense(self.width, kernel_init=_orthogonal(2**0.5))(x.reshape(len(x), -1)))


def torso(
    space: gymnasium.Space, widths: Sequence[int] = (64, 64), activation: Callable[[Array], Array] = nn.tanh
) -> nn.Module:
    """A torso for an observation space: `NatureCNN` for uint8 images, `MLP` for all else.

    Images smaller than 36 x 36 are too small for these convolutions and get an `MLP` as well.

    Args:
        space: any space that `rl.spaces.encode` takes.
        widths: features of each layer of the `MLP`.
        activation: of the `MLP`.

    Raises:
        ValueError: for unsupported spaces.
    """
    if not is_image(space):
        return MLP(encode(space), tuple(widths), activation)
    return NatureCNN(channels_first=space.shape[0] < space.shape[-1])  # type: ignore[index]


class ActorCritic(nn.Module):
    """A policy head and a value head.

    Attributes:
        actor: torso of the policy head.
        critic: torso of the value head; None to use the actor's.
        outputs: number of outputs of the policy head.
        stds: number of standard deviations, whose logarithms are learned and the same in all states.
    """

    actor: nn.Module
    critic: nn.Module | None
    outputs: int
    stds: int

    @nn.compact
    def __call__(self, observation: Any) -> tuple[Array, Array, Array]:
        """Outputs of the policy [batch, outputs], log_std [stds], values [batch]."""
        features = self.actor(observation)
        outputs = nn.Dense(self.outputs, kernel_init=_orthogonal(0.01), name="policy")(features)
        log_std = self.param("log_std", nn.initializers.zeros, (self.stds,)) if self.stds else jnp.zeros(0)
        features = features if self.critic is None else self.critic(observation)
        value = nn.Dense(1, kernel_init=_orthogonal(1.0), name="value")(features)
        return outputs, log_std, value[..., 0]


class Values(nn.Module):
    """A value for each action.

    Attributes:
        torso: network from observations to features.
        actions: number of actions.
        dueling: compute state value and advantages separately and add them (Wang et al. 2016, equation 9).
    """

    torso: nn.Module
    actions: int
    dueling: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Float[Array, "batch actions"]:
        features = self.torso(observation)
        values = nn.Dense(self.actions, name="advantages" if self.dueling else "values")(features)
        if not self.dueling:
            return values
        return nn.Dense(1, name="value")(features) + values - values.mean(-1, keepdims=True)
