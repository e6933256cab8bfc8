"""Draw the random numbers of all steps of a rollout at once: step by step, drawing costs more than a network.

Random numbers depend on keys alone, and the keys of a rollout are known when it begins. So `rl.jaxprs.split` divides a
function of a key into two: the part that depends on the key, which becomes one computation over all steps, and the
rest, which stays in each step.

Under `jdl.pmap` each replica draws for all environments and keeps the part for its own, so the replicas together act as
a single device would.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jdl.core import seam
from rl.jaxprs import split

_AT_MOST = 2**28  # bytes; more than that is drawn step by step


def scan(function: Callable[..., tuple[PyTree, PyTree]], carry: PyTree, keys: PyTree) -> tuple[PyTree, PyTree]:
    """Like `jax.lax.scan(function, carry, keys)`, with the random numbers of all steps drawn first.

    Args:
        function: `(carry, keys of one step) -> (carry, output)`.
        carry: leaves [env, ...], or scalars that all environments share.
        keys: leaves [time, env], or [time] for keys that all environments share.

    Returns:
        The last carry, and the outputs stacked along time.
    """
    first = jax.tree.map(lambda leaf: leaf[0], keys)
    swapped = lambda key, carry: function(carry, key)  # noqa: E731
    axis = seam.current().axis
    draw, use = split(swapped, first, carry) if not axis else _split_of_replicas(swapped, first, carry, axis)
    drawn = jax.vmap(draw)
    if _size(jax.eval_shape(drawn, keys)) > _AT_MOST:
        return jax.lax.scan(lambda carry, key: use(draw(key), carry), carry, keys)
    return jax.lax.scan(lambda carry, drawn: use(drawn, carry), carry, drawn(keys))


def _split_of_replicas(
    function: Callable[..., PyTree], key: PyTree, carry: PyTree, axis: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Like `split(function, key, carry)`, for keys of all environments and the carry of this replica's environments."""
    replicas = jax.lax.axis_size(axis)

    def resized(tree: PyTree, size: Callable[[int], int]) -> PyTree:
        changed = lambda shape: (size(shape[0]), *shape[1:]) if shape else shape  # noqa: E731
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(changed(leaf.shape), leaf.dtype), tree)

    own_key = resized(key, lambda size: size // replicas)
    draw, _ = split(function, key, resized(carry, lambda size: size * replicas))
    draw_own, use = split(function, own_key, carry)
    return part_of(draw, draw_own, own_key, jax.lax.axis_index(axis)), use


def part_of(draw: Callable[..., Any], draw_own: Callable[..., Any], own_key: PyTree, index: Any) -> Callable[..., Any]:
    """A function that draws for all environments and returns one part of it.

    Args:
        draw: `(key) -> drawn` for all environments.
        draw_own: `(key) -> drawn` for the environments of one part; only the shapes of its result are used.
        own_key: keys for `draw_own`; only shapes and types are used.
        index: number of the part.

    Returns:
        `(key) -> drawn`, with the shapes of `draw_own`.
    """
    shapes = jax.eval_shape(draw_own, own_key)

    def part(leaf: Any, own: Any) -> Any:
        differs = [place for place, size in enumerate(own.shape) if size != leaf.shape[place]]
        if differs:
            size = own.shape[differs[0]]
            return jax.lax.dynamic_slice_in_dim(leaf, index * size, size, differs[0])
        # A single key is still to be drawn from, perhaps in a branch: then each replica draws its own numbers.
        return jax.random.fold_in(leaf, index) if _is_key(leaf) and leaf.ndim == 0 else leaf

    return lambda key: jax.tree.map(part, draw(key), shapes)


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _size(shapes: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
