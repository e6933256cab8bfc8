"""Convolution with 3 by 3 kernels, in 16 multiplications for every four outputs instead of 36.

Winograd's minimal filtering F(2x2, 3x3), as in Lavin and Gray 2016 (arXiv 1509.09308), section 4.1: the kernel, 4 by
4 tiles of inputs that start two apart, and 2 by 2 tiles of outputs are transformed to and from a space where
convolution is an elementwise product. Features are summed in that space, by 16 matrix products over all tiles at
once. The transforms add, subtract, and halve the kernel's numbers, so that in float32 the error is about that of the
plain sum.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

type Matrix = tuple[tuple[int | float, ...], ...]
type Grid = Sequence[Sequence[Array]]  # arrays in rows and columns, each an entry of a small matrix
type Padding = Sequence[tuple[int, int]]

# Equation 7 of section 4.1, with the paper's names.
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
    """Convolve with a stride of one.

    Args:
        kernel: `[3, 3, features, channels]`
        padding: (low, high) for height and width
        precision: of the matrix products, as in `jax.lax.dot_general`
        backward: reverse the kernel and swap its features and channels, which turns gradients for the outputs into
            gradients for the inputs
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
    """Gradient for the kernel.

    Args:
        outputs: gradient for the outputs
        padding: (low, high) for height and width
        precision: of the matrix products, as in `jax.lax.dot_general`
    """
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
    """Return the transformed tiles, 4 by 4 arrays [tiles, features], and their numbers (batch, rows, columns)."""
    batch, *size, features = inputs.shape
    rows, columns = (-(-size // 2) for size in _output_size(inputs, padding))
    # If the number of outputs is odd, the last tile reaches one further, and its output there is ignored.
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
    """Compute matrix @ grid @ matrix.T."""
    columns = [_combined(matrix, [row[j] for row in grid]) for j in range(len(grid[0]))]
    return [_combined(matrix, [column[i] for column in columns]) for i in range(len(matrix))]


def _combined(matrix: Matrix, arrays: Sequence[Array]) -> list[Array]:
    """For each row of the matrix, sum the arrays weighted by its entries."""
    sums = []
    for row in matrix:
        terms = [array if weight == 1 else weight * array for weight, array in zip(row, arrays, strict=True) if weight]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
