"""What feeds a learner. A source is the only impure object: it gives batches and knows its place."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jdl.data.dataset import check
from jdl.data.shuffle import epoch_indices
from jdl.learner import Batch, State, fold


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
        self.data = {name: np.asarray(leaf) for name, leaf in data.items()}
        self.size = len(next(iter(self.data.values())))
        if not 1 <= batch_size <= self.size:
            raise ValueError(
                f"Batches(batch_size={batch_size}): the data has {self.size} examples; use 1 to {self.size}"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.position = 0  # batches consumed
        self._key = fold(jax.random.key(key) if isinstance(key, int) else key, "shuffle")
        self._epoch = -1
        self._order = np.arange(self.size)

    def next(self, state: State = None) -> dict[str, np.ndarray]:
        epoch, place = divmod(self.position, self.size // self.batch_size)
        if self.shuffle and epoch != self._epoch:
            self._order = np.asarray(epoch_indices(self._key, epoch, self.size))
            self._epoch = epoch
        indices = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        self.position += 1
        return {name: leaf[indices] for name, leaf in self.data.items()}

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
