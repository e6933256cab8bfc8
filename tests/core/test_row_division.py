"""Rows divided by a number each: quotients beside NumPy's, and the program that XLA is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.core import compiled  # noqa: F401  # which has rows divided so

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(5, 7)).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 1), (1, 7), (7,), (1, 1)])
def test_rows_are_divided_to_the_last_digit_but_one(shape):
    divisor = RANDOM.uniform(0.1, 9, shape).astype(np.float32)
    divide = jax.jit(jnp.divide)
    np.testing.assert_allclose(divide(ROWS, divisor), ROWS / divisor, rtol=3e-7)
    # The quotients are those of NumPy's, products with the reciprocals, to the bit.
    np.testing.assert_array_equal(divide(ROWS, divisor), ROWS * (np.float32(1) / divisor))
    assert "tensor<5x7xf32>" not in "".join(line for line in text(ROWS, divisor).splitlines() if "divide" in line)


def text(*arguments):
    return jax.jit(jnp.divide).lower(*arguments).as_text()


@pytest.mark.parametrize(
    ("dividend", "divisor"),
    [
        (ROWS, RANDOM.uniform(0.1, 9, (5, 7)).astype(np.float32)),
        (ROWS, np.float32(3)),
        (ROWS[:, :1], ROWS),
        (np.float32(3), ROWS),
        (ROWS.astype(np.complex64), ROWS[:, :1].astype(np.complex64)),
    ],
    ids=["alike", "a number", "a row of numbers", "by rows", "complex"],
)
def test_all_else_is_a_quotient(dividend, divisor):
    assert "multiply" not in text(dividend, divisor)
    np.testing.assert_allclose(jnp.divide(dividend, divisor), dividend / divisor, rtol=3e-7)


def test_whole_numbers_stay_whole():
    dividend, divisor = RANDOM.integers(-99, 99, (3, 4)), np.arange(1, 5)
    np.testing.assert_array_equal(jnp.floor_divide(dividend, divisor), dividend // divisor)
    quotient = jax.lax.div(jnp.asarray(dividend), jnp.broadcast_to(divisor, (3, 4)))
    np.testing.assert_array_equal(quotient, np.trunc(dividend / divisor).astype(int))


def test_gradients_are_those_of_a_quotient():
    divisor = jnp.asarray(RANDOM.uniform(0.5, 2, (5, 1)), jnp.float32)
    by_rows, by_numbers = jax.grad(lambda x, y: (x / y).sum(), (0, 1))(jnp.asarray(ROWS), divisor)
    np.testing.assert_allclose(by_rows, np.broadcast_to(1 / divisor, ROWS.shape), rtol=1e-6)
    np.testing.assert_allclose(by_numbers, -(ROWS / divisor**2).sum(1, keepdims=True), rtol=1e-5)
