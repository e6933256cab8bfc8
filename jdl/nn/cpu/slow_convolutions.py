"""Which convolutions of a program would be slow in a loop on a CPU: those that `jdl.nn.Conv` is not used for."""

from collections.abc import Iterator
from typing import Any


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
