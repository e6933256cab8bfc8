"""Wide residual networks for small images."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from jdl.nn.layers.images import check_images
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.networks.resnet import Images, conv


class WideResNet(nn.Module):
    """Wide ResNet: three stages of (depth - 4) / 6 blocks, `widen` times as wide as those of a ResNet.

    The defaults are those of WRN-28-10. Normalization and activation come before each convolution (He et al. 2016,
    "Identity mappings").

    Source: Zagoruyko and Komodakis, "Wide residual networks", 2016, table 1.
    """

    example_shape: ClassVar[tuple[int, ...]] = (32, 32, 3)  # the input that `jdl summary` assumes

    num_classes: int
    depth: int = 28
    widen: int = 10
    norm: NormName = "batch"
    dropout: float = 0.0  # dropout rate between the two convolutions of a block

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Return logits.

        Raises:
            ValueError: for a depth other than 6 n + 4 (10, 16, 22, ...), and for images without a channel axis or
                with a different number of channels than the weights expect
        """
        check_images(self, images, "Conv_0")
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth} is not 6 n + 4 (10, 16, 22, 28, 40 ...), which three stages need")

        def active(x: Array) -> Array:
            return nn.relu(normalization(self.norm, train)(x))

        x = conv(16, 3)(images)
        for stage in range(3):
            features = 16 * self.widen * 2**stage
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                before = active(x)
                branch = active(conv(features, 3, stride)(before))
                branch = conv(features, 3)(nn.Dropout(self.dropout, deterministic=not train)(branch))
                narrow = x.shape != branch.shape
                x = branch + (conv(features, 1, stride)(before) if narrow else x)
        return nn.Dense(self.num_classes, name="head")(active(x).mean((1, 2)))
