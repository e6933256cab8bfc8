"""Convolution with kernels of 3 by 3 by 16 multiplications for four outputs, where plainly there are 36.

Winograd's minimal filtering F(2x2, 3x3), as in Lavin and Gray 2016 (arXiv 1509.09308), section 4.1: tiles of 4 by 4
inputs, two apart, the kernel and the tiles of 2 by 2 outputs are brought into a space where convolution is a product,
place by place. Features are summed over in that space: 16 matrix products of all tiles at once. The ways there and back
add and subtract, and halve the kernel's numbers, so that in float32 the error is about that of the plain sum.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

type Matrix = tuple[tuple[int | float, ...], ...]
type Grid = Sequence[Sequence[Array]]  # arrays in rows and columns, each an entry of a small matrix
type Padding = Sequence[tuple[int, int]]

# Equation 7 of section 4.1, names as there.
_B_T: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))


def convolve(
    inputs: Float[Array, "batch height width features"],
    kernel: Float[Array, "3 3 left right"],
    padding: Padding,
    precision: Any = None,
    backward: bool = False,
) -> Float[Array, "batch out_height out_width channels"]:
    """The outputs of all windows, one apart, of a kernel [3, 3, features, channels].

    backward: the kernel is turned round and its channels are the features: gradients for outputs come to inputs.
    """
    tiles, shape = _input_tiles(inputs, padding)
    offsets = (2, 1, 0) if backward else (0, 1, 2)
    weights = _transformed(_G, [[kernel[i, j] for j in offsets] for i in offsets])
    axes = (((1,), (int(backward),)), ((), ()))
    products = [
        [lax.dot_general(tile, weight, axes, precision).reshape(*shape, -1) for tile, weight in zip(*pair, strict=True)]
        for pair in zip(tiles, weights, strict=True)
    ]
    rows = [jnp.stack(row, 3) for row in _transformed(_A_T, products)]
    outputs = jnp.stack(rows, 2).reshape(shape[0], 2 * shape[1], 2 * shape[2], -1)
    height, width = _output_size(inputs, padding)
    return outputs[:, :height, :width]


def kernel_gradient(
    inputs: Float[Array, "batch height width features"],
    outputs: Float[Array, "batch out_height out_width channels"],
    padding: Padding,
    precision: Any = None,
) -> Float[Array, "3 3 features channels"]:
    """The gradient for the kernel where `outputs` is that for the outputs."""
    tiles, shape = _input_tiles(inputs, padding)
    borders = [(0, 2 * tiled - size) for tiled, size in zip(shape[1:], outputs.shape[1:3], strict=True)]
    outputs = jnp.pad(outputs, [(0, 0), *borders, (0, 0)])
    spread = _transformed(_transpose(_A_T), [[outputs[:, i::2, j::2] for j in range(2)] for i in range(2)])
    products = [
        [
            lax.dot_general(tile, output.reshape(len(tile), -1), (((0,), (0,)), ((), ())), precision=precision)
            for tile, output in zip(*pair, strict=True)
        ]
        for pair in zip(tiles, spread, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _transformed(_transpose(_G), products)])


def _input_tiles(inputs: Array, padding: Padding) -> tuple[list[list[Array]], tuple[int, int, int]]:
    """The transformed tiles, 4 by 4 arrays [tiles, features], and how the tiles lie: batch, rows, columns."""
    batch, *size, features = inputs.shape
    rows, columns = (-(-size // 2) for size in _output_size(inputs, padding))
    # An odd number of outputs: the last tile reaches one further, and what it gives there is not looked at.
    borders = [
        (low, 2 * tiles + 2 - size - low) for tiles, size, (low, _) in zip((rows, columns), size, padding, strict=True)
    ]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0)])
    under = [[padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for j in range(4)] for i in range(4)]
    tiles = [[entry.reshape(-1, features) for entry in row] for row in _transformed(_B_T, under)]
    return tiles, (batch, rows, columns)


def _output_size(inputs: Array, padding: Padding) -> list[int]:
    return [size + low + high - 2 for size, (low, high) in zip(inputs.shape[1:3], padding, strict=True)]


def _transformed(matrix: Matrix, grid: Grid) -> list[list[Array]]:
    """matrix @ grid @ matrix.T"""
    columns = [_combined(matrix, [row[j] for row in grid]) for j in range(len(grid[0]))]
    return [_combined(matrix, [column[i] for column in columns]) for i in range(len(matrix))]


def _combined(matrix: Matrix, arrays: Sequence[Array]) -> list[Array]:
    """For each row of the matrix the sum of the arrays, so weighted."""
    sums = []
    for row in matrix:
        terms = [array if weight == 1 else weight * array for weight, array in zip(row, arrays, strict=True) if weight]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
