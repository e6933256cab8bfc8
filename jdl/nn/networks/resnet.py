"""ResNet, version 1.5: residual blocks of convolutions."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.pooling import max_pool
from jdl.nn.layers.stochastic_depth import StochasticDepth

Images = Float[Array, "batch height width channels"]


def conv(features: int, window: int, stride: int = 1, **options) -> nn.Module:
    """Square convolution without bias, padded equally on both sides.

    PyTorch pads this way; with strides, "SAME" does not.

    Args:
        features: output channels
        window: side of the kernel
        stride: stride along both axes
        **options: other fields of `Conv`
    """
    side = (window - 1) // 2
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015
    return Conv(
        features, (window, window), (stride, stride), [(side, side)] * 2, use_bias=False, kernel_init=init, **options
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of three convolutions, with a skip connection.

    In a bottleneck the 3 x 3 convolution has the stride, as in version 1.5. The scale of the last normalization
    starts at zero, so that a block starts as the identity (Goyal et al. 2017, section 5.1).

    Attributes:
        features: channels of the convolutions; a bottleneck outputs four times as many
        drop_rate: probability of dropping the branch (stochastic depth)
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    norm: NormName = "batch"
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "batch _ _ _"]:
        """Apply the block; height and width are divided by the stride, rounded up."""
        norm = partial(normalization, self.norm, train)
        if self.bottleneck:
            plan = ((self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1))
        else:
            plan = ((self.features, 3, self.stride), (self.features, 3, 1))
        shortcut, branch = x, x
        for number, (features, window, stride) in enumerate(plan):
            last = number == len(plan) - 1
            branch = conv(features, window, stride, name=f"conv_{number}")(branch)
            scale = nn.initializers.zeros if last else nn.initializers.ones
            options: dict[str, Any] = {} if self.norm == "none" else {"scale_init": scale}
            branch = norm(name=f"norm_{number}", **options)(branch)
            branch = branch if last else nn.relu(branch)
        if shortcut.shape != branch.shape:
            shortcut = conv(branch.shape[-1], 1, self.stride, name="conv_shortcut")(shortcut)
            shortcut = norm(name="norm_shortcut")(shortcut)
        if train and self.drop_rate:
            branch = StochasticDepth()(branch, self.drop_rate)
        return nn.relu(shortcut + branch)


class ResNet(nn.Module):
    """Stages of residual blocks; returns logits, or features `[batch, channels]` if num_classes is None.

    Attributes:
        num_classes: number of classes; None for features
        stage_sizes: number of blocks in each stage
        width: width of the first stage; each further stage doubles it
        stem: "imagenet" is a 7 x 7 convolution with pooling, which reduces the side to a quarter; "cifar" is one 3 x
            3 convolution at full size
        drop_rate: stochastic depth rate at the last block, growing linearly from 0 at the first

    Source: He et al., "Deep residual learning for image recognition", 2016, table 1 and section 4.2.
    """

    example_shape: ClassVar[tuple[int, ...]] = (224, 224, 3)  # the input that `jdl summary` assumes

    num_classes: int | None
    stage_sizes: Sequence[int]
    bottleneck: bool = False
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: NormName = "batch"
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch _"]:
        """Return logits or features; sides that are not a multiple of the strides are rounded up."""
        check_images(self, images, "stem_conv")
        if self.stem == "imagenet":
            x = conv(self.width, 7, 2, name="stem_conv")(images)
        else:
            x = conv(self.width, 3, name="stem_conv")(images)
        x = nn.relu(normalization(self.norm, train, name="stem_norm")(x))
        if self.stem == "imagenet":
            x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        number, blocks = 0, sum(self.stage_sizes)
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                x = ResidualBlock(
                    self.width * 2**stage,
                    2 if stage > 0 and block == 0 else 1,
                    self.bottleneck,
                    self.norm,
                    self.drop_rate * number / max(1, blocks - 1),
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
                number += 1
        x = x.mean((1, 2))
        return x if self.num_classes is None else nn.Dense(self.num_classes, name="head")(x)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2))
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True)
