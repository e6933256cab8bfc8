"""Convolution whose gradients stay fast on a CPU inside `scan`, `map` and `while_loop`.

XLA's CPU back end calls its fast convolution kernel (Eigen) only for the layout batch-space-features with a kernel
laid out space-in-out. The pass that brings other layouts into that form looks only at the outermost program, so
inside a loop's body a convolution in any other layout runs as plain nested loops
(https://github.com/jax-ml/jax/issues/12868). A Flax forward pass has the fast layout. JAX's gradients of it do not:
in a loop the gradient for the input is 10 times slower, and the gradient for the kernel 100 times.

The gradients here are therefore written in forms that are fast everywhere. Convolution is linear in the input and in
the kernel, so there are three bilinear maps, and the gradients of each are the other two:

    convolve(input, kernel) -> output
    input_gradient(output, kernel) -> input      a convolution of the fast layout, with the kernel reversed
    kernel_gradient(input, output) -> kernel     matrix products, one for each offset of the kernel

The forms for a CPU are in `convolution_on_cpu`, which uses fewer products for wide 3 by 3 convolutions (`winograd`).
Each map carries a `custom_vjp` in terms of the others, so reverse mode works to any order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jdl.nn.cpu import convolution_on_cpu as on_cpu
from jdl.nn.cpu.convolution_on_cpu import Geometry, layout, xla_convolve


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, with gradients that are fast in loops on a CPU.

    Arguments, shapes, values and errors are those of `jax.lax.conv_general_dilated`. Values agree within rounding for
    depthwise and for wide 3 by 3 convolutions, which have other forms on a CPU; there an infinite input makes its
    neighborhood NaN. On other platforms the gradients are XLA's own.

    The fast gradients cover real floating-point arrays of one dtype in Flax's layout (`NHWC`, `HWIO` and their
    equivalents in one and three dimensions), with any stride, padding, kernel dilation and feature groups. Everything
    else (input dilation, batch groups, other layouts, complex numbers, another `preferred_element_type`) goes to XLA
    unchanged.

    Reverse mode works to any order, but forward mode does not work. Compute Hessian-vector products as a gradient of
    a gradient, or use `jax.lax.conv_general_dilated`.

    Raises:
        TypeError: for forward mode (`jax.jvp`, `jax.hessian`, `jax.linearize`), which JAX does not support for a
            `custom_vjp`

    Examples:
        >>> image, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
        >>> conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
        (1, 5, 5, 4)
    """
    xla = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    # Let JAX check the arguments first, so that bad ones raise its own messages.
    output = jax.eval_shape(xla, lhs, rhs)
    dtype = jnp.result_type(lhs)
    handled = (
        lhs.ndim > 2
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == layout(lhs.ndim - 2)
        and (lhs_dilation is None or all(dilation == 1 for dilation in lhs_dilation))
        and batch_group_count == 1
        and jnp.issubdtype(dtype, jnp.floating)
        and dtype == jnp.result_type(rhs) == output.dtype
        # Empty arrays leave nothing to compute: matrix products of no rows are not worth a second code path.
        and 0 not in (*lhs.shape, *rhs.shape, *output.shape)
    )
    if not handled:
        return xla(lhs, rhs)
    input_size, kernel_size = lhs.shape[1:-1], rhs.shape[:-2]
    dilation = tuple(rhs_dilation or (1,) * len(kernel_size))
    if isinstance(padding, str):
        windows = tuple((size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True))
        padding = lax.padtype_to_pads(input_size, windows, window_strides, padding)
    geometry = Geometry(
        tuple(input_size),
        tuple(kernel_size),
        tuple(window_strides),
        tuple((int(low), int(high)) for low, high in padding),
        dilation,
        feature_group_count,
        lhs.shape[-1] == rhs.shape[-1] == feature_group_count > 1,
        tuple(precision) if isinstance(precision, list) else precision,
    )
    return _convolve(geometry, *_vary_alike(lhs, rhs))


