"""Flax's dense layer, computed as a product over rows; parameters, names and outputs are those of `flax.linen.Dense`.

The gradient of a kernel sums over all axes except the features. When these are batch and time, XLA's CPU compiler
first copies both arrays into another order; with one axis of rows it does not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
from jax import lax
from jaxtyping import Array

from jdl.nn.layers.ring_attention import current_ring


def by_rows(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply a function of `[rows, features]` at every position of `x [..., features]`.

    The leading axes are merged into rows. A sharded axis has to come first among them, as the batch does, or the
    array would be gathered. Where sequences are sharded, the function is therefore applied to `x` as it is.
    """
    if current_ring() is not None:
        return function(x)
    outputs = function(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))  # -1 would fail for no rows
    return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def rows_dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` that merges the leading axes of the left side into rows if there are several."""
    (contracted, of_rhs), batched = dimension_numbers
    by_features = rhs.ndim == 2 and tuple(contracted) == (lhs.ndim - 1,) and not any(map(len, batched))
    if lhs.ndim < 3 or not by_features or current_ring() is not None:
        return lax.dot_general(lhs, rhs, dimension_numbers, **options)
    return by_rows(lambda rows: lax.dot_general(rows, rhs, (((1,), tuple(of_rhs)), ((), ())), **options), lhs)


Dense = partial(nn.Dense, dot_general=rows_dot_general)
