"""The finder of slow convolutions against programs that have them, and against those of this project's layer."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from jdl.nn import Conv
from jdl.nn.cpu.slow_convolutions import weight_gradient_convolutions


class Deep(nn.Module):
    layer: type | object

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.layer(4, (3, 3))(x))
        return nn.relu(self.layer(4, (3, 3), strides=2, feature_group_count=2)(x))


def training(layer, wrap=lambda step: step):
    inputs = jnp.ones((2, 6, 6, 2))
    variables = Deep(layer).init(jax.random.key(0), inputs)

    def step(variables, _=None):
        gradient = jax.grad(lambda v: jnp.sum(Deep(layer).apply(v, inputs) ** 2))(variables)
        return jax.tree.map(jnp.subtract, variables, gradient), None

    return jax.make_jaxpr(wrap(step))(variables)


EXPECTED = {"float32[3,3,2,4] from input float32[2,6,6,2]", "float32[3,3,2,4] from input float32[2,6,6,4]"}
WRAPS = {
    "nothing": lambda step: step,
    "jit": lambda step: jax.jit(step),
    "scan": lambda step: lambda v: lax.scan(step, v, None, length=3),
    "while": lambda step: (
        lambda v: lax.fori_loop(0, v["params"]["Conv_0"]["bias"][0].astype(int), lambda _, v: step(v)[0], v)
    ),
    "map": lambda step: lambda v: lax.map(lambda _: step(v)[0], jnp.arange(2)),
    "remat": lambda step: jax.checkpoint(step),
    "cond": lambda step: lambda v: lax.cond(v["params"]["Conv_0"]["bias"][0] > 0, lambda v: step(v)[0], lambda v: v, v),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_weight_gradients_are_found(wrap):
    found = weight_gradient_convolutions(training(nn.Conv, wrap))
    assert sorted(found) == sorted(EXPECTED)
    assert weight_gradient_convolutions(training(Conv, wrap)) == []


@pytest.mark.parametrize(
    ("layout", "groups", "batch_groups"),
    [
        (("NHWC", "HWIO", "NHWC"), 1, 1),
        (("NHWC", "HWIO", "NHWC"), 2, 1),
        (("NHWC", "HWIO", "NHWC"), 4, 1),
        (("NHWC", "HWIO", "NHWC"), 1, 2),
        (("NCHW", "OIHW", "NCHW"), 1, 1),
        (("NCHW", "OIHW", "NCHW"), 2, 1),
        (("NCHW", "HWIO", "NHWC"), 1, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("runs", [None, 3])
def test_only_weight_gradients_are_found(layout, groups, batch_groups, runs):
    def shape(letters, sizes):
        return tuple(sizes[letter] for letter in letters)

    inputs = jnp.ones(shape(layout[0], {"N": 2, "C": 4, "H": 5, "W": 6}))
    kernel = jnp.ones(shape(layout[1], {"I": 4 // groups, "O": 8, "H": 3, "W": 3}))

    def value(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (1, 2), "SAME", dimension_numbers=layout,
            feature_group_count=groups, batch_group_count=batch_groups,
        ).sum()  # fmt: skip

    def found(function):
        if runs is not None:
            many = [jnp.stack([array] * runs) for array in (inputs, kernel)]
            return weight_gradient_convolutions(jax.make_jaxpr(jax.vmap(function))(*many))
        return weight_gradient_convolutions(jax.make_jaxpr(function)(inputs, kernel))

    assert found(value) == []
    assert found(jax.grad(value, 0)) == []
    assert len(found(jax.grad(value, 1))) == 1
    assert len(found(jax.grad(value, (0, 1)))) == 1
