"""Networks for small devices, built from inverted residual blocks: MobileNetV2 and EfficientNet-Lite."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from jdl.nn.layers.convolution import Conv
from jdl.nn.layers.images import check_images
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.stochastic_depth import StochasticDepth

Images = Float[Array, "batch height width channels"]


class Stage(NamedTuple):
    """A sequence of blocks with the same number of channels; only the first block strides.

    Attributes:
        expansion: hidden channels of a block per input channel
        features: output channels of every block
        blocks: number of blocks
        stride: stride of the first block
        window: side of the depthwise kernels
    """

    expansion: int
    features: int
    blocks: int
    stride: int
    window: int = 3


class InvertedResidual(nn.Module):
    """Inverted residual block: widen, convolve each channel separately, narrow.

    The input is added to the result where the shapes agree.

    Attributes:
        features: output channels
        expansion: hidden channels per input channel; with 1 the block does not widen
        window: side of the depthwise kernel
        drop_rate: probability of dropping the branch (stochastic depth)

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018, table 1.
    """

    features: int
    expansion: int
    stride: int = 1
    window: int = 3
    norm: NormName = "batch"
    epsilon: float = 1e-3
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "batch _ _ _"]:
        """Apply the block; height and width are divided by the stride, rounded up."""
        norm = partial(normalization, self.norm, train, epsilon=self.epsilon)
        hidden = x.shape[-1] * self.expansion
        branch = x
        if self.expansion > 1:
            branch = Conv(hidden, (1, 1), use_bias=False, name="expand")(branch)
            branch = nn.relu6(norm(name="expand_norm")(branch))
        branch = Conv(
            hidden,
            (self.window, self.window),
            (self.stride, self.stride),
            feature_group_count=hidden,
            use_bias=False,
            name="depthwise",
        )(branch)
        branch = nn.relu6(norm(name="depthwise_norm")(branch))
        branch = norm(name="project_norm")(Conv(self.features, (1, 1), use_bias=False, name="project")(branch))
        if branch.shape != x.shape:
            return branch
        if train and self.drop_rate:
            branch = StochasticDepth()(branch, self.drop_rate)
        return x + branch


class MobileNet(nn.Module):
    """Strided stem, stages of inverted residuals, a wide 1 x 1 convolution and global average pooling.

    Returns logits, or features if num_classes is None. Convolutions pad as in TensorFlow ("SAME"), where the
    published weights come from.

    Attributes:
        num_classes: number of classes; None for features
        stages: the blocks between stem and head
        stem: channels of the first convolution
        head: channels of the last convolution
        stem_stride: stride of the first convolution; 1 for images of 28 or 32 pixels
        dropout: dropout rate before the logits
        drop_rate: stochastic depth: block i of n, counted from 0, is dropped with probability drop_rate * i / n
    """

    example_shape: ClassVar[tuple[int, ...]] = (224, 224, 3)  # the input that `jdl summary` assumes

    num_classes: int | None
    stages: Sequence[Stage]
    stem: int = 32
    head: int = 1280
    stem_stride: int = 2
    norm: NormName = "batch"
    epsilon: float = 1e-3
    dropout: float = 0.2
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch _"]:
        """Return logits or features.

        Image sides are usually 32 times those of the last stage's feature maps.
        """
        check_images(self, images, "stem")
        norm = partial(normalization, self.norm, train, epsilon=self.epsilon)
        x = Conv(self.stem, (3, 3), (self.stem_stride,) * 2, use_bias=False, name="stem")(images)
        x = nn.relu6(norm(name="stem_norm")(x))
        number, blocks = 0, sum(stage.blocks for stage in self.stages)
        for stage in self.stages:
            for place in range(stage.blocks):
                x = InvertedResidual(
                    stage.features,
                    stage.expansion,
                    stage.stride if place == 0 else 1,
                    stage.window,
                    self.norm,
                    self.epsilon,
                    self.drop_rate * number / blocks,
                    name=f"block_{number}",
                )(x, train)
                number += 1
        x = nn.relu6(norm(name="features_norm")(Conv(self.head, (1, 1), use_bias=False, name="features")(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return x if self.num_classes is None else nn.Dense(self.num_classes, name="head")(x)


def _rounded(channels: float) -> int:
    """Round to the nearest multiple of 8 that is not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


_MOBILENET_V2 = (
    *(Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2)),
    *(Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1)),
)
# Tan and Le, "EfficientNet: rethinking model scaling", 2019, table 1.
_EFFICIENTNET = (
    *(Stage(1, 16, 1, 1, 3), Stage(6, 24, 2, 2, 3), Stage(6, 40, 2, 2, 5), Stage(6, 80, 3, 2, 3)),
    *(Stage(6, 112, 3, 1, 5), Stage(6, 192, 4, 2, 5), Stage(6, 320, 1, 1, 3)),
)


def MobileNetV2(num_classes: int | None, width: float = 1.0, **options: Any) -> MobileNet:
    """MobileNetV2 with all channel counts multiplied by `width`.

    Args:
        num_classes: number of classes; None for features
        width: factor for the channels; the last convolution keeps at least 1280
        **options: other fields of `MobileNet`
    """
    stages = tuple(stage._replace(features=_rounded(stage.features * width)) for stage in _MOBILENET_V2)
    sizes = {"stem": _rounded(32 * width), "head": _rounded(1280 * max(1.0, width))}
    return MobileNet(num_classes, stages, **{**sizes, **options})


def EfficientNetLite(num_classes: int | None, scale: int = 0, **options: Any) -> MobileNet:
    """EfficientNet-Lite0 to Lite4: no squeeze-and-excitation, ReLU6 activations, stem and head that do not scale.

    Args:
        num_classes: number of classes; None for features
        scale: 0 to 4, made for images of 224, 240, 260, 280 and 300 pixels
        **options: other fields of `MobileNet`

    Raises:
        ValueError: for a scale outside 0 to 4

    Source: TensorFlow's efficientnet/lite, README.
    """
    coefficients = ((1.0, 1.0, 0.2), (1.0, 1.1, 0.2), (1.1, 1.2, 0.3), (1.2, 1.4, 0.3), (1.4, 1.8, 0.3))
    if not 0 <= scale < len(coefficients):
        raise ValueError(f"EfficientNetLite(scale={scale}): there are 0 to {len(coefficients) - 1}")
    width, depth, dropout = coefficients[scale]
    ends = (0, len(_EFFICIENTNET) - 1)  # the depth of the first and last stage does not scale
    stages = tuple(
        stage._replace(
            features=_rounded(stage.features * width),
            blocks=stage.blocks if number in ends else math.ceil(stage.blocks * depth),
        )
        for number, stage in enumerate(_EFFICIENTNET)
    )
    return MobileNet(num_classes, stages, **{"dropout": dropout, **options})
