"""Max pooling against Flax's, whose gradient is XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jdl.nn.layers.pooling import max_pool

GRID = [
    ((2, 6, 8, 3), (2, 2), (2, 2), "VALID"),
    ((2, 7, 9, 3), (2, 2), (2, 2), "VALID"),
    ((2, 7, 9, 3), (2, 2), (2, 2), "SAME"),
    ((1, 7, 9, 2), (3, 2), (3, 2), ((1, 1), (0, 1))),
    ((2, 7, 9, 2), (3, 3), (2, 2), "SAME"),
    ((2, 7, 9, 2), (3, 2), None, "VALID"),
    ((2, 7, 9, 2), (2, 2), (3, 4), "VALID"),
    ((2, 9, 3), (2,), (2,), "VALID"),
    ((2, 9, 3), (3,), (2,), "SAME"),
    ((2, 4, 5, 6, 2), (2, 2, 2), (2, 2, 2), "VALID"),
    ((6, 8, 3), (2, 2), (2, 2), "VALID"),
    ((2, 3, 6, 8, 3), (2, 2), (2, 2), "VALID"),
]


def pulled(pool, x, window, strides, padding):
    value, pull = jax.vjp(lambda x: pool(x, window, strides=strides, padding=padding), x)
    weights = jnp.cos(jnp.arange(value.size, dtype=x.dtype)).reshape(value.shape)
    return value, pull(weights)[0]


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("case", GRID, ids=str)
def test_values_and_gradients_equal_flax(case, ties):
    shape, *options = case
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        # With three values nearly every window has several equal maxima.
        x = jnp.asarray(random.integers(0, 3, shape) if ties else random.normal(size=shape), "float64")
        ours, theirs = (jax.jit(lambda x, pool=pool: pulled(pool, x, *options))(x) for pool in (max_pool, nn.max_pool))
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-14, atol=1e-14)


def test_the_first_of_equal_maxima_gets_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(jnp.ones((1, 2, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])


def test_padding_never_wins():
    x = -jnp.ones((1, 3, 3, 1))
    case = (x, (2, 2), (2, 2), "SAME")
    np.testing.assert_array_equal(pulled(max_pool, *case)[1], pulled(nn.max_pool, *case)[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_kept(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 2), dtype)
    ours, theirs = (
        jax.jit(lambda x, pool=pool: pulled(pool, x, (2, 2), (2, 2), "VALID"))(x) for pool in (max_pool, nn.max_pool)
    )
    assert ours[1].dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_integers_are_pooled():
    x = jnp.arange(16).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x, (2, 2)), nn.max_pool(x, (2, 2)))


@pytest.mark.parametrize("strides", [(2, 2), (1, 2)])
def test_vmap_scan_and_map(strides):
    runs = jax.random.normal(jax.random.key(0), (3, 2, 5, 6, 2))
    flax = jax.jit(lambda x: pulled(nn.max_pool, x, (2, 2), strides, "SAME")[1])
    each = jnp.stack([flax(x) for x in runs])

    def gradient(x):
        return pulled(max_pool, x, (2, 2), strides, "SAME")[1]

    for placed in (jax.vmap(gradient), lambda runs: lax.map(gradient, runs)):
        np.testing.assert_allclose(jax.jit(placed)(runs), each, rtol=1e-6)


def test_gradient_of_a_gradient():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 2)))

        def second(pool):
            def first(x):
                return jax.grad(lambda x: jnp.sum(pool(x, (2, 2), strides=(2, 1)) ** 3))(x)

            return jax.jit(jax.grad(lambda x: jnp.sum(first(x) ** 2)))(x)

        np.testing.assert_allclose(second(max_pool), second(nn.max_pool), rtol=1e-12)


def test_bad_windows_raise_what_flax_raises():
    with pytest.raises(AssertionError):
        max_pool(jnp.ones((1, 4, 4, 1)), (2, 2), strides=(2,))


def test_the_gradient_is_right_where_xla_computes_the_input_twice():
    """Batch normalization before it: compiled together, its output is rounded otherwise for either use."""
    random = np.random.default_rng(0)
    x, weights = (random.normal(size=shape).astype(np.float32) for shape in ((4, 40, 40, 16), (4, 20, 20, 16)))
    scale, bias = random.uniform(0.5, 2, 16).astype(np.float32), random.normal(size=16).astype(np.float32)

    def total(pool, x, scale, bias):
        normal = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias
        return (pool(nn.relu(normal), (3, 3), (2, 2), ((1, 1), (1, 1))) * weights).sum()

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(total, pool), argnums=(0, 1, 2)))(x, scale, bias)
        for pool in (max_pool, nn.max_pool)
    )
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-4)
