"""Convolution against XLA's own, and the gradients of one against the gradients of the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from jdl.nn import Conv, conv_general_dilated

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
LIKE_FLAX = {"dimension_numbers": LAYOUTS[2], "window_strides": (1, 1), "padding": "SAME"}

# input size, kernel size, strides, padding, dilation, features, channels, groups, batch
GRID = [
    ((6, 7), (1, 1), (1, 1), "SAME", (1, 1), 2, 3, 1, 2),
    ((6, 7), (1, 1), (2, 3), "VALID", (1, 1), 2, 3, 1, 2),
    ((7, 8), (2, 2), (1, 2), "SAME", (1, 1), 2, 3, 1, 1),
    ((7, 8), (3, 3), (1, 1), "SAME", (1, 1), 1, 4, 1, 2),
    ((7, 8), (3, 3), (1, 1), "SAME", (1, 1), 5, 4, 1, 2),
    ((7, 8), (3, 2), (2, 3), "VALID", (1, 1), 5, 4, 1, 1),
    ((9, 8), (5, 3), (3, 2), "SAME", (1, 1), 2, 3, 1, 2),
    ((9, 11), (3, 3), (2, 1), "VALID", (2, 3), 4, 2, 1, 2),
    ((9, 11), (3, 3), (2, 3), "SAME", (3, 2), 4, 2, 1, 2),
    ((7, 8), (3, 3), (2, 2), ((0, 3), (4, 1)), (1, 1), 2, 3, 1, 2),
    ((7, 8), (3, 3), (1, 2), ((-1, 2), (1, -2)), (1, 2), 6, 3, 1, 2),
    ((7, 8), (3, 3), (2, 1), "SAME_LOWER", (1, 1), 2, 3, 1, 2),
    ((7, 8), (3, 3), (2, 1), "SAME", (1, 1), 4, 6, 2, 2),
    ((7, 8), (2, 3), (1, 2), ((1, 0), (-1, 1)), (2, 1), 6, 3, 3, 2),
    ((7, 8), (3, 3), (1, 1), "SAME", (1, 1), 3, 3, 3, 2),
    ((7, 8), (3, 3), (2, 3), "VALID", (1, 2), 3, 3, 3, 1),
    ((8, 7), (2, 3), (2, 1), ((2, -1), (0, 1)), (1, 1), 3, 3, 3, 2),
    ((8, 7), (3, 3), (2, 2), "SAME", (1, 1), 2, 6, 2, 2),
    # Winograd's: the kernel's gradient, then all
    ((7, 8), (3, 3), (1, 1), "SAME", (1, 1), 32, 33, 1, 2),
    ((9, 6), (3, 3), (1, 1), "VALID", (1, 1), 33, 32, 1, 1),
    ((7, 8), (3, 3), (1, 1), ((-1, 2), (1, -2)), (1, 1), 32, 32, 1, 2),
    ((16, 17), (3, 3), (1, 1), "SAME", (1, 1), 64, 65, 1, 2),
    ((19, 16), (3, 3), (1, 1), ((0, 3), (-1, 4)), (1, 1), 65, 64, 1, 2),
    ((10,), (5,), (2,), "SAME", (1,), 3, 4, 1, 2),
    ((10,), (3,), (1,), ((4, 0),), (2,), 3, 4, 1, 2),
    ((10,), (3,), (3,), "VALID", (1,), 4, 4, 4, 2),
    ((5, 4, 6), (3, 2, 1), (2, 1, 3), "SAME", (1, 1, 1), 2, 3, 1, 2),
    ((5, 4, 6), (3, 2, 2), (1, 2, 1), "VALID", (2, 1, 1), 4, 2, 2, 1),
]


def arrays(case, dtype="float64"):
    size, window, strides, padding, dilation, features, channels, groups, batch = case
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(size=(batch, *size, features)), dtype)
    kernel = jnp.asarray(random.normal(size=(*window, features // groups, channels)), dtype)
    options = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "dimension_numbers": LAYOUTS[len(size)],
        "feature_group_count": groups,
    }
    outputs = jnp.asarray(random.normal(size=lax.conv_general_dilated(inputs, kernel, **options).shape), dtype)
    return inputs, kernel, outputs, options


def pair(size=(7, 6), features=2, channels=3, groups=1, runs=None):
    random = np.random.default_rng(1)
    lead = () if runs is None else (runs,)
    inputs = jnp.asarray(random.normal(size=(*lead, 2, *size, features)))
    return inputs, jnp.asarray(random.normal(size=(*lead, 3, 3, features // groups, channels)))


def loss(convolve, inputs, kernel, **options):
    return jnp.sum(jnp.sin(convolve(inputs, kernel, **(LIKE_FLAX | options))))


def gradients(convolve, **options):
    return jax.grad(lambda inputs, kernel: loss(convolve, inputs, kernel, **options), argnums=(0, 1))


def close(ours, theirs, tolerance=1e-10):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance),
        ours,
        theirs,
    )


@pytest.mark.parametrize("case", GRID, ids=str)
def test_gradients_equal_xla_in_float64(case):
    with jax.enable_x64(True):
        inputs, kernel, outputs, options = arrays(case)

        @jax.jit
        def both(inputs, kernel, outputs):
            def run(convolve):
                value, pull = jax.vjp(lambda x, k: convolve(x, k, **options), inputs, kernel)
                return value, pull(outputs)

            return run(conv_general_dilated), run(lax.conv_general_dilated)

        ours, theirs = both(inputs, kernel, outputs)
        close(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "case",
    [((9, 8), (3, 3), (2, 1), "SAME", (1, 1), 4, 4, groups, 16) for groups in (1, 2, 4)]
    + [((16, 17), (3, 3), (1, 1), "SAME", (1, 1), 64, 64, 1, 2)],  # Winograd's
    ids=str,
)
def test_gradients_keep_their_dtype(dtype, case):
    precise = arrays(case, "float32")
    inputs, kernel, outputs, options = precise

    def pull(convolve, dtype):
        rounded = [array.astype(dtype) for array in (inputs, kernel, outputs)]

        @jax.jit
        def run(x, k, y):
            return jax.vjp(lambda x, k: convolve(x, k, **options), x, k)[1](y)

        return run(*rounded)

    ours, exact = pull(conv_general_dilated, dtype), pull(lax.conv_general_dilated, "float32")
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == dtype
        error = jnp.abs(one.astype("float32") - other).max() / jnp.abs(other).max()
        assert error < {"float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]


def programs(stride, dtype="float32", features=64, kernel=3):
    """The programs of a convolution and its two gradients on a CPU, as text."""
    x = jnp.zeros((2, 16, 16, features), dtype)
    k = jnp.zeros((kernel, kernel, features, features), dtype)
    convolve = lambda x, k: conv_general_dilated(x, k, **(LIKE_FLAX | {"window_strides": (stride, stride)}))  # noqa: E731
    y, pull = jax.eval_shape(convolve, x, k), lambda x, k, y: jax.vjp(convolve, x, k)[1](y)
    y = jnp.zeros(y.shape, dtype)
    parts = convolve, lambda x, k: pull(x, k, y)[0], lambda x, k: pull(x, k, y)[1]
    return [jax.jit(part).lower(x, k).as_text() for part in parts]


def test_which_form_a_cpu_takes():
    def convolutions(*found):
        return [text.count("stablehlo.convolution") for text in programs(*found)]

    assert convolutions(1) == [0, 0, 0]  # Winograd's products
    assert convolutions(1, "bfloat16") == [1, 1, 0]
    assert convolutions(1, "float32", 32) == [1, 1, 0]
    forward, to_input, _ = programs(2)
    assert forward.count("stablehlo.convolution") == 1
    assert to_input.count("stablehlo.convolution") == 4  # the phases of a stride of 2 by 2
    assert "lhs_dilate = [2, 2]" not in to_input
    assert "lhs_dilate = [4, 4]" in programs(4, "float32", 4, 4)[1]  # 16 small parts would cost more


def test_half_precision_sums_in_float32():
    # 4096 ones and a kernel of one offset: a running sum in bfloat16 stops at 256.
    ones = jnp.ones((1, 64, 64, 1), "bfloat16")
    for channels, groups in ((1, 1), (2, 2)):
        inputs, kernel = jnp.repeat(ones, groups, -1), jnp.ones((1, 1, 1, channels), "bfloat16")
        options = LIKE_FLAX | {"feature_group_count": groups}
        gradient = jax.grad(lambda k, x=inputs, o=options: conv_general_dilated(x, k, **o).sum())(kernel)
        np.testing.assert_array_equal(gradient.astype("float32"), 4096)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap(axes, groups):
    with jax.enable_x64(True):
        inputs, kernel = pair(features=2, channels=2, groups=groups, runs=3)
        chosen = [array if axis == 0 else array[0] for array, axis in zip((inputs, kernel), axes, strict=True)]
        run = [
            jax.jit(jax.vmap(gradients(convolve, feature_group_count=groups), axes))(*chosen)
            for convolve in (conv_general_dilated, lax.conv_general_dilated)
        ]
        close(*run)


def descend(convolve, steps, looped):
    """Gradient descent on a kernel, in one compiled loop or step by step."""
    inputs, kernel = pair()

    def step(kernel, _):
        return kernel - 0.01 * gradients(convolve)(inputs, kernel)[1], None

    if looped:
        return jax.jit(lambda kernel: lax.scan(step, kernel, None, length=steps)[0])(kernel)
    compiled = jax.jit(lambda kernel: step(kernel, None)[0])
    for _ in range(steps):
        kernel = compiled(kernel)
    return kernel


def test_scan_equals_the_loop_to_the_bit_and_xla():
    with jax.enable_x64(True):
        scanned = descend(conv_general_dilated, 5, looped=True)
        np.testing.assert_array_equal(scanned, descend(conv_general_dilated, 5, looped=False))
        close(scanned, descend(lax.conv_general_dilated, 5, looped=False))


def test_map_equals_each_run():
    with jax.enable_x64(True):
        inputs, kernel = pair(runs=3)
        ours = jax.jit(lambda x, k: lax.map(lambda pair: gradients(conv_general_dilated)(*pair), (x, k)))
        xla = jax.jit(gradients(lax.conv_general_dilated))
        theirs = [xla(x, k) for x, k in zip(inputs, kernel, strict=True)]
        close(ours(inputs, kernel), jax.tree.map(lambda *runs: jnp.stack(runs), *theirs))


@pytest.mark.parametrize("groups", [1, 2])
def test_remat_and_eager(groups):
    with jax.enable_x64(True):
        inputs, kernel = pair(channels=2, groups=groups)
        options = LIKE_FLAX | {"feature_group_count": groups}
        expected = jax.jit(gradients(lax.conv_general_dilated, feature_group_count=groups))(inputs, kernel)
        close(gradients(conv_general_dilated, feature_group_count=groups)(inputs, kernel), expected)
        rematerialized = jax.checkpoint(lambda x, k: conv_general_dilated(x, k, **options))
        remade = jax.grad(lambda x, k: jnp.sum(jnp.sin(rematerialized(x, k))), argnums=(0, 1))
        close(jax.jit(remade)(inputs, kernel), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradient_of_a_gradient(groups):
    with jax.enable_x64(True):
        inputs, kernel = pair((5, 4), features=4, channels=4, groups=groups)

        def second(convolve):
            first = gradients(convolve, feature_group_count=groups, window_strides=(2, 1))

            def length(inputs, kernel):
                return sum(jnp.sum(part**2) for part in first(inputs, kernel))

            return jax.jit(jax.grad(length, (0, 1)))(inputs, kernel)

        close(second(conv_general_dilated), second(lax.conv_general_dilated), 1e-9)


def test_third_order():
    with jax.enable_x64(True):
        inputs, kernel = pair((4,), features=1, channels=2)
        kernel, options = kernel[0], {"dimension_numbers": LAYOUTS[1], "window_strides": (1,)}

        def third(convolve):
            def length(function):
                return lambda x, k: sum(jnp.sum(part**2) for part in jax.grad(function, (0, 1))(x, k))

            twice = length(length(lambda x, k: loss(convolve, x, k, **options) / 4))
            return jax.jit(jax.grad(twice, (0, 1)))(inputs, kernel)

        for ours, theirs in zip(third(conv_general_dilated), third(lax.conv_general_dilated), strict=True):
            scale = jnp.abs(theirs).max()
            close(ours / scale, theirs / scale)


def test_forward_mode_says_so():
    inputs, kernel = pair()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda k: loss(conv_general_dilated, inputs, k), (kernel,), (kernel,))


def test_shard_map_sums_a_replicated_kernel():
    with jax.enable_x64(True):
        inputs, kernel = pair()
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        for groups in (1, 2):
            options = {"feature_group_count": groups}
            kernel = pair(channels=2, groups=groups)[1]
            expected = jax.jit(gradients(lax.conv_general_dilated, **options))(inputs, kernel)
            parts = jax.shard_map(
                gradients(conv_general_dilated, **options),
                mesh=mesh,
                in_specs=(PartitionSpec("data"), PartitionSpec()),
                out_specs=(PartitionSpec("data"), PartitionSpec()),
            )
            close(jax.jit(parts)(inputs, kernel), expected)


def test_export_for_several_platforms():
    inputs, kernel = pair()
    exported = jax.export.export(jax.jit(gradients(conv_general_dilated)), platforms=("cpu", "cuda", "tpu"))
    close(
        exported(inputs, kernel).call(inputs, kernel),
        gradients(lax.conv_general_dilated)(inputs, kernel),
        1e-4,
    )
    # Both XLA's gradients and ours are in it; the machine that runs it picks one.
    assert exported(inputs, kernel).mlir_module().count("stablehlo.dot_general") >= 1


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
        {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
        {"dimension_numbers": ("CHWN", "IHWO", "NHWC")},
        {"batch_group_count": 2},
        {"preferred_element_type": "float64"},
    ],
    ids=str,
)
def test_the_rest_is_xla_to_the_bit(options):
    with jax.enable_x64(True):
        inputs, kernel = (jnp.ones((4, 5, 6, 4), "float32"), jnp.ones((4, 3, 4, 4), "float32"))

        def jaxpr(convolve):
            return str(jax.make_jaxpr(lambda x, k: convolve(x, k, **(LIKE_FLAX | options)))(inputs, kernel))

        assert jaxpr(conv_general_dilated) == jaxpr(lax.conv_general_dilated)


def test_complex_and_empty_arrays():
    inputs, kernel = pair()
    ours = conv_general_dilated(inputs + 1j, kernel + 1j, **LIKE_FLAX)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(inputs + 1j, kernel + 1j, **LIKE_FLAX))
    assert conv_general_dilated(inputs[:0], kernel, **LIKE_FLAX).shape == (0, 7, 6, 3)


def test_bad_shapes_raise_what_xla_raises():
    inputs, kernel = pair()
    messages = []
    for convolve in (conv_general_dilated, lax.conv_general_dilated):
        with pytest.raises(ValueError, match="feature_group_count") as caught:
            convolve(inputs, kernel[:, :, :1], **LIKE_FLAX)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        ((3,), {"padding": "CAUSAL"}),
        ((3, 3), {}),
        ((3, 2), {"strides": (2, 1), "padding": 1, "kernel_dilation": 2, "use_bias": False}),
        ((3, 3), {"feature_group_count": 2, "precision": "highest"}),
        ((3, 3), {"input_dilation": 2, "padding": 1}),
        ((3, 3), {"dtype": "bfloat16"}),
        ((2, 2, 2), {"padding": "VALID"}),
    ],
    ids=str,
)
def test_the_layer_is_flaxs(kernel_size, options):
    class Network(nn.Module):
        layer: type | object

        @nn.compact
        def __call__(self, x):
            return self.layer(4, kernel_size, **options)(x)

    inputs = jax.random.normal(jax.random.key(0), (3, *(7, 6, 5)[: len(kernel_size)], 2))

    def variables_outputs_and_gradients(layer):
        network = Network(layer)

        def value(variables):
            outputs = network.apply(variables, inputs)
            return outputs.astype("float32").var(), outputs

        variables = network.init(jax.random.key(1), inputs)
        (_, outputs), gradient = jax.value_and_grad(value, has_aux=True)(variables)
        return variables, outputs, gradient

    ours, theirs = (jax.jit(variables_outputs_and_gradients, static_argnums=0)(one) for one in (Conv, nn.Conv))
    jax.tree.map(np.testing.assert_array_equal, ours[:2], theirs[:2])
    close(ours[2], theirs[2], tolerance=2e-3 if "dtype" in options else 1e-5)


def test_the_layer_takes_no_batch_or_many():
    layer = Conv(4, (3, 3))
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 5, 5, 2))
    variables = layer.init(jax.random.key(1), inputs)
    many = layer.apply(variables, inputs)
    close(layer.apply(variables, inputs[1, 2]), many[1, 2], 1e-6)