# Flax's own layer with the convolution replaced: parameters, names and outputs are those of `nn.Conv`, so
# checkpoints work with both.
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(
    geometry: Geometry, inputs: Float[Array, "batch *size features"], kernel: Float[Array, "..."]
) -> Float[Array, "batch *output_size channels"]:
    xla, cpu = partial(xla_convolve, geometry), on_cpu.another_way(geometry, inputs, kernel)
    if cpu is None:
        return xla(inputs, kernel)
    return lax.platform_dependent(inputs, kernel, cpu=cpu, default=xla)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(
    geometry: Geometry, outputs: Float[Array, "batch *output_size channels"], kernel: Float[Array, "..."]
) -> Float[Array, "batch *size features"]:
    def xla(outputs: Array, kernel: Array) -> Array:
        shape = (outputs.shape[0], *geometry.input_size, kernel.shape[-2] * geometry.groups)
        return _linear_transpose(lambda inputs: xla_convolve(geometry, inputs, kernel), shape, outputs)

    return lax.platform_dependent(outputs, kernel, cpu=partial(on_cpu.input_gradient, geometry), default=xla)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(
    geometry: Geometry,
    inputs: Float[Array, "batch *size features"],
    outputs: Float[Array, "batch *output_size channels"],
) -> Float[Array, "..."]:
    def xla(inputs: Array, outputs: Array) -> Array:
        shape = (*geometry.kernel_size, inputs.shape[-1] // geometry.groups, outputs.shape[-1])
        return _linear_transpose(partial(xla_convolve, geometry, inputs), shape, outputs)

    return lax.platform_dependent(inputs, outputs, cpu=partial(on_cpu.kernel_gradient, geometry), default=xla)


def _keep(function: Any) -> Any:
    """Make the forward half of a bilinear map's gradient: return the output, and keep both arrays."""
    return lambda geometry, left, right: (function(geometry, left, right), (left, right))


# These follow from <convolve(x, k), y> = <x, input_gradient(y, k)> = <k, kernel_gradient(x, y)>.
_convolve.defvjp(
    _keep(_convolve),
    lambda geometry, kept, y: (_input_gradient(geometry, y, kept[1]), _kernel_gradient(geometry, kept[0], y)),
)
_input_gradient.defvjp(
    _keep(_input_gradient),
    lambda geometry, kept, x: (_convolve(geometry, x, kept[1]), _kernel_gradient(geometry, x, kept[0])),
)
_kernel_gradient.defvjp(
    _keep(_kernel_gradient),
    lambda geometry, kept, k: (_input_gradient(geometry, kept[1], k), _convolve(geometry, kept[0], k)),
)


def _linear_transpose(function: Any, shape: tuple[int, ...], outputs: Array) -> Array:
    """Apply the transpose that JAX derives for a function linear in an array of this shape."""
    # Pass an array, not only a shape: inside `shard_map` its type also says how it varies. It is never computed.
    argument, _ = _vary_alike(jnp.zeros(shape, outputs.dtype), outputs)
    (transposed,) = jax.linear_transpose(function, argument)(outputs)
    return transposed


def _vary_alike(*arrays: Array) -> list[Array]:
    """Mark arrays inside `shard_map` as varying over the same devices, as JAX does for its own operations.

    A custom rule has to return gradients that vary as its arguments do. The transpose of this mark then sums a
    replicated kernel's gradient over devices.
    """
    varying = [_varying_axes(array) for array in arrays]
    axes = frozenset().union(*varying)
    varied = []
    for array, own in zip(arrays, varying, strict=True):
        missing = tuple(sorted(axes - own))
        varied.append(lax.pcast(array, missing, to="varying") if missing else array)
    return varied


def _varying_axes(array: Array) -> frozenset[str]:
    """Return the mesh axes along which an array differs from device to device."""
    kind = jax.typeof(array)
    # JAX 0.12 moved this set into a separate type.
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)
