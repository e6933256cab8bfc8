"""VGG: stacks of 3 x 3 convolutions."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.pooling import max_pool


class VGG(nn.Module):
    """Stages of convolutions with max pooling after each, which halves the image, followed by dense layers.

    Attributes:
        stages: channels of each convolution, stage by stage
        dense: widths of the hidden dense layers, `(4096, 4096)` in the paper; `()` classifies the mean of the last
            stage's features, as is usual for small images
        norm: with "batch" the network trains without a schedule of increasing depths

    Source: Simonyan and Zisserman, "Very deep convolutional networks", 2015, table 1.
    """

    example_shape: ClassVar[tuple[int, ...]] = (224, 224, 3)  # the input that `jdl summary` assumes

    num_classes: int
    stages: Sequence[Sequence[int]]
    dense: Sequence[int] = (4096, 4096)
    norm: NormName = "none"
    dropout: float = 0.5

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Return logits.

        Raises:
            ValueError: for images that are too small for the number of poolings, without a channel axis, or with a
                different number of channels than the weights expect
        """
        check_images(self, images, "Conv_0")
        smallest = 2 ** len(self.stages) if self.dense else 2 ** (len(self.stages) - 1)
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images of {images.shape[1]} by {images.shape[2]} pixels vanish in {len(self.stages)} poolings; "
                f"{smallest} pixels are the least"
            )
        x = images
        for stage, channels in enumerate(self.stages):
            for features in channels:
                x = Conv(features, (3, 3), use_bias=self.norm == "none")(x)
                x = nn.relu(normalization(self.norm, train)(x))
            if self.dense or stage < len(self.stages) - 1:
                x = max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1) if self.dense else x.mean((1, 2))
        for features in self.dense:
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(nn.Dense(features)(x)))
        return nn.Dense(self.num_classes, name="head")(x)


VGG11 = partial(VGG, stages=((64,), (128,), (256, 256), (512, 512), (512, 512)))
VGG16 = partial(VGG, stages=((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3))
