"""Ring buffers of fixed size, such as replay memories: the newest rows overwrite the oldest.

A state may hold rings of any size. A checkpoint appends the rows that are new and never rewrites the others. The rows
may lie in the host's memory (`jax.memory.Space.Host`) while an accelerator computes: they are read and written there,
and only the rows that are read move to the accelerator.
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
    """Lanes of rows. The rows of a lane are numbered 0, 1, ... as they come; row r lies at index r % capacity.

    Attributes:
        rows: a pytree of arrays `[*lanes, capacity, ...]`.
        written: int32 `[*lanes]`; rows written since the start, of which the newest `capacity` are kept.
    """

    rows: Any
    written: Any

    @property
    def capacity(self) -> int:
        """The number of rows that each lane keeps."""
        return jax.tree.leaves(self.rows)[0].shape[self.written.ndim]


def empty(like: PyTree, lanes: int, capacity: int) -> Ring:
    """Make a ring without rows.

    Args:
        like: one row, as a pytree of arrays or of `jax.ShapeDtypeStruct`.
        lanes: the number of lanes.
        capacity: rows that each lane keeps.
    """
    rows = jax.tree.map(lambda leaf: jnp.zeros((lanes, capacity, *leaf.shape), leaf.dtype), like)
    return Ring(rows, jnp.zeros(lanes, jnp.int32))


def host_zeros(lanes: int, capacity: int, like: Any) -> Array:
    """Make one array of an empty ring's rows, `[lanes, capacity, *like.shape]`, in the host's memory."""

    def zeros() -> Array:
        return jnp.zeros((lanes, capacity, *like.shape), like.dtype)

    return _computed_on_host(zeros, _HOST)()


def put(ring: Ring, rows: PyTree, numbers: Int[Array, "lanes count"]) -> Ring:
    """Write rows, without advancing `written`, which the caller does.

    Args:
        ring: a ring with one axis of lanes.
        rows: a pytree of arrays `[lanes, count, ...]`.
        numbers: the number of each row; a row with a negative number is left out.
    """
    capacity = ring.capacity
    places = jnp.where(numbers >= 0, numbers % capacity, capacity)
    lanes = jnp.arange(len(places))[:, None]

    def write(leaf: Array, lanes: Array, places: Array, new: Array) -> Array:
        return leaf.at[lanes, places].set(new, mode="drop")

    stored = jax.tree.map(lambda leaf, new: _where_it_is(write, leaf, lanes, places, new, stays=True), ring.rows, rows)
    return ring.replace(rows=stored)  # type: ignore[attr-defined]


def get(tree: PyTree, lane: Int[Array, "*#batch"], number: Int[Array, "*#batch"], capacity: int) -> PyTree:
    """Read rows.

    Args:
        tree: `ring.rows`, or some of its arrays.
        lane: the lane of each row.
        number: the number of each row, which must be one of the newest `capacity` in its lane.
        capacity: the ring's capacity.

    Returns:
        A pytree of arrays `[*batch, ...]`.
    """

    def read(leaf: Array, lane: Array, place: Array) -> Array:
        return leaf[lane, place]

    return jax.tree.map(lambda leaf: _where_it_is(read, leaf, lane, number % capacity, stays=False), tree)


def on_host(leaf: Any) -> bool:
    """Whether an array of a state lies in the host's memory although a device computes with the state."""
    return getattr(jax.typeof(leaf), "memory_space", None) == _HOST


def _where_it_is(function: Callable[..., Array], leaf: Array, *others: Array, stays: bool) -> Array:
    """Apply a function where the leaf lies. If `stays`, leave the result there, else put it on the device."""
    if not on_host(leaf):
        return function(leaf, *others)
    return _computed_on_host(function, _HOST if stays else _DEVICE)(leaf, *jax.device_put(others, _HOST))


def _computed_on_host(function: Callable[..., Array], result: Any) -> Callable[..., Array]:
    """Let the host compute a function of arrays in its memory; `result` is the memory space of the result."""
    return cast(Callable[..., Array], compute_on(function, compute_type="device_host", out_memory_spaces=result))
