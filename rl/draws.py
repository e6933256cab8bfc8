"""What the steps of a rollout draw at random, drawn for all of them at once: one by one it costs more than a network.

Random numbers follow from keys alone, and the keys of a rollout are known when it begins. So a function of a key is
taken apart: what follows from the key becomes one computation over all steps, and a step keeps the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr, partial_eval_jaxpr_nounits
from jaxtyping import PyTree

_AT_MOST = 2**28  # bytes; more than that is better drawn when it is needed


def scan(function: Callable[..., tuple[PyTree, PyTree]], carry: PyTree, keys: PyTree) -> tuple[PyTree, PyTree]:
    """As `jax.lax.scan(function, carry, keys)`."""
    draw, use = split(lambda key, carry: function(carry, key), jax.tree.map(lambda leaf: leaf[0], keys), carry)
    drawn = jax.vmap(draw)
    if _size(jax.eval_shape(drawn, keys)) > _AT_MOST:
        return jax.lax.scan(function, carry, keys)
    return jax.lax.scan(lambda carry, drawn: use(drawn, carry), carry, drawn(keys))


def split(function: Callable[..., PyTree], key: PyTree, *rest: PyTree) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`draw(key)` and `use(drawn, *rest)` that make up `function(key, *rest)`; the arguments show types and shapes."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(key, *rest)
    unknown = [i >= len(jax.tree.leaves(key)) for i in range(len(jaxpr.in_avals))]
    known, remaining, *_ = partial_eval_jaxpr_nounits(jaxpr, unknown, True)
    follows = _follows(known)
    draw = jaxpr_as_fun(dce_jaxpr(known, follows, instantiate=True)[0])
    same = jaxpr_as_fun(dce_jaxpr(known, [not one for one in follows])[0])  # in every step
    remainder = jaxpr_as_fun(remaining)

    def use(drawn: list[Any], *rest: PyTree) -> PyTree:
        from_key, others = iter(drawn), iter(same())
        values = [next(from_key if one else others) for one in follows]
        return jax.tree.unflatten(jax.tree.structure(shapes), remainder(*values, *jax.tree.leaves(rest)))

    return lambda key: draw(*jax.tree.leaves(key)), use


def _follows(jaxpr: Jaxpr) -> list[bool]:
    """Which outputs follow from the inputs."""
    found = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in found for var in equation.invars):
            found.update(equation.outvars)
    return [not isinstance(var, Literal) and var in found for var in jaxpr.outvars]


def _size(shapes: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
