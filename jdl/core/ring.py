"""Rows in the order they came, in storage that is there from the start: the newest overwrite the oldest.

A state may hold rings of any size: a checkpoint appends the rows that are new, and never writes the others again.
Leaves of rows may lie in the host's memory beside an accelerator (`jax.memory.Space.Host`): they are read and written
there, and only what was asked for moves.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.compute_on import compute_on
from jaxtyping import Array, Int, PyTree

_HOST, _DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


@flax.struct.dataclass
class Ring:
    """Lanes of rows. Row number r of a lane lies at r % capacity while it is one of the newest `capacity`."""

    rows: Any  # each leaf [*lanes, capacity, ...]
    written: Any  # [*lanes], how many since the start

    @property
    def capacity(self) -> int:
        """Rows that a lane holds."""
        return jax.tree.leaves(self.rows)[0].shape[self.written.ndim]


def empty(like: PyTree, lanes: int, capacity: int) -> Ring:
    """A ring of zeros for rows shaped as `like`, a pytree of arrays or shapes of one row."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((lanes, capacity, *leaf.shape), leaf.dtype), like)
    return Ring(rows, jnp.zeros(lanes, jnp.int32))


def host_zeros(lanes: int, capacity: int, like: Any) -> Array:
    """A leaf of an empty ring, in the host's memory from the start."""

    def zeros() -> Array:
        return jnp.zeros((lanes, capacity, *like.shape), like.dtype)

    return _there(zeros, _HOST)()


def put(ring: Ring, rows: PyTree, numbers: Int[Array, "lanes count"]) -> Ring:
    """Write rows [lanes, count, ...] as the rows of these numbers; a negative number leaves one out.

    `written` is the caller's to advance.
    """
    capacity = ring.capacity
    places = jnp.where(numbers >= 0, numbers % capacity, capacity)
    lanes = jnp.arange(len(places))[:, None]

    def write(leaf: Array, lanes: Array, places: Array, new: Array) -> Array:
        return leaf.at[lanes, places].set(new, mode="drop")

    stored = jax.tree.map(lambda leaf, new: _where_it_is(write, leaf, lanes, places, new, stays=True), ring.rows, rows)
    return ring.replace(rows=stored)  # type: ignore[attr-defined]


def get(tree: PyTree, lane: Int[Array, "*#batch"], number: Int[Array, "*#batch"], capacity: int) -> PyTree:
    """The rows of these numbers, from `ring.rows` or a part of it."""

    def read(leaf: Array, lane: Array, place: Array) -> Array:
        return leaf[lane, place]

    return jax.tree.map(lambda leaf: _where_it_is(read, leaf, lane, number % capacity, stays=False), tree)


def on_host(leaf: Any) -> bool:
    """Whether a leaf of a state lies in the host's memory beside the device that works with it."""
    return getattr(jax.typeof(leaf), "memory_space", None) == _HOST


def _where_it_is(function: Callable[..., Array], leaf: Array, *others: Array, stays: bool) -> Array:
    if not on_host(leaf):
        return function(leaf, *others)
    return _there(function, _HOST if stays else _DEVICE)(leaf, *jax.device_put(others, _HOST))


def _there(function: Callable[..., Array], result: Any) -> Callable[..., Array]:
    """A function computed by the host, from what lies in its memory."""
    return cast(Callable[..., Array], compute_on(function, compute_type="device_host", out_memory_spaces=result))
