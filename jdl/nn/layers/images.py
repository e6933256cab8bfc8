"""What an image network is given, held against what it takes."""

from typing import Any

import flax.linen as nn


def check_images(network: nn.Module, images: Any, first: str, pixels: int = 1) -> None:
    """Raises ValueError for images without a channel axis, or with another number of channels than the weights'.

    first: the layer that reads the images; pixels: how many of them it takes as one row (a patch).
    """
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)}: {type(network).__name__} takes "
            "[batch, height, width, channels]; grey ones have one channel, images[..., None]"
        )
    kernel = network.variables.get("params", {}).get(first, {}).get("kernel")
    if kernel is not None and kernel.shape[-2] != pixels * images.shape[-1]:
        raise ValueError(
            f"images have {images.shape[-1]} channels, the weights of this {type(network).__name__} were made for "
            f"{kernel.shape[-2] // pixels}; convert the images (a grey channel can be repeated), or make new weights"
        )
