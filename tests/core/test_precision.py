"""Mixed precision: what is computed in half, what is kept, and what an overflow does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl import nn
from jdl.core import seam
from jdl.core.learner import value

random = np.random.default_rng(0)
INPUTS = random.normal(size=(64, 6)).astype(np.float32)
DATA = {"input": INPUTS, "target": (INPUTS @ random.normal(size=(6, 3))).argmax(1).astype(np.int32)}


def learner(optimizer=None):
    optimizer = optimizer or optax.adam(3e-2)
    return jdl.supervised(nn.MLP((16, 3)), jdl.losses.cross_entropy, optimizer, example=DATA)


def trained(learner, steps=100):
    training = jdl.jit(jdl.scan(jdl.feed(learner, 32), steps))
    state, metrics = training.step(training.init(jax.random.key(0)), DATA)
    return state, metrics, float(jdl.evaluate(training, state, DATA)["loss"])


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_trains_as_single_precision_does(dtype):
    state, metrics, loss = trained(jdl.mixed_precision(learner(), dtype))
    _, _, single = trained(learner())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert metrics["loss"].total.dtype == jnp.float32
    assert abs(loss - single) < 0.05
    assert loss < 0.4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_are_computed_in_half_precision(dtype):
    half = jdl.mixed_precision(learner(), dtype)
    state = half.init(jax.random.key(0))
    text = str(jax.make_jaxpr(half.step)(state, DATA))
    products = [line for line in text.splitlines() if "dot_general" in line]
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    assert len(products) == 5  # two forward, two for the kernels, one for the hidden layer
    assert all(f"{short}[" in line.split("=")[0] for line in products)


def test_an_overflow_leaves_the_update_out_and_halves_the_scale():
    half = jdl.jit(jdl.mixed_precision(learner(optax.lion(1e-3)), "float16", scale=2.0**24), donate=False)
    state = half.init(jax.random.key(0))
    scales, changed = [], []
    for _ in range(14):
        new, metrics = half.step(state, DATA)
        scales.append(float(metrics["loss_scale"].compute()))
        changed.append(not np.array_equal(new.params["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"]))
        assert np.isfinite(new.params["Dense_0"]["kernel"]).all()
        assert int(new.step) == int(state.step) + 1
        state = new
    first = changed.index(True)
    assert first > 0
    assert all(changed[first:])
    assert scales[: first + 1] == [2.0 ** (24 - n) for n in range(first + 1)]


def test_the_scale_grows_again():
    half = jdl.jit(jdl.mixed_precision(learner(), "float16", scale=8.0, growth_interval=3))
    state = half.init(jax.random.key(0))
    scales = []
    for _ in range(7):
        state, metrics = half.step(state, DATA)
        scales.append(float(metrics["loss_scale"].compute()))
    assert scales == [8.0] * 3 + [16.0] * 3 + [32.0]


@pytest.mark.medium
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_it_nests_with_the_transforms(dtype):
    half = jdl.mixed_precision(learner(), dtype)
    whole, _ = jdl.jit(half).step(half.init(jax.random.key(0)), DATA)
    parts, _ = jdl.jit(jdl.accumulate(half, 4)).step(half.init(jax.random.key(0)), DATA)
    seeds = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(half, 16), 3), 2))
    state, metrics = seeds.step(seeds.init(jax.random.key(0)), DATA)
    assert state.params["Dense_0"]["kernel"].shape == (2, 6, 16)
    assert np.isfinite(metrics["loss"].compute()).all()
    # Adam's first step is a sign: where gradients round to nothing, it may differ.
    close = np.isclose(parts.params["Dense_0"]["kernel"], whole.params["Dense_0"]["kernel"], atol=1e-3)
    assert close.mean() > 0.95


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"mixed_precision goes inside scan"):
        jdl.mixed_precision(jdl.scan(learner(), 2))
    with pytest.raises(ValueError, match=r"dtype='half'"):
        jdl.mixed_precision(learner(), "half")


def test_a_line_search_sees_the_loss_that_is_differentiated():
    def loss(params, batch, key):
        return jnp.square(params["w"] * batch).sum(), jnp.float32(len(batch))

    params, batch, key = {"w": jnp.float32(1.001)}, jnp.linspace(0, 1, 7), jax.random.key(0)
    single = value(loss, params, batch, key)
    with seam.within(precision=seam.Precision(jnp.dtype("bfloat16"))):
        _, mean, _ = jdl.gradients(loss, params, batch, key)
        assert value(loss, params, batch, key) == mean.compute()
        assert mean.compute() != single
