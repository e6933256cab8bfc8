"""Vision transformer (ViT)."""

import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.dense import Dense
from jdl.nn.layers.images import check_images
from jdl.nn.layers.transformer import Stack, TransformerBlock


class ViT(nn.Module):
    """Vision transformer: cuts an image into patches and encodes them with a transformer.

    Returns logits, or features if num_classes is None. The defaults are those of ViT-B/16.

    Attributes:
        num_classes: number of classes; None for features
        patch: side of a patch, in pixels
        features: hidden width of the feed-forward networks; by default four times the width
        pooling: "token" takes the features of a learned class token, "mean" averages over patches
        drop_rate: stochastic depth rate at the last layer, as in `Stack`

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021, section 3.1.
    """

    example_shape: ClassVar[tuple[int, ...]] = (224, 224, 3)  # the input that `jdl summary` assumes

    num_classes: int | None
    patch: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    features: int | None = None
    pooling: Literal["token", "mean"] = "token"
    epsilon: float = 1e-6
    dropout: float = 0.0
    drop_rate: float = 0.0
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch _"]:
        """Return logits or features.

        Raises:
            ValueError: for sides that are not a multiple of the patch, and for images without a channel axis or with
                a different number of channels than the weights expect
        """
        check_images(self, images, "patches", self.patch**2)
        batch, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height} by {width} pixels don't divide into patches of {self.patch}; resize or crop them"
            )
        # A convolution whose windows tile the image is a matrix product over the flattened tiles.
        rows, columns = height // self.patch, width // self.patch
        tiles = images.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = Dense(self.width, name="patches")(tiles.reshape(batch, rows * columns, -1))
        if self.pooling == "token":
            token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)).astype(x.dtype), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = functools.partial(
            TransformerBlock,
            num_heads=self.num_heads,
            features=self.features or 4 * self.width,
            epsilon=self.epsilon,
            activation=functools.partial(nn.gelu, approximate=False),
            dropout=self.dropout,
            kernel_init=nn.initializers.xavier_uniform(),
        )
        stack = Stack(block, self.num_layers, self.scan, self.remat, self.drop_rate, name="blocks")
        x = nn.LayerNorm(self.epsilon, name="norm")(stack(x, train=train))
        x = x[:, 0] if self.pooling == "token" else x.mean(1)
        return x if self.num_classes is None else Dense(self.num_classes, name="head")(x)
