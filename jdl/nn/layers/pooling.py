"""Max pooling whose gradient is fast on a CPU.

XLA's gradient of a maximum over windows (`select_and_scatter`) runs as plain nested loops on a CPU. For 2 x 2 windows
it costs 20 to 40 times the elementwise form used here, and more than the convolutions around it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Take the maximum over windows as `flax.linen.max_pool` does, with a gradient that is fast on a CPU.

    Arguments, shapes, values and errors are Flax's. Of several equal maxima in a window, the first in row-major order
    gets the gradient, as in XLA; in a window of NaNs or of minus infinities it is not specified which one does. On
    other platforms the gradient is XLA's own. Reverse mode works to any order.

    Args:
        x: `[*batch, *space, features]`
        window_shape: size of the window along each spatial axis
        strides: step along each spatial axis, by default one
        padding: a name such as "SAME" or "VALID", or a pair (low, high) for each spatial axis

    Raises:
        TypeError: for forward-mode differentiation, which JAX does not support for a `custom_vjp`

    Examples:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), strides=(2, 2))[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    window = tuple(window_shape)
    strides = tuple(strides or (1,) * len(window))
    padding = padding if isinstance(padding, str) else tuple((int(low), int(high)) for low, high in padding)
    # Let Flax check the arguments, so that bad ones raise its own messages.
    output = jax.eval_shape(lambda x: _flax_max_pool(x, window, strides, padding), x)
    space = x.shape[x.ndim - 1 - len(window) : -1]
    if not jnp.issubdtype(x.dtype, jnp.floating) or 0 in (*x.shape, *output.shape):
        return _flax_max_pool(x, window, strides, padding)
    if isinstance(padding, str):
        padding = tuple(lax.padtype_to_pads(space, window, strides, padding))
    # Merge the batch axes, however many there are, into one.
    pooled = _max_pool(window, strides, padding, x.reshape(-1, *space, x.shape[-1]))
    return pooled.reshape(output.shape)


# Flax annotates `padding` as a string, but takes pairs as well.
_flax_max_pool: Any = nn.max_pool


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    x: Float[Array, "batch *size features"],
) -> Float[Array, "batch *output_size features"]:
    return _flax_max_pool(x, window, strides, padding)


def _forward(window, strides, padding, x):
    return _max_pool(window, strides, padding, x), x


def _backward(window, strides, padding, x, gradient):
    def xla(x: Array, gradient: Array) -> Array:
        return jax.vjp(lambda x: _flax_max_pool(x, window, strides, padding), x)[1](gradient)[0]

    cpu = partial(_cpu_gradient, window, strides, padding)
    return (lax.platform_dependent(x, gradient, cpu=cpu, default=xla),)


_max_pool.defvjp(_forward, _backward)


def _cpu_gradient(window, strides, padding, x: Array, gradient: Array) -> Array:
    """Send each window's gradient to its first maximum, by elementwise operations that XLA fuses."""
    batch, *output_size, features = gradient.shape
    # Pad to the extent of all windows together, or crop what no window covers.
    extent = [(size - 1) * step + width for size, step, width in zip(output_size, strides, window, strict=True)]
    borders = [
        (low, covered - size - low) for (low, _), covered, size in zip(padding, extent, x.shape[1:-1], strict=True)
    ]
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, [(0, 0, 0), *((low, high, 0) for low, high in borders), (0, 0, 0)])
    offsets = list(np.ndindex(*window))
    # Find the first maximum in each window again instead of searching for the pooled value: XLA may compute x once
    # for the maximum and once more here, with different rounding, and the search would miss.
    first, best = jnp.zeros(gradient.shape, jnp.int32), jnp.full(gradient.shape, lowest)
    for number, offset in enumerate(offsets):
        stop = [start + (size - 1) * step + 1 for start, size, step in zip(offset, output_size, strides, strict=True)]
        seen = lax.slice(padded, (0, *offset, 0), (batch, *stop, features), (1, *strides, 1))
        better = seen > best
        first, best = jnp.where(better, number, first), jnp.where(better, seen, best)
    if window == strides:
        spread = _spread_apart(window, first, gradient)
    else:
        spread = _spread_over(offsets, strides, extent, first, gradient)
    zero = jnp.zeros((), x.dtype)
    return lax.pad(spread, zero, [(0, 0, 0), *((-low, -high, 0) for low, high in borders), (0, 0, 0)])


def _spread_apart(window, first: Array, gradient: Array) -> Array:
    """Spread gradients over windows that tile the space, where each input belongs to exactly one window."""
    batch, *output_size, features = gradient.shape
    # Compare [batch, rows, 1, columns, 1, features] with each input's index in its window, [1, 1, 2, 1, 2, 1].
    axes = tuple(range(2, 2 * len(window) + 1, 2))
    numbers = jnp.arange(math.prod(window)).reshape(window)
    numbers = jnp.expand_dims(numbers, (0, *(axis - 1 for axis in axes), 2 * len(window) + 1))
    chosen = jnp.expand_dims(first, axes) == numbers
    spread = jnp.where(chosen, jnp.expand_dims(gradient, axes), 0)
    extent = [size * width for size, width in zip(output_size, window, strict=True)]
    return spread.reshape(batch, *extent, features)


def _spread_over(offsets, strides, extent, first: Array, gradient: Array) -> Array:
    """Spread gradients over windows that overlap or leave gaps, one offset within the window at a time."""
    zero = jnp.zeros((), gradient.dtype)
    total = jnp.zeros((), gradient.dtype)
    for number, offset in enumerate(offsets):
        share = jnp.where(first == number, gradient, 0)
        borders = [
            (start, covered - start - (size - 1) * step - 1, step - 1)
            for start, covered, size, step in zip(offset, extent, gradient.shape[1:-1], strides, strict=True)
        ]
        total = total + lax.pad(share, zero, [(0, 0, 0), *borders, (0, 0, 0)])
    return total
