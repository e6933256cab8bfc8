"""Reusable Flax modules."""

from jdl.nn.convolution import Conv, conv_general_dilated

__all__ = ["Conv", "conv_general_dilated"]
