"""Rows divided by a number each, as in a softmax: the same arithmetic in every program on a CPU.

XLA rewrites x / y, where y is broadcast along a row, as x · (1 / y), but not in every program: one over several devices
goes through other passes than one for a single device. A run that trains on one of many devices would then differ from
that run alone in the last digit. So the product is written before XLA sees it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import div_p
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir


def divide_rows_alike() -> None:
    """Have this process lower such divisions as products, on CPUs; whole numbers and single divisors stay quotients."""
    mlir.register_lowering(div_p, _lowered, platform="cpu")


def _lowered(context: Any, x: Any, y: Any) -> Any:
    dividend, divisor = context.avals_in
    (quotient,) = context.avals_out
    if dividend.shape == divisor.shape:
        return [stablehlo.divide(x, y)]
    by_rows = divisor.shape not in ((), quotient.shape) and jnp.issubdtype(divisor.dtype, jnp.floating)
    return mlir.lower_fun(_product if by_rows else _quotient, multiple_results=False)(context, x, y)


def _product(x: Any, y: Any) -> Any:
    return lax.mul(x, lax.div(lax.full_like(y, 1), y))


def _quotient(x: Any, y: Any) -> Any:
    return lax.div(*jnp.broadcast_arrays(x, y))
