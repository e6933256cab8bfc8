"""Find convolutions of a program that would be slow in a loop on a CPU because they do not use `jdl.nn.Conv`."""

from collections.abc import Iterator
from typing import Any


def weight_gradient_convolutions(jaxpr: Any) -> list[str]:
    """Describe every convolution in a jaxpr that is XLA's gradient for a kernel: slow in loops on a CPU.

    JAX writes that gradient as a convolution with batch and features swapped, so that features come first in both
    operands. A forward pass in that layout (`CNHW`) looks the same and is listed too.

    Args:
        jaxpr: a `Jaxpr` or `ClosedJaxpr`, searched with everything it contains (jit, scan, while, cond, remat, custom
            derivatives, shard_map); where the platform decides between branches, only the CPU's is searched

    Examples:
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
            # Dimension numbers are (batch, features, *space) for activations, (out, in, *space) for kernels.
            if lhs[1] == 0 and rhs[1] == 0:
                kernel, inputs = equation.outvars[0].aval, equation.invars[0].aval
                found.append(f"{kernel.str_short()} from input {inputs.str_short()}")
        for inner in _inner_jaxprs(equation.params):
            found.extend(weight_gradient_convolutions(inner))
    return found


def _inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters, except branches for platforms other than the CPU."""
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
