"""Convolution and its gradients in forms that are fast on a CPU, also inside loops; the form depends on the geometry.

XLA's CPU back end calls its fast convolution kernel (Eigen) for one layout only, and that kernel spends as long on
zeros as on other numbers. Matrix products are fast everywhere.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jdl.nn.cpu import winograd

# With at most this many values in one window (all offsets, all input features), or with a single feature, a matrix
# product per offset has too few rows to be worth its cost: copying the windows side by side and multiplying once is
# cheaper.
_NARROW_WINDOW = 32

# From this many features and channels on, Winograd's algorithm costs less, including its transforms. The bound is low
# for the kernel's gradient, whose plain form copies nine times, and higher for convolution, where Eigen's kernel is
# good. Convolution also needs many positions in a batch, which share the cost of transforming the kernel.
_WIDE_FOR_KERNEL_GRADIENT, _WIDE, _MANY_POSITIONS = 32, 64, 512
# Winograd's tiles take four times the memory of inputs and outputs, gigabytes if these have more values than this.
_LARGE = 2**26

# With more positions within a stride than this (patches of an image, say), the parts are small and slow to compile.
_MANY_PHASES = 9


class Geometry(NamedTuple):
    """Everything that defines a convolution besides its two arrays; hashable, because it is static for `custom_vjp`.

    Attributes:
        input_size: size of the input along each spatial axis
        kernel_size: size of the kernel along each spatial axis
        strides: step of the windows along each spatial axis
        padding: (low, high) for each spatial axis
        dilation: dilation of the kernel along each spatial axis
        groups: number of feature groups
        depthwise: whether each feature forms a group with one channel
        precision: as in `jax.lax.conv_general_dilated`
    """

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    depthwise: bool
    precision: Any

    def suits_winograd(
        self, batch: int, features: int, channels: int, dtype: Any, wide: int = _WIDE, positions: int = _MANY_POSITIONS
    ) -> bool:
        """Whether Winograd's algorithm can compute this convolution, and is cheaper.

        Args:
            batch: number of examples
            features: number of input features
            channels: number of output channels
            dtype: dtype of the arrays
            wide: least number of features and of channels
            positions: least number of output positions in the batch
        """
        return (
            (self.kernel_size, self.strides, self.dilation, self.groups) == ((3, 3), (1, 1), (1, 1), 1)
            and min(features, channels) >= wide
            and positions <= batch * math.prod(self.output_size) <= _LARGE // max(features, channels)
            and jnp.finfo(dtype).bits >= 32  # sums of four numbers lose too much in half precision
        )

    @property
    def output_size(self) -> tuple[int, ...]:
        """Number of window positions along each spatial axis."""
        sizes = zip(self.input_size, self.kernel_size, self.strides, self.padding, self.dilation, strict=True)
        return tuple(
            max(0, (size + low + high - (window - 1) * dilation - 1) // stride + 1)
            for size, window, stride, (low, high), dilation in sizes
        )


def another_way(geometry: Geometry, inputs: Array, kernel: Array) -> Callable[[Array, Array], Array] | None:
    """Return the function that computes the outputs where XLA's own convolution is slower, None elsewhere."""
    features, channels = kernel.shape[-2:]
    if geometry.depthwise:
        return partial(_depthwise_convolve, geometry)
    if geometry.suits_winograd(len(inputs), features, channels, inputs.dtype):
        return partial(winograd.convolve, padding=geometry.padding, precision=geometry.precision)
    return None


