"""Checks of the images that a network is given."""

from typing import Any

import flax.linen as nn


def check_images(network: nn.Module, images: Any, first: str, pixels: int = 1) -> None:
    """Check that images have a channel axis, and as many channels as the network's weights expect.

    Args:
        network: the network that is called; before it has weights, only the axes are checked
        images: what it is called with
        first: name of the layer that reads the images
        pixels: number of pixels that this layer takes as one row (a patch)

    Raises:
        ValueError: for images without a channel axis, or with a different number of channels than the weights expect
    """
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)}: {type(network).__name__} takes "
            "[batch, height, width, channels]; gray ones have one channel, images[..., None]"
        )
    kernel = network.variables.get("params", {}).get(first, {}).get("kernel")
    if kernel is not None and kernel.shape[-2] != pixels * images.shape[-1]:
        raise ValueError(
            f"images have {images.shape[-1]} channels, the weights of this {type(network).__name__} were made for "
            f"{kernel.shape[-2] // pixels}; convert the images (a gray channel can be repeated), or make new weights"
        )
