"""Flax's dense layer with its product over rows: the parameters, names and outputs are those of `flax.linen.Dense`.

The gradient for a kernel sums over all axes but the features. Over batch and time at once XLA's CPU compiler copies
both arrays into another order first; over one axis of rows it does not.
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
    """A function of `[rows, features]` at all places of `x [..., features]`.

    Of the axes that become rows a sharded one comes first, as a batch does, or it would be gathered; where sequences
    are sharded, they are left as they are.
    """
    if current_ring() is not None:
        return function(x)
    outputs = function(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))  # not -1: there may be none
    return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def rows_dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general`, where its left side has several axes before the features on rows of them all."""
    (contracted, of_rhs), batched = dimension_numbers
    by_features = rhs.ndim == 2 and tuple(contracted) == (lhs.ndim - 1,) and not any(map(len, batched))
    if lhs.ndim < 3 or not by_features or current_ring() is not None:
        return lax.dot_general(lhs, rhs, dimension_numbers, **options)
    return by_rows(lambda rows: lax.dot_general(rows, rhs, (((1,), tuple(of_rhs)), ((), ())), **options), lhs)


Dense = partial(nn.Dense, dot_general=rows_dot_general)
