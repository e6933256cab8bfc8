"""Convolution and its gradients as a CPU computes them fast, also inside loops: which form depends on the geometry.

XLA's CPU back end calls its fast convolution kernel (Eigen) for one layout alone, and spends as long on zeros as on
numbers; matrix products are fast everywhere.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jdl.nn.cpu import winograd

# Below this many values in one window (all offsets, all input features), and for a single feature, a matrix product
# per offset has too few rows for its price, and the windows are cheaper copied side by side and multiplied once.
_NARROW_WINDOW = 32

# From as many features and channels on, Winograd's products cost less, with all that is done around them: in the
# kernel's gradient, whose plain form copies nine times; in convolution, where Eigen's kernel is good. The latter
# also needs positions, in a batch, by which the cost of transforming the kernel is shared.
_WIDE_FOR_KERNEL_GRADIENT, _WIDE, _MANY_POSITIONS = 32, 64, 512
# Its tiles take four times the memory of inputs and outputs: of more values than this it would be gigabytes.
_LARGE = 2**26

# Of more places within a stride than this (patches of an image, say) the parts are small, and take long to compile.
_MANY_PHASES = 9


class Geometry(NamedTuple):
    """What a convolution is besides its two arrays; hashable, since `custom_vjp` holds it fixed."""

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
        """Whether there are Winograd's products for this convolution, and they are the cheaper ones."""
        return (
            (self.kernel_size, self.strides, self.dilation, self.groups) == ((3, 3), (1, 1), (1, 1), 1)
            and min(features, channels) >= wide
            and positions <= batch * math.prod(self.output_size) <= _LARGE // max(features, channels)
            and jnp.finfo(dtype).bits >= 32  # sums of four half-precision numbers lose too much
        )

    @property
    def output_size(self) -> tuple[int, ...]:
        """The number of window positions along each spatial axis."""
        sizes = zip(self.input_size, self.kernel_size, self.strides, self.padding, self.dilation, strict=True)
        return tuple(
            max(0, (size + low + high - (window - 1) * dilation - 1) // stride + 1)
            for size, window, stride, (low, high), dilation in sizes
        )


def another_way(geometry: Geometry, inputs: Array, kernel: Array) -> Callable[[Array, Array], Array] | None:
    """How the outputs are computed where XLA's own convolution is slower."""
    features, channels = kernel.shape[-2:]
    if geometry.depthwise:
        return partial(_depthwise_convolve, geometry)
    if geometry.suits_winograd(len(inputs), features, channels, inputs.dtype):
        return partial(winograd.convolve, padding=geometry.padding, precision=geometry.precision)
    return None


def xla_convolve(geometry: Geometry, inputs: Array, kernel: Array) -> Array:
    """The outputs, by XLA's own convolution."""
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
    """Weigh the inputs under each offset and add, which XLA fuses. Eigen takes 20 times as long."""
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(accumulator)
    offsets = [offset.astype(accumulator) for offset in _offsets(geometry, inputs)]
    weighted = [offset * weight for offset, weight in zip(offsets, weights, strict=True)]
    return sum(weighted[1:], weighted[0]).astype(inputs.dtype)


def input_gradient(geometry: Geometry, outputs: Array, kernel: Array) -> Array:
    """Convolve the outputs, spread out by the stride, with the reversed kernel, in the layout Eigen takes."""
    spatial = tuple(range(len(geometry.kernel_size)))
    *_, features, channels = kernel.shape
    groups = geometry.groups
    if geometry.suits_winograd(len(outputs), features, channels, outputs.dtype):
        back = [(2 - low, 2 - high) for low, high in geometry.padding]
        return winograd.convolve(outputs, kernel, back, geometry.precision, backward=True)
    # [..., features, groups * channels] -> [..., channels, groups * features]: in and out change places.
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
        # Inputs that no window reaches get a gradient of zero: the padding makes up the size.
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
    """For each place within a stride, convolve the outputs with the part of the kernel that reaches it.

    Spreading the outputs out by the stride, as a transposed convolution does, multiplies mostly zeros. kernel: in and
    out have changed places already.
    """
    tiles = [
        -(-(size + low) // stride)  # of a stride each, which cover the padded inputs from their start on
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
    """Multiply, for each offset of the kernel, inputs with outputs, and sum over batch and positions."""
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
    # Batch and positions become one long axis, which is what each product sums over.
    outputs = outputs.reshape(-1, groups, channels // groups)
    rows = outputs.shape[0]
    products = [_contract(offset.reshape(rows, groups, -1), outputs, geometry) for offset in offsets]
    return jnp.stack(products).reshape(*geometry.kernel_size, features, channels).astype(inputs.dtype)


def _contract(inputs: Array, outputs: Array, geometry: Geometry) -> Array:
    """Sum inputs times outputs over rows: [rows, groups, i], [rows, groups, o] -> [i, groups, o]."""
    # Sums over a whole batch of half-precision numbers need a wider accumulator than the numbers have.
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
    """Name Flax's layout, batch first and features last, kernel space-in-out, as JAX writes it."""
    space = tuple(range(1, spatial + 1))
    activations = (0, spatial + 1, *space)
    return lax.ConvDimensionNumbers(activations, (spatial + 1, spatial, *range(spatial)), activations)
