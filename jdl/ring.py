"""Rows in the order they came, in storage that is there from the start: the newest overwrite the oldest.

A state may hold rings of any size: a checkpoint appends the rows that are new, and never writes the others again.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


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


def put(ring: Ring, rows: PyTree, numbers: Int[Array, "lanes count"]) -> Ring:
    """Write rows [lanes, count, ...] as the rows of these numbers; a negative number leaves one out.

    `written` is the caller's to advance.
    """
    capacity = ring.capacity
    places = jnp.where(numbers >= 0, numbers % capacity, capacity)
    lanes = jnp.arange(len(places))[:, None]
    stored = jax.tree.map(lambda leaf, new: leaf.at[lanes, places].set(new, mode="drop"), ring.rows, rows)
    return ring.replace(rows=stored)  # type: ignore[attr-defined]


def get(tree: PyTree, lane: Int[Array, "*#batch"], number: Int[Array, "*#batch"], capacity: int) -> PyTree:
    """The rows of these numbers, from `ring.rows` or a part of it."""
    return jax.tree.map(lambda leaf: leaf[lane, number % capacity], tree)
