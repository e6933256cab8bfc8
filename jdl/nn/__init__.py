"""Reusable Flax modules."""

from jdl.nn.convolution import Conv, conv_general_dilated
from jdl.nn.pooling import max_pool

__all__ = ["Conv", "conv_general_dilated", "max_pool"]
