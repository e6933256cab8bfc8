"""U-Net: predicts outputs for every pixel of an image."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.dense import Dense
from jdl.nn.layers.images import check_images
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.pooling import max_pool

Images = Float[Array, "batch height width channels"]


class UNet(nn.Module):
    """Halve the image several times, then double it as often, with a skip connection at each size.

    Convolutions are padded, so that the output is as large as the input (the original lost a border).

    Source: Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015.
    """

    example_shape: ClassVar[tuple[int, ...]] = (224, 224, 3)  # the input that `jdl summary` assumes

    outputs: int  # output channels: classes, or colors
    features: Sequence[int] = (64, 128, 256, 512, 1024)  # channels at each size, from the largest image to the smallest
    norm: NormName = "batch"
    dropout: float = 0.0  # dropout rate at the smallest size

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch height width outputs"]:
        """Return the outputs of every pixel.

        Raises:
            ValueError: for sides that cannot be halved often enough, and for images without a channel axis or with a
                different number of channels than the weights expect
        """
        check_images(self, images, "Conv_0")
        step = 2 ** (len(self.features) - 1)
        if images.shape[1] % step or images.shape[2] % step:
            raise ValueError(
                f"images of {images.shape[1]} by {images.shape[2]} pixels cannot be halved {len(self.features) - 1} "
                f"times; pad or crop them to multiples of {step}"
            )

        def twice(x: Array, features: int) -> Array:
            for _ in range(2):
                x = Conv(features, (3, 3), use_bias=self.norm == "none")(x)
                x = nn.relu(normalization(self.norm, train)(x))
            return x

        *descent, lowest = self.features
        x, seen = images, []
        for features in descent:
            x = twice(x, features)
            seen.append(x)
            x = max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(twice(x, lowest))
        for features, skip in zip(reversed(descent), reversed(seen), strict=True):
            x = twice(jnp.concatenate([skip, doubled(Dense(4 * features)(x))], -1), features)
        return Dense(self.outputs, name="head")(x)


def doubled(x: Images) -> Float[Array, "batch _ _ _"]:
    """Rearrange every four channels into 2 x 2 pixels.

    After a dense layer this amounts to a 2 x 2 transposed convolution of stride 2.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)
