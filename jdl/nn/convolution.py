"""Convolution whose gradients stay fast on a CPU inside `scan`, `map` and `while_loop`.

XLA's CPU back end calls its fast convolution kernel (Eigen) only for the layout batch-space-features with a
kernel laid out space-in-out. The pass that brings other layouts into that form looks at the outermost program
alone, so a convolution in any other layout falls to plain nested loops once it is in a loop's body
(https://github.com/jax-ml/jax/issues/12868). A Flax forward pass has the fast layout; JAX's gradients of it
have not, neither the one for the input (10 times slower in a loop) nor the one for the kernel (100 times).

So the gradients here are written in forms that are fast everywhere. Convolution is linear in the input and in
the kernel, hence there are three bilinear maps, and each one's gradients are the other two:

    convolve(input, kernel) -> output
    input_gradient(output, kernel) -> input      a convolution of the fast layout, with the kernel reversed
    kernel_gradient(input, output) -> kernel     matrix products, one for each offset of the kernel

Each carries a `custom_vjp` in terms of the others, so reverse mode works to any order.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

# Below this many values in one window (all offsets, all input features) a matrix product per offset has too
# few rows for its price, and the windows are cheaper copied side by side and multiplied once.
_NARROW_WINDOW = 32


class _Geometry(NamedTuple):
    """What a convolution is besides its two arrays; hashable, since `custom_vjp` holds it fixed."""

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    depthwise: bool
    precision: Any

    @property
    def output_size(self) -> tuple[int, ...]:
        """The number of window positions along each spatial axis."""
        sizes = zip(self.input_size, self.kernel_size, self.strides, self.padding, self.dilation, strict=True)
        return tuple(
            max(0, (size + low + high - (window - 1) * dilation - 1) // stride + 1)
            for size, window, stride, (low, high), dilation in sizes
        )


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

    Arguments, shapes, values and errors are those of `jax.lax.conv_general_dilated` (a depthwise
    convolution's values within rounding, since it too is computed another way on a CPU). On other platforms
    the gradients are XLA's own. Handled are real floating-point arrays of one dtype in Flax's layout (`NHWC`,
    `HWIO` and their like in one and three dimensions), with any stride, padding, kernel dilation and feature
    groups. The rest (input dilation, batch groups, other layouts, complex numbers, another
    `preferred_element_type`) goes to XLA unchanged.

    Reverse mode works to any order. Forward mode (`jax.jvp`, `jax.hessian`, `jax.linearize`) raises JAX's
    `TypeError` for `custom_vjp`; take Hessian-vector products as a gradient of a gradient, or use
    `jax.lax.conv_general_dilated`.

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
    # Let JAX judge the arguments first, so that bad ones raise its own messages.
    output = jax.eval_shape(xla, lhs, rhs)
    dtype = jnp.result_type(lhs)
    handled = (
        lhs.ndim > 2
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _layout(lhs.ndim - 2)
        and (lhs_dilation is None or all(dilation == 1 for dilation in lhs_dilation))
        and batch_group_count == 1
        and jnp.issubdtype(dtype, jnp.floating)
        and dtype == jnp.result_type(rhs) == output.dtype
        # Nothing to compute: matrix products of no rows are not worth a second code path.
        and 0 not in (*lhs.shape, *rhs.shape, *output.shape)
    )
    if not handled:
        return xla(lhs, rhs)
    input_size, kernel_size = lhs.shape[1:-1], rhs.shape[:-2]
    dilation = tuple(rhs_dilation or (1,) * len(kernel_size))
    if isinstance(padding, str):
        windows = tuple((size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True))
        padding = lax.padtype_to_pads(input_size, windows, window_strides, padding)
    geometry = _Geometry(
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
# checkpoints move between the two.
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(
    geometry: _Geometry, inputs: Float[Array, "batch *size features"], kernel: Float[Array, "..."]
) -> Float[Array, "batch *output_size channels"]:
    if not geometry.depthwise:
        return _xla_convolve(geometry, inputs, kernel)
    xla, cpu = partial(_xla_convolve, geometry), partial(_depthwise_convolve, geometry)
    return lax.platform_dependent(inputs, kernel, cpu=cpu, default=xla)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(
    geometry: _Geometry, outputs: Float[Array, "batch *output_size channels"], kernel: Float[Array, "..."]
) -> Float[Array, "batch *size features"]:
    def xla(outputs: Array, kernel: Array) -> Array:
        shape = (outputs.shape[0], *geometry.input_size, kernel.shape[-2] * geometry.groups)
        return _linear_transpose(lambda inputs: _xla_convolve(geometry, inputs, kernel), shape, outputs)

    return lax.platform_dependent(outputs, kernel, cpu=partial(_cpu_input_gradient, geometry), default=xla)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(
    geometry: _Geometry,
    inputs: Float[Array, "batch *size features"],
    outputs: Float[Array, "batch *output_size channels"],
) -> Float[Array, "..."]:
    def xla(inputs: Array, outputs: Array) -> Array:
        shape = (*geometry.kernel_size, inputs.shape[-1] // geometry.groups, outputs.shape[-1])
        return _linear_transpose(partial(_xla_convolve, geometry, inputs), shape, outputs)

    return lax.platform_dependent(inputs, outputs, cpu=partial(_cpu_kernel_gradient, geometry), default=xla)


def _keep(function: Any) -> Any:
    """Make the forward half of a bilinear map's gradient: keep both arrays."""
    return lambda geometry, left, right: (function(geometry, left, right), (left, right))


