"""Sources of batches. A source is the only object in training with a state of its own: its place in the data."""

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

_DRAWN_AT_ONCE = 16384  # indices; for small data, one dispatch per epoch would take longer than its steps


@functools.partial(jax.jit, static_argnums=2)
def _orders(key: Array, epochs: Array, size: int) -> Array:
    """Draw the orders [epochs, size] of several epochs."""
    return jax.vmap(lambda epoch: epoch_indices(key, epoch, size))(epochs)


@runtime_checkable
class Source(Protocol):
    """A provider of batches for `fit`. Any object with these three methods is a source.

    Optional attributes: `batches_per_epoch`, which `fit(epochs=)` needs; `data`, a dict of arrays whose labels `fit`
    then checks; and `waited`, the seconds that `next` has waited for batches that were not ready, for a warning.
    """

    def next(self, state: State) -> Batch:
        """Return the next batch.

        Args:
            state: the learner's state before the step, for sources that act in environments; most ignore it.
        """
        ...

    def save(self) -> PyTree:
        """Return the place after the last batch that `next` returned, as arrays and numbers, for a checkpoint."""
        ...

    def restore(self, saved: PyTree) -> None:
        """Go to a place that `save` returned.

        Args:
            saved: the place.
        """
        ...


class Batches:
    """An endless source of shuffled batches of arrays in memory.

    Each epoch has a different order and leaves out a remainder smaller than a batch.

    Attributes:
        data: the data, as NumPy arrays.
        size: examples in the data.
        batch_size: examples per batch.
        shuffle: whether the examples are shuffled.
        position: the number of batches consumed.
    """

    def __init__(self, data: Mapping[str, Any], batch_size: int, key: Array | int = 0, shuffle: bool = True) -> None:
        """Make a source that begins with the first batch.

        Args:
            data: a dict of arrays, or of dicts of arrays, with a leading example axis.
            batch_size: examples per batch.
            key: a JAX key or an integer seed, for the order. With the key of a run, these are the same batches that
                `feed` draws in that run.
            shuffle: whether to shuffle the examples.

        Raises:
            ValueError: for data that `jdl.data.check` refuses, and for a batch size below 1 or above the data's size.
        """
        check(data)
        self.data = jax.tree.map(np.asarray, dict(data))
        self.size = len(jax.tree.leaves(self.data)[0])
        if not 1 <= batch_size <= self.size:
            raise ValueError(
                f"Batches(batch_size={batch_size}): the data has {self.size} examples; use 1 to {self.size}"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.position = 0
        self._key = fold(jax.random.key(key) if isinstance(key, int) else key, "shuffle")
        self._first, self._orders = 0, np.empty((0, self.size), np.int32)  # the orders of epochs `_first`, ...

    def next(self, state: State = None) -> dict[str, Any]:
        """Return the next batch.

        Args:
            state: as in `Source.next`; it is ignored.
        """
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
        """The number of whole batches in an epoch."""
        return self.size // self.batch_size

    def save(self) -> dict[str, int]:
        """Return the number of batches given so far."""
        return {"position": self.position}

    def restore(self, saved: dict[str, int]) -> None:
        """Go to a place that `save` returned.

        Args:
            saved: the place.
        """
        self.position = int(saved["position"])


class Bucketed:
    """An endless source of batches of sequences of similar lengths, drawn by `jdl.data.buckets`.

    There is one batch shape per boundary. Use a learner made with `jdl.supervised(..., any_length=True)`.

    Attributes:
        position: the number of batches consumed.
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
        """Make a source that begins with the first batch.

        Args:
            make: `(indices [batch], length) -> batch`, a dict with those examples, padded to that length
                (`jdl.data.pad`). Its `"mask"`, or a new one, is set to 0 for repetitions that fill a bucket's last
                batch.
            lengths: the length of each example, integers `[examples]`.
            boundaries: increasing lengths; each example is padded to the first boundary that is not shorter.
            batch_size: examples per batch. Give either this or `tokens_per_batch`.
            tokens_per_batch: tokens per batch, padding included; each batch takes as many examples as fit.
            key: a JAX key or an integer seed, for the order.

        Raises:
            ValueError: as `jdl.data.buckets` does, such as for an example longer than the last boundary.
        """
        key = fold(jax.random.key(key) if isinstance(key, int) else key, "shuffle")
        self._make = make
        self._drawn = functools.partial(
            buckets, lengths, boundaries, batch_size=batch_size, tokens_per_batch=tokens_per_batch, key=key
        )
        self._epoch, self._buckets = 0, self._drawn(epoch=0)
        self.position = 0

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in an epoch, the same in all."""
        return len(self._buckets)

    def next(self, state: State = None) -> dict[str, Any]:
        """Return the next batch.

        Args:
            state: as in `Source.next`; it is ignored.
        """
        epoch, place = divmod(self.position, len(self._buckets))  # all epochs have the same number of batches
        if epoch != self._epoch:
            self._epoch, self._buckets = epoch, self._drawn(epoch=epoch)
        bucket = self._buckets[place]
        self.position += 1
        batch = self._make(bucket.indices, bucket.length)
        return {**batch, "mask": bucket.mask * np.asarray(batch.get("mask", 1), np.float32)}

    def save(self) -> dict[str, int]:
        """Return the number of batches given so far."""
        return {"position": self.position}

    def restore(self, saved: dict[str, int]) -> None:
        """Go to a place that `save` returned.

        Args:
            saved: the place.
        """
        self.position = int(saved["position"])


class Whole:
    """A source that gives the whole data set at every step, for a learner made by `feed`.

    Attributes:
        data: the data; None for a learner that makes its own.
    """

    def __init__(self, data: Mapping[str, Any] | None) -> None:
        """Check the data, if there is any.

        Args:
            data: a dict of arrays with a leading example axis, or None.

        Raises:
            ValueError: for data that `jdl.data.check` refuses.
        """
        if data is not None:
            check(data)
        self.data = data

    def next(self, state: State = None) -> Batch:
        """Return the next batch.

        Args:
            state: as in `Source.next`; it is ignored.
        """
        return self.data

    def save(self) -> dict[str, int]:
        """Return nothing: the place in the data follows from the learner's state."""
        return {}

    def restore(self, saved: PyTree) -> None:
        """Do nothing: the place in the data follows from the learner's state.

        Args:
            saved: what `save` returned.
        """
