"""Floating-point operations of a program, counted in its JAX trace: scan bodies once per iteration; no compilation."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Count the floating-point operations of the matrix products and convolutions in a call.

    A multiply-add counts as two.

    Args:
        function: the function to trace.
        arguments: its arguments, as arrays or shapes.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return sum(times * of_operation(operation) for _, operation, times in operations(jaxpr))


def operations(jaxpr: Any, scope: str = "", times: int = 1) -> Iterator[tuple[str, Any, int]]:
    """Yield every operation of a program, with the scopes it is in and how often it runs.

    Of the branches of a conditional, only the most expensive is included.

    Args:
        jaxpr: the traced program.
        scope: the scopes around the program.
        times: how often the program runs.
    """
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        names = f"{scope}/{equation.source_info.name_stack}"
        yield names, equation, times
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        parts = [list(operations(part, names, inner)) for part in _parts(equation)]
        if equation.primitive.name == "cond":  # one branch runs: assume the most expensive one
            parts = [max(parts, key=lambda part: sum(count * of_operation(operation) for _, operation, count in part))]
        for part in parts:
            yield from part


def _parts(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for candidate in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(candidate, "jaxpr", candidate), "eqns"):
                yield candidate


def of_operation(equation: Any) -> int:
    """Count two for each multiply-add of a matrix product or convolution, and zero for other operations."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        terms = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    else:
        return 0
    return 2 * terms * equation.outvars[0].aval.size
