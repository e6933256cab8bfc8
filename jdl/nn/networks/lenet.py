"""LeNet-5."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images
from jdl.nn.layers.pooling import max_pool


class LeNet5(nn.Module):
    """Two convolutions with pooling, then three dense layers, for images of 28 by 28 or 32 by 32 pixels.

    Built as is usual today: ReLU and max pooling in place of tanh and trained averages, a dense layer in place of
    radial basis functions.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, II.B.
    """

    example_shape: ClassVar[tuple[int, ...]] = (32, 32, 1)  # the input that `jdl summary` assumes

    num_classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Return logits."""
        check_images(self, images, "Conv_0")
        # The original images were 32 by 32, with digits of 20 by 20 and a margin; pad smaller images instead.
        padding = "SAME" if images.shape[1] <= 28 else "VALID"
        x = max_pool(nn.relu(Conv(6, (5, 5), padding=padding)(images)), (2, 2), (2, 2))
        x = max_pool(nn.relu(Conv(16, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(120)(x.reshape(len(x), -1)))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes)(x)
