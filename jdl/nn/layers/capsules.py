"""Capsules: groups of units whose length says whether something is there, whose direction says how it lies.

Source: Sabour, Frosst and Hinton, "Dynamic routing between capsules", 2017.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images


def length(x: Float[Array, "*axes features"], epsilon: float = 1e-7) -> Float[Array, "*axes"]:
    """The Euclidean norm, with a gradient of zero at zero."""
    return jnp.sqrt(jnp.square(x).sum(-1) + epsilon)


def squash(x: Float[Array, "*axes features"], epsilon: float = 1e-7) -> Float[Array, "*axes features"]:
    """Shrink long vectors to just below length 1, short ones to almost nothing (equation 1)."""
    squared = jnp.square(x).sum(-1, keepdims=True)
    return squared / (1 + squared) * x / jnp.sqrt(squared + epsilon)


def route(
    votes: Float[Array, "batch inputs outputs features"], iterations: int
) -> Float[Array, "batch outputs features"]:
    """Dynamic routing by agreement (procedure 1): an input sends its vote where it agrees with the others.

    Only the last iteration passes gradients to the votes; the agreements before are looked at, not learnt through.
    """
    looked_at = jax.lax.stop_gradient(votes)
    logits = jnp.zeros(votes.shape[:3], votes.dtype)
    for _ in range(iterations - 1):
        outputs = squash(jnp.einsum("bio,biof->bof", jax.nn.softmax(logits, 2), looked_at))
        logits = logits + jnp.einsum("biof,bof->bio", looked_at, outputs)
    return squash(jnp.einsum("bio,biof->bof", jax.nn.softmax(logits, 2), votes))


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are capsules, one kind after the other."""

    kinds: int
    features: int
    window: int = 9
    stride: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch capsules features"]:
        """Squashed."""
        window, strides = (self.window, self.window), (self.stride, self.stride)
        x = Conv(self.kinds * self.features, window, strides, padding="VALID")(x)
        return squash(x.reshape(len(x), -1, self.features))


class Capsules(nn.Module):
    """A layer of capsules, fully connected by a matrix for each pair, routed by agreement."""

    num_capsules: int
    features: int
    iterations: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs input_features"]) -> Float[Array, "batch capsules features"]:
        """Squashed."""
        shape = (x.shape[1], self.num_capsules, x.shape[2], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        # A product for each input capsule, all capsules that it votes for in one: written as one einsum over [b, i, o]
        # XLA's CPU compiler takes twice as long.
        each = kernel.swapaxes(1, 2).reshape(x.shape[1], x.shape[2], -1)
        votes = jnp.einsum("ibf,ifg->ibg", x.swapaxes(0, 1), each).swapaxes(0, 1)
        return route(votes.reshape(*x.shape[:2], self.num_capsules, self.features), self.iterations)


class CapsNetOutputs(NamedTuple):
    """What a capsule network says of an image."""

    lengths: Float[Array, "batch classes"]  # how sure it is of each class
    reconstruction: Float[Array, "batch height width channels"] | None


class CapsNet(nn.Module):
    """A convolution, primary capsules, a capsule for each class, and a decoder that draws the image from one of them.

    The defaults are the paper's (section 4). decoder: widths of its hidden layers; none without.
    """

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
        """labels: one-hot; the class whose capsule draws the image (in training the true one), else the longest."""
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
