"""What feeds a learner. A source is the only impure object: it gives batches and knows its place."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, PyTree
from numpy.typing import ArrayLike

from jdl.core.learner import Batch, State, fold
from jdl.data.dataset import check
from jdl.data.lengths import buckets
from jdl.data.shuffle import epoch_indices

_DRAWN_AT_ONCE = 16384  # indices; for small data, a dispatch an epoch would cost more than its steps


@functools.partial(jax.jit, static_argnums=2)
def _orders(key: Array, epochs: Array, size: int) -> Array:
    """The orders [epochs, size] of several epochs."""
    return jax.vmap(lambda epoch: epoch_indices(key, epoch, size))(epochs)


@runtime_checkable
class Source(Protocol):
    """Batches for a learner's steps; `save` names the last batch that was consumed, never one prefetched."""

    def next(self, state: State) -> Batch: ...
    def save(self) -> PyTree: ...
    def restore(self, saved: PyTree) -> None: ...


class Batches:
    """Shuffled batches of arrays in memory; each epoch leaves out a remainder smaller than a batch.

    key: a JAX key or an integer seed. With a run's own key these are the batches that `feed` draws in that run.
    Raises ValueError for data that `jdl.data.check` refuses and for a batch larger than the data.
    """

    def __init__(self, data: Mapping[str, Any], batch_size: int, key: Array | int = 0, shuffle: bool = True) -> None:
        check(data)
        self.data = jax.tree.map(np.asarray, dict(data))
        self.size = len(jax.tree.leaves(self.data)[0])
        if not 1 <= batch_size <= self.size:
            raise ValueError(
                f"Batches(batch_size={batch_size}): the data has {self.size} examples; use 1 to {self.size}"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.position = 0  # batches consumed
        self._key = fold(jax.random.key(key) if isinstance(key, int) else key, "shuffle")
        self._first, self._orders = 0, np.empty((0, self.size), np.int32)  # of the epochs from `_first` on

    def next(self, state: State = None) -> dict[str, Any]:
        epoch, place = divmod(self.position, self.size // self.batch_size)
        indices = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        self.position += 1
        return jax.tree.map(lambda leaf: leaf[indices], self.data)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        if not 0 <= epoch - self._first < len(self._orders):
            epochs = epoch + np.arange(max(1, _DRAWN_AT_ONCE // self.size))
            self._first, self._orders = epoch, np.asarray(_orders(self._key, epochs, self.size))
        return self._orders[epoch - self._first]

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.size // self.batch_size

    def save(self) -> dict[str, int]:
        return {"position": self.position}

    def restore(self, saved: dict[str, int]) -> None:
        self.position = int(saved["position"])


class Bucketed:
    """Batches of sequences of like lengths, as `jdl.data.buckets` draws them: as many shapes as boundaries.

    For a learner made with `jdl.supervised(..., any_length=True)`.

    make: `(indices [batch], length) -> batch`, those examples, their sequences of that length (`jdl.data.pad`). A
    `"mask"` joins them, zero also for what only fills up a bucket's last batch. Raises ValueError as `buckets` does.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray, int], dict[str, Any]],
        lengths: ArrayLike,
        boundaries: Sequence[int],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        key: Array | int = 0,
    ) -> None:
        key = fold(jax.random.key(key) if isinstance(key, int) else key, "shuffle")
        self._make = make
        self._drawn = functools.partial(
            buckets, lengths, boundaries, batch_size=batch_size, tokens_per_batch=tokens_per_batch, key=key
        )
        self._epoch, self._buckets = 0, self._drawn(epoch=0)
        self.position = 0  # batches consumed

    @property
    def batches_per_epoch(self) -> int:
        """As many in every epoch."""
        return len(self._buckets)

    def next(self, state: State = None) -> dict[str, Any]:
        epoch, place = divmod(self.position, len(self._buckets))  # an epoch has as many as any other
        if epoch != self._epoch:
            self._epoch, self._buckets = epoch, self._drawn(epoch=epoch)
        bucket = self._buckets[place]
        self.position += 1
        batch = self._make(bucket.indices, bucket.length)
        return {**batch, "mask": bucket.mask * np.asarray(batch.get("mask", 1), np.float32)}

    def save(self) -> dict[str, int]:
        return {"position": self.position}

    def restore(self, saved: dict[str, int]) -> None:
        self.position = int(saved["position"])


class Whole:
    """The whole data set at every step, for a learner made by `feed` (or `None` for one that needs no data)."""

    def __init__(self, data: Mapping[str, Any] | None) -> None:
        if data is not None:
            check(data)
        self.data = data

    def next(self, state: State = None) -> Batch:
        return self.data

    def save(self) -> dict[str, int]:
        return {}

    def restore(self, saved: PyTree) -> None:
        """The place in the data is in the learner's state."""
