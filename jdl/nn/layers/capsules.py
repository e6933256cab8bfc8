"""Capsules: groups of units whose length says whether an entity is present and whose direction describes its pose.

Source: Sabour, Frosst and Hinton, "Dynamic routing between capsules", 2017.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images


def length(x: Float[Array, "*axes features"], epsilon: float = 1e-7) -> Float[Array, "*axes"]:
    """Euclidean norm over the last axis, with a gradient of zero at zero."""
    return jnp.sqrt(jnp.square(x).sum(-1) + epsilon)


def squash(x: Float[Array, "*axes features"], epsilon: float = 1e-7) -> Float[Array, "*axes features"]:
    """Shrink long vectors to just below length 1, and short ones to almost nothing (equation 1).

        squash(x) = ‖x‖² / (1 + ‖x‖²) · x / ‖x‖

    Args:
        x: vectors along the last axis.
        epsilon: added to ‖x‖², so that the gradient at zero is finite.
    """
    squared = jnp.square(x).sum(-1, keepdims=True)
    return squared / (1 + squared) * x / jnp.sqrt(squared + epsilon)


def route(
    votes: Float[Array, "batch inputs outputs features"], iterations: int
) -> Float[Array, "batch outputs features"]:
    """Dynamic routing by agreement (procedure 1): each input sends its vote to outputs where it agrees with the others.

    Only the last iteration passes gradients to the votes; in the earlier iterations they are constants.

    Args:
        votes: what each input capsule predicts for each output capsule
        iterations: number of routing iterations
    """
    looked_at = jax.lax.stop_gradient(votes)
    logits = jnp.zeros(votes.shape[:3], votes.dtype)
    for _ in range(iterations - 1):
        outputs = squash(jnp.einsum("bio,biof->bof", jax.nn.softmax(logits, 2), looked_at))
        logits = logits + jnp.einsum("biof,bof->bio", looked_at, outputs)
    return squash(jnp.einsum("bio,biof->bof", jax.nn.softmax(logits, 2), votes))


class PrimaryCapsules(nn.Module):
    """Convolution whose channels are split into capsules, one kind after the other.

    Attributes:
        kinds: number of capsules at each position
        features: units of a capsule
        window: side of the kernel
        stride: stride along both axes
    """

    kinds: int
    features: int
    window: int = 9
    stride: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch capsules features"]:
        """Return squashed capsules."""
        window, strides = (self.window, self.window), (self.stride, self.stride)
        x = Conv(self.kinds * self.features, window, strides, padding="VALID")(x)
        return squash(x.reshape(len(x), -1, self.features))


class Capsules(nn.Module):
    """Fully connected layer of capsules, with a matrix for each pair of input and output, routed by agreement.

    Attributes:
        num_capsules: number of output capsules
        features: units of an output capsule
        iterations: number of routing iterations
    """

    num_capsules: int
    features: int
    iterations: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs input_features"]) -> Float[Array, "batch capsules features"]:
        """Return squashed capsules."""
        shape = (x.shape[1], self.num_capsules, x.shape[2], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        # One product for each input capsule, which covers all capsules that it votes for. For a single einsum over
        # [b, i, o] XLA's CPU compiler takes twice as long.
        each = kernel.swapaxes(1, 2).reshape(x.shape[1], x.shape[2], -1)
        votes = jnp.einsum("ibf,ifg->ibg", x.swapaxes(0, 1), each).swapaxes(0, 1)
        return route(votes.reshape(*x.shape[:2], self.num_capsules, self.features), self.iterations)


class CapsNetOutputs(NamedTuple):
    """Outputs of a capsule network.

    Attributes:
        lengths: length of each class's capsule, the confidence in that class
        reconstruction: the image as decoded from one capsule; None without a decoder
    """

    lengths: Float[Array, "batch classes"]
    reconstruction: Float[Array, "batch height width channels"] | None


class CapsNet(nn.Module):
    """Convolution, primary capsules, one capsule per class, and a decoder that reconstructs the image from one.

    The defaults are the paper's (section 4).

    Attributes:
        channels: channels of the first convolution
        window: side of both kernels
        kinds: number of primary capsules at each position
        primary_features: units of a primary capsule
        features: units of a class capsule
        iterations: number of routing iterations
        decoder: widths of the decoder's hidden layers; empty for no decoder
    """

    example_shape: ClassVar[tuple[int, ...]] = (28, 28, 1)  # the input that `jdl summary` assumes

    num_classes: int
    channels: int = 256
    window: int = 9
    kinds: int = 32
    primary_features: int = 8
    features: int = 16
    iterations: int = 3
    decoder: Sequence[int] = (512, 1024)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Float[Array, "batch classes"] | None = None,
    ) -> CapsNetOutputs:
        """Classify images, and reconstruct each from the capsule of one class.

        Args:
            labels: one-hot classes to reconstruct from, in training the true ones; by default those with the longest
                capsules
        """
        check_images(self, images, "Conv_0")
        window = (self.window, self.window)
        x = nn.relu(Conv(self.channels, window, padding="VALID")(images))
        x = PrimaryCapsules(self.kinds, self.primary_features, self.window)(x)
        x = Capsules(self.num_classes, self.features, self.iterations)(x)
        lengths = length(x)
        if not self.decoder:
            return CapsNetOutputs(lengths, None)
        chosen = jax.nn.one_hot(lengths.argmax(-1), self.num_classes) if labels is None else labels
        drawn = (x * chosen[..., None]).reshape(len(x), -1)
        for features in self.decoder:
            drawn = nn.relu(nn.Dense(features)(drawn))
        drawn = nn.Dense(images[0].size)(drawn)
        return CapsNetOutputs(lengths, drawn.reshape(images.shape))