# The gradients of <convolve(x, k), y> = <x, input_gradient(y, k)> = <k, kernel_gradient(x, y)>.
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


def _xla_convolve(geometry: _Geometry, inputs: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_layout(len(geometry.strides)),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _depthwise_convolve(geometry: _Geometry, inputs: Array, kernel: Array) -> Array:
    """Weigh the inputs under each offset and add, which XLA fuses. Eigen takes 20 times as long."""
    accumulator = jnp.promote_types(inputs.dtype, jnp.float32)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(accumulator)
    offsets = [offset.astype(accumulator) for offset in _offsets(geometry, inputs)]
    weighted = [offset * weight for offset, weight in zip(offsets, weights, strict=True)]
    return sum(weighted[1:], weighted[0]).astype(inputs.dtype)


def _cpu_input_gradient(geometry: _Geometry, outputs: Array, kernel: Array) -> Array:
    """Convolve the outputs, spread out by the stride, with the reversed kernel, in the layout Eigen takes."""
    spatial = tuple(range(len(geometry.kernel_size)))
    *_, features, channels = kernel.shape
    groups = geometry.groups
    # [..., features, groups * channels] -> [..., channels, groups * features]: in and out change places.
    kernel = kernel.reshape(*geometry.kernel_size, features, groups, channels // groups)
    kernel = jnp.moveaxis(kernel, -1, -3).swapaxes(-1, -2)
    kernel = lax.rev(kernel.reshape(*geometry.kernel_size, channels // groups, groups * features), spatial)
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
        dimension_numbers=_layout(len(spatial)),
        feature_group_count=groups,
        precision=geometry.precision,
    )


def _cpu_kernel_gradient(geometry: _Geometry, inputs: Array, outputs: Array) -> Array:
    """Multiply, for each offset of the kernel, inputs with outputs, and sum over batch and positions."""
    groups, features, channels = geometry.groups, inputs.shape[-1] // geometry.groups, outputs.shape[-1]
    offsets = list(_offsets(geometry, inputs))
    if geometry.depthwise:
        wide = jnp.promote_types(inputs.dtype, jnp.float32)
        sums = [jnp.sum(offset.astype(wide) * outputs.astype(wide), range(inputs.ndim - 1)) for offset in offsets]
        return jnp.stack(sums).reshape(*geometry.kernel_size, features, channels).astype(inputs.dtype)
    if groups == 1 and math.prod(geometry.kernel_size) * features <= _NARROW_WINDOW:
        offsets = [jnp.concatenate(offsets, -1)]
    # Batch and positions become one long axis, which is what each product sums over.
    outputs = outputs.reshape(-1, groups, channels // groups)
    rows = outputs.shape[0]
    products = [_contract(offset.reshape(rows, groups, -1), outputs, geometry) for offset in offsets]
    return jnp.stack(products).reshape(*geometry.kernel_size, features, channels).astype(inputs.dtype)


def _contract(inputs: Array, outputs: Array, geometry: _Geometry) -> Array:
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


def _offsets(geometry: _Geometry, inputs: Array) -> Iterator[Array]:
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


def _linear_transpose(function: Any, shape: tuple[int, ...], outputs: Array) -> Array:
    """Apply the transpose, as JAX derives it, of a function that is linear in an array of this shape."""
    # An array, not its shape alone: inside `shard_map` a type says more. It is never computed.
    argument, _ = _vary_alike(jnp.zeros(shape, outputs.dtype), outputs)
    (transposed,) = jax.linear_transpose(function, argument)(outputs)
    return transposed


def _layout(spatial: int) -> lax.ConvDimensionNumbers:
    """Name Flax's layout, batch first and features last, kernel space-in-out, as JAX writes it."""
    space = tuple(range(1, spatial + 1))
    activations = (0, spatial + 1, *space)
    return lax.ConvDimensionNumbers(activations, (spatial + 1, spatial, *range(spatial)), activations)


def _vary_alike(*arrays: Array) -> list[Array]:
    """Mark arrays inside `shard_map` as varying over the same devices, as JAX does for its own operations.

    A custom rule has to return gradients that vary as its arguments do; the transpose of this mark then sums
    a replicated kernel's gradient over devices.
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
    # JAX 0.12 moved this set into a type of its own.
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)


def weight_gradient_convolutions(jaxpr: Any) -> list[str]:
    """Describe every convolution in a jaxpr that is XLA's gradient for a kernel: slow in loops on a CPU.

    Takes a `Jaxpr` or `ClosedJaxpr` and looks into whatever it contains (jit, scan, while, cond, remat,
    custom derivatives, shard_map); of a choice by platform it looks at the CPU's branch alone. JAX writes
    that gradient as a convolution in which batch and features have changed places, so that features come
    first in both operands. A forward pass in that layout (`CNHW`) can't be told apart and is listed too.

    >>> forward = lambda kernel: nn.Conv(3, (5, 5)).apply({"params": kernel}, jnp.ones((1, 8, 8, 2))).sum()
    >>> parameters = {"kernel": jnp.ones((5, 5, 2, 3)), "bias": jnp.ones(3)}
    >>> weight_gradient_convolutions(jax.make_jaxpr(jax.grad(forward))(parameters))
    ['float32[5,5,2,3] from input float32[1,8,8,2]']
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            lhs, rhs, _ = equation.params["dimension_numbers"]
            # A specification is (batch, features, *space) for activations, (out, in, *space) for kernels.
            if lhs[1] == 0 and rhs[1] == 0:
                kernel, inputs = equation.outvars[0].aval, equation.invars[0].aval
                found.append(f"{kernel.str_short()} from input {inputs.str_short()}")
        for inner in _inner_jaxprs(equation.params):
            found.extend(weight_gradient_convolutions(inner))
    return found


def _inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters, but for branches of platforms other than the CPU."""
    platforms = parameters.get("branches_platforms")
    for name, value in parameters.items():
        values = value if isinstance(value, tuple | list) else (value,)
        if name == "branches" and platforms is not None:
            # `None` stands for the default, which the CPU takes if no branch names it.
            named = any(names is not None and "cpu" in names for names in platforms)
            values = [
                branch
                for branch, names in zip(values, platforms, strict=True)
                if ("cpu" in names if names is not None else not named)
            ]
        for candidate in values:
            if hasattr(getattr(candidate, "jaxpr", candidate), "eqns"):
                yield candidate