def xla_convolve(geometry: Geometry, inputs: Array, kernel: Array) -> Array:
    """Compute the outputs by XLA's own convolution."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=layout(len(geometry.strides)),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _depthwise_convolve(geometry: Geometry, inputs: Array, kernel: Array) -> Array:
    """Weight the inputs under each offset and sum, which XLA fuses. Eigen takes 20 times as long."""
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(accumulator)
    offsets = [offset.astype(accumulator) for offset in _offsets(geometry, inputs)]
    weighted = [offset * weight for offset, weight in zip(offsets, weights, strict=True)]
    return sum(weighted[1:], weighted[0]).astype(inputs.dtype)


def input_gradient(geometry: Geometry, outputs: Array, kernel: Array) -> Array:
    """Gradient for the inputs, in the layout that Eigen takes.

    Convolves the outputs, spread out by the stride, with the reversed kernel.

    Args:
        outputs: gradient for the outputs
        kernel: `[*kernel_size, features, channels]`
    """
    spatial = tuple(range(len(geometry.kernel_size)))
    *_, features, channels = kernel.shape
    groups = geometry.groups
    if geometry.suits_winograd(len(outputs), features, channels, outputs.dtype):
        back = [(2 - low, 2 - high) for low, high in geometry.padding]
        return winograd.convolve(outputs, kernel, back, geometry.precision, backward=True)
    # [..., features, groups * channels] -> [..., channels, groups * features]: in and out swap places.
    kernel = kernel.reshape(*geometry.kernel_size, features, groups, channels // groups)
    kernel = jnp.moveaxis(kernel, -1, -3).swapaxes(-1, -2)
    kernel = kernel.reshape(*geometry.kernel_size, channels // groups, groups * features)
    phases = math.prod(geometry.strides)
    if 1 < phases <= _MANY_PHASES and max(geometry.dilation) == 1 and not geometry.depthwise:
        return _input_gradient_by_phases(geometry, outputs, kernel)
    kernel = lax.rev(kernel, spatial)
    padding = []
    for axis in spatial:
        reach = (geometry.kernel_size[axis] - 1) * geometry.dilation[axis]
        low = reach - geometry.padding[axis][0]
        spread = (geometry.output_size[axis] - 1) * geometry.strides[axis] + 1
        # Pad to the size of the inputs, so that inputs that no window reaches get a gradient of zero.
        padding.append((low, geometry.input_size[axis] + reach - spread - low))
    if geometry.depthwise:
        borders = [(low, high, step - 1) for (low, high), step in zip(padding, geometry.strides, strict=True)]
        zero = jnp.zeros((), outputs.dtype)
        outputs = lax.pad(outputs, zero, [(0, 0, 0), *borders, (0, 0, 0)])
        none = ((0, 0),) * len(spatial)
        back = geometry._replace(input_size=outputs.shape[1:-1], strides=(1,) * len(spatial), padding=none)
        return _depthwise_convolve(back, outputs, kernel)
    return lax.conv_general_dilated(
        outputs,
        kernel,
        (1,) * len(spatial),
        padding,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=layout(len(spatial)),
        feature_group_count=groups,
        precision=geometry.precision,
    )


def _input_gradient_by_phases(geometry: Geometry, outputs: Array, kernel: Array) -> Array:
    """For each position within a stride, convolve the outputs with the part of the kernel that reaches it.

    Spreading the outputs out by the stride, as a transposed convolution does, multiplies mostly zeros. In and out are
    already swapped in `kernel`.
    """
    tiles = [
        -(-(size + low) // stride)  # number of strides that cover the inputs and the padding before them
        for size, (low, _), stride in zip(geometry.input_size, geometry.padding, geometry.strides, strict=True)
    ]

    def interleaved(phases: tuple[int, ...]) -> Array:
        axis = len(phases)
        if axis == len(tiles):
            return at(phases)
        parts = jnp.stack([interleaved((*phases, phase)) for phase in range(geometry.strides[axis])], axis + 2)
        return parts.reshape(*parts.shape[: axis + 1], -1, *parts.shape[axis + 3 :])

    def at(phases: tuple[int, ...]) -> Array:
        part = kernel[tuple(slice(phase, None, stride) for phase, stride in zip(phases, geometry.strides, strict=True))]
        if 0 in part.shape:
            return jnp.zeros((len(outputs), *tiles, kernel.shape[-1]), outputs.dtype)
        return lax.conv_general_dilated(
            outputs,
            lax.rev(part, tuple(range(len(tiles)))),
            (1,) * len(tiles),
            [(w - 1, tile - size) for w, tile, size in zip(part.shape, tiles, geometry.output_size, strict=False)],
            dimension_numbers=layout(len(tiles)),
            feature_group_count=geometry.groups,
            precision=geometry.precision,
        )

    padded = interleaved(())
    borders = [
        (-low, size + low - reached, 0)
        for (low, _), size, reached in zip(geometry.padding, geometry.input_size, padded.shape[1:-1], strict=True)
    ]
    return lax.pad(padded, jnp.zeros((), padded.dtype), [(0, 0, 0), *borders, (0, 0, 0)])


def kernel_gradient(geometry: Geometry, inputs: Array, outputs: Array) -> Array:
    """Gradient for the kernel: for each offset, multiply inputs with outputs and sum over batch and positions.

    Args:
        inputs: `[batch, *input_size, features]`
        outputs: gradient for the outputs
    """
    groups, features, channels = geometry.groups, inputs.shape[-1] // geometry.groups, outputs.shape[-1]
    if geometry.suits_winograd(len(inputs), features, channels, inputs.dtype, _WIDE_FOR_KERNEL_GRADIENT, 1):
        return winograd.kernel_gradient(inputs, outputs, geometry.padding, geometry.precision)
    offsets = list(_offsets(geometry, inputs))
    if geometry.depthwise:
        wide = jnp.promote_types(inputs.dtype, jnp.float32)
        sums = [jnp.sum(offset.astype(wide) * outputs.astype(wide), range(inputs.ndim - 1)) for offset in offsets]
        return jnp.stack(sums).reshape(*geometry.kernel_size, features, channels).astype(inputs.dtype)
    if groups == 1 and (features == 1 or math.prod(geometry.kernel_size) * features <= _NARROW_WINDOW):
        offsets = [jnp.concatenate(offsets, -1)]
    # Merge batch and positions into one long axis, over which each product sums.
    outputs = outputs.reshape(-1, groups, channels // groups)
    rows = outputs.shape[0]
    products = [_contract(offset.reshape(rows, groups, -1), outputs, geometry) for offset in offsets]
    return jnp.stack(products).reshape(*geometry.kernel_size, features, channels).astype(inputs.dtype)


def _contract(inputs: Array, outputs: Array, geometry: Geometry) -> Array:
    """Sum inputs times outputs over rows: [rows, groups, i], [rows, groups, o] -> [i, groups, o]."""
    # Sums of half-precision numbers over a whole batch need a wider accumulator.
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    if geometry.groups > 1:
        equation = "ngi,ngo->igo"
        return jnp.einsum(equation, inputs, outputs, precision=geometry.precision, preferred_element_type=accumulator)
    product = lax.dot_general(
        inputs[:, 0],
        outputs[:, 0],
        (((0,), (0,)), ((), ())),
        precision=geometry.precision,
        preferred_element_type=accumulator,
    )
    return product[:, None]


def _offsets(geometry: Geometry, inputs: Array) -> Iterator[Array]:
    """Yield, for each offset of the kernel in row-major order, the inputs under it in all windows."""
    padded = lax.pad(
        inputs,
        jnp.zeros((), inputs.dtype),
        [(0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0)],
    )
    batch, *_, features = inputs.shape
    for index in range(math.prod(geometry.kernel_size)):
        start, rest = [], index
        for size, dilation in zip(reversed(geometry.kernel_size), reversed(geometry.dilation), strict=True):
            start.insert(0, rest % size * dilation)
            rest //= size
        stop = [
            first + (size - 1) * stride + 1
            for first, size, stride in zip(start, geometry.output_size, geometry.strides, strict=True)
        ]
        yield lax.slice(padded, (0, *start, 0), (batch, *stop, features), (1, *geometry.strides, 1))


def layout(spatial: int) -> lax.ConvDimensionNumbers:
    """Return Flax's layout (batch first, features last, kernel space-in-out) as JAX's dimension numbers."""
    space = tuple(range(1, spatial + 1))
    activations = (0, spatial + 1, *space)
    return lax.ConvDimensionNumbers(activations, (spatial + 1, spatial, *range(spatial)), activations)
