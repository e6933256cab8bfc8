"""Functions divided by what they depend on, read from their traced programs.

This is the only file of `rl` that uses JAX's internals: `dce_jaxpr` and `partial_eval_jaxpr_nounits` of
`jax.interpreters.partial_eval`, as they are in JAX 0.12. tests/rl/test_jaxprs.py compares the results with the
functions themselves and fails when a version of JAX changes them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr, partial_eval_jaxpr_nounits
from jaxtyping import Array, PyTree


class Pruned(NamedTuple):
    """A compiled function that is passed only those leaves of its first argument that its result depends on.

    Attributes:
        used: indices of these leaves, in the order of `jax.tree.leaves`.
        compiled: `(leaves, *rest) -> result`, for a list of these leaves.
    """

    used: list[int]
    compiled: Callable[..., Any]

    def __call__(self, leaves: Mapping[int, Any], *rest: Any) -> Any:
        return self.compiled([leaves[i] for i in self.used], *rest)


def prune_unused(function: Callable[..., PyTree], first: PyTree, *rest: PyTree) -> tuple[Pruned, PyTree]:
    """Compile a function for the leaves of its first argument that it uses.

    Args:
        function: `(first, *rest) -> result`.
        first: a pytree; only shapes and types are used.
        *rest: the other arguments; only shapes and types are used.

    Returns:
        The compiled function, and the shapes of its result.
    """
    shapes, structure = jax.tree.flatten(first)
    jaxpr, result = jax.make_jaxpr(function, return_shape=True)(first, *rest)
    _, inputs_used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    used = [i for i in range(len(shapes)) if inputs_used[i]]

    def of_used(leaves: list[Any], *rest: Any) -> PyTree:
        given = dict(zip(used, leaves, strict=True))
        whole = [given[i] if i in given else blank(shape) for i, shape in enumerate(shapes)]
        return function(jax.tree.unflatten(structure, whole), *rest)

    return Pruned(used, jax.jit(of_used)), result


def split(function: Callable[..., PyTree], key: PyTree, *rest: PyTree) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Divide a function into `draw` and `use`, with `use(draw(key), *rest)` equal to `function(key, *rest)`.

    `draw` computes what depends on the key alone, `use` everything else. Values that depend on neither argument are
    computed in `use`.

    Args:
        function: `(key, *rest) -> result`.
        key: a pytree of keys; only shapes and types are used.
        *rest: the other arguments; only shapes and types are used.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(key, *rest)
    unknown = [i >= len(jax.tree.leaves(key)) for i in range(len(jaxpr.in_avals))]
    known, remaining, *_ = partial_eval_jaxpr_nounits(jaxpr, unknown, True)
    drawn_from_key = _depends_on_inputs(known)
    draw = jaxpr_as_fun(dce_jaxpr(known, drawn_from_key, instantiate=True)[0])
    constants = jaxpr_as_fun(dce_jaxpr(known, [not one for one in drawn_from_key])[0])
    remainder = jaxpr_as_fun(remaining)

    def use(drawn: list[Any], *rest: PyTree) -> PyTree:
        from_key, others = iter(drawn), iter(constants())
        values = [next(from_key if one else others) for one in drawn_from_key]
        return jax.tree.unflatten(jax.tree.structure(shapes), remainder(*values, *jax.tree.leaves(rest)))

    return lambda key: draw(*jax.tree.leaves(key)), use


def _depends_on_inputs(jaxpr: Jaxpr) -> list[bool]:
    """Whether each output of a program depends on its inputs."""
    found = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in found for var in equation.invars):
            found.update(equation.outvars)
    return [not isinstance(var, Literal) and var in found for var in jaxpr.outvars]


def blank(shape: jax.ShapeDtypeStruct) -> Array:
    """Zeros, or keys, of a shape and type."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return jnp.zeros(shape.shape, shape.dtype)
