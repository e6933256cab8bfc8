"""The dense layer against Flax's; that no gradient sums over two axes in one product, and none gathers a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl.nn.layers.dense import Dense


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5), (2, 3, 4, 5), (0, 4, 5), (3, 0, 5)])
def test_it_is_flaxs(shape, x64):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = Dense(7), nn.Dense(7)
    variables = theirs.init(jax.random.key(1), x)
    assert jax.tree.structure(ours.init(jax.random.key(1), x)) == jax.tree.structure(variables)

    def run(layer):
        return jax.value_and_grad(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), (0, 1))(variables, x)

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12), run(ours), run(theirs)
    )


def products(jaxpr):
    """The matrix products of a program, loops and all."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (jdl.nn.GPT(11, 8, 8, 2, 2), jnp.zeros((3, 6), np.int32)),
        (jdl.nn.BERT(11, 8, 8, 2, 2, dropout=0.0), jnp.zeros((3, 6), np.int32)),
        (jdl.nn.ViT(3, 4, 8, 2, 2), jnp.zeros((3, 8, 8, 3), np.float32)),
        (jdl.nn.Recurrent(8, "lstm", bidirectional=True), jnp.zeros((3, 6, 4), np.float32)),
        (jdl.nn.Recurrent(8, "gru"), jnp.zeros((3, 6, 4), np.float32)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_gradient_sums_over_two_axes_in_one_product(model, inputs):
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def loss(params):
        outputs = jax.tree.leaves(model.apply({"params": params}, inputs))
        return sum(jnp.square(leaf).sum() for leaf in outputs)

    found = list(products(jax.make_jaxpr(jax.grad(loss))(variables["params"]).jaxpr))
    of_kernels = [equation for equation in found if equation.outvars[0].aval.ndim == 2]  # others are attention's
    assert of_kernels
    for equation in of_kernels:
        (contracted, _), _ = equation.params["dimension_numbers"]
        assert len(contracted) == 1, f"{equation.invars[0].aval} by {equation.invars[1].aval}"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (jdl.nn.GPT(11, 8, 8, 2, 2), jnp.zeros((16, 6), np.int32)),
        (jdl.nn.Recurrent(8, "lstm", bidirectional=True), jnp.zeros((16, 6, 4), np.float32)),
    ],
    ids=["GPT", "LSTM"],
)
def test_devices_that_share_a_batch_exchange_gradients_alone(model, inputs):
    class Mean(nn.Module):
        model: nn.Module

        @nn.compact
        def __call__(self, x):
            outputs = self.model(x)
            return (outputs[0] if isinstance(outputs, tuple) else outputs).mean(1)

    batch = {"input": inputs, "target": jnp.zeros(16, np.int32)}
    learner = jdl.shard(jdl.supervised(Mean(model), jdl.losses.cross_entropy, optax.sgd(0.1), example=batch))
    state = learner.init(jax.random.key(0))
    program = jax.jit(learner.step).lower(state, batch).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
