"""Batches of data that does not fit in memory, which Grain prepares ahead of the step that consumes them.

Batch n depends on the seed and n alone: it is the same for any number of workers, threads and batches prepared ahead,
and a position in the data is a single number.
"""

import functools
import operator
import os
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from jdl.data.dataset import check
from jdl.data.workers import check_sendable, enter_worker, explain_death
from jdl.runtime import processes

type Example = Any
type Numbered = tuple[int, Example]


@runtime_checkable
class Examples(Protocol):
    """Random access to examples: a length, and example i at `[i]`.

    If there is a method `name(i)`, error messages use it.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


def pipeline(
    data: Examples,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    map: Callable[[Example], Example] | None = None,
    random_map: Callable[[Example, np.random.Generator], Example] | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    drop_remainder: bool = True,
    shard: tuple[int, int] | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> "Pipeline":
    """Return an endless source of batches from data that is read one example at a time.

    Each epoch has a different order, if the data is shuffled.

    Args:
        data: `jdl.data.image_folder`, `token_file`, `array_records`, or anything with a length whose `[i]` is a dict
            of arrays.
        batch_size: examples per batch, over all processes together.
        seed: determines the order of the examples and what `random_map` draws.
        shuffle: whether to shuffle the examples.
        map: applied to each example.
        random_map: applied to each example after `map`, with a NumPy generator that depends on the seed and on the
            example's place in the epochs.
        workers: the number of processes that read and map; 0 does so in this process. Each worker imports the
            functions it is given anew (those of a script or a notebook, and lambdas, are sent to it), so a script
            must train under `if __name__ == "__main__":`.
        threads: threads in this process, or in each worker; each prepares one batch at a time.
        prefetch: batches that a thread of this process puts on the device ahead of time; with 0, each is put there
            when it is requested.
        drop_remainder: whether to leave out an epoch's last examples if they do not fill a batch; otherwise they make
            a smaller batch.
        shard: `(index, count)`, which of `count` equal parts of every batch this process reads; by default JAX's
            process index and count.
        sharding: where to place batches. With several processes, it makes their parts one global array, by default
            over all of them.

    Raises:
        ImportError: if Grain is not installed.
        ValueError: for sizes that do not fit the data or each other, for functions that cannot be sent to workers,
            and for a first example that `jdl.data.check` refuses. `next` raises ValueError for an example that cannot
            be read, mapped or stacked, and names it.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError("pipeline needs Grain: pip install 'jdl[grain]'") from error
    if isinstance(data, Mapping):
        raise ValueError(
            "pipeline reads one example after the other; for arrays in memory use Batches(data, batch_size)"
        )
    if shard is None and sharding is None and processes.several():
        sharding = processes.of_parts()
    index, count = (jax.process_index(), jax.process_count()) if shard is None else shard
    size = len(data)
    _check_sizes(size, batch_size, (index, count), drop_remainder)
    least = {"seed": (seed, 0), "workers": (workers, 0), "threads": (threads, 1), "prefetch": (prefetch, 0)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"pipeline({name}={value}): it is at least {lowest}")
    if workers:
        check_sendable(workers, {"data": data, "map": map, "random_map": random_map})

    order_seed, map_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    examples: Any = grain.MapDataset.source(_Read(data))
    if shuffle:
        examples = examples.shuffle(seed=order_seed)
    if map is not None:
        examples = examples.map(_Mapped(map, data))
    if random_map is not None:
        examples = examples.random_map(_Mapped(random_map, data), seed=map_seed)
    example = _Stacked(data)([examples[0]])
    check(example, name="the first example")
    # The parts of a batch are consecutive: put together, the processes' parts are the batch of a single process.
    parts = examples.batch(batch_size // count, drop_remainder=drop_remainder, batch_fn=list).map(_Stacked(data))
    if drop_remainder:
        parts = parts[: size // batch_size * count]
    identity = {"examples": size, "batch_size": batch_size, "seed": seed}
    missing = ["shuffle=False"] * shuffle + ["no random_map"] * (random_map is not None)
    missing += ["drop_remainder=False"] * bool(drop_remainder and size % batch_size)
    why_no_epoch = f"evaluation sees each example once, as it is: give the pipeline {', '.join(missing)}"
    whole: Any = parts[index::count]
    return Pipeline(
        whole.repeat(),
        example,
        identity,
        workers,
        threads,
        prefetch,
        sharding,
        why_no_epoch if missing else whole.map(_FilledUp(batch_size)) if size % batch_size else whole,
        len(whole),
    )


def _check_sizes(size: int, batch_size: int, shard: tuple[int, int], drop_remainder: bool) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"pipeline(shard={shard}): give (index, count) with an index from 0 to count - 1")
    if not 1 <= batch_size <= size:
        raise ValueError(f"pipeline(batch_size={batch_size}): the data has {size} examples; use 1 to {size}")
    if batch_size % count:
        raise ValueError(f"pipeline(batch_size={batch_size}) does not divide over {count} processes; use a multiple")
    if not drop_remainder and count > 1 and size % batch_size:
        raise ValueError(
            f"pipeline(drop_remainder=False): the last batch of an epoch has {size % batch_size} of {size} examples, "
            f"and {count} processes take batches of equal size; drop the remainder"
        )


class Pipeline:
    """The `jdl.Source` that `pipeline` returns. It reads ahead; `close` ends its threads and worker processes.

    A pipeline that keeps the order and leaves nothing out can also be passed to `jdl.evaluate` and
    `jdl.fit(validation=)`.

    Attributes:
        example: a batch of one example, as `jdl.supervised(..., example=)` takes it.
        batch_size: examples per batch.
        batches_per_epoch: how many batches make an epoch, for `fit(epochs=)`.
        position: the number of batches consumed.
        waited: the seconds that `next` has waited for batches that were not ready.
    """

    def __init__(
        self,
        batches: Any,
        example: PyTree,
        identity: dict[str, int],
        workers: int,
        threads: int,
        prefetch: int,
        sharding: jax.sharding.Sharding | None,
        whole: Any = "",
        batches_per_epoch: int = 0,
    ) -> None:
        self.example = example
        self.batches_per_epoch = batches_per_epoch
        self.batch_size = identity["batch_size"]
        self.position = 0
        self.waited = 0.0
        self._batches = batches  # an endless Grain MapDataset
        self._identity = identity
        self._whole = whole  # a Grain MapDataset of one pass, or the reason why there is none
        self._readers: list[Pipeline] = []  # pipelines for `epoch` that no pass uses at the moment
        self._workers, self._threads, self._prefetch = workers, threads, prefetch
        self._sharding = sharding
        self._place = functools.partial(_placed, shared=workers > 0, sharding=sharding)
        # Grain's iterators from `position` on, none until `next` is called: on the host, then ahead on the device.
        self._iterators: list[Any] = []
        # Close also when this source is garbage-collected, and at exit, where Grain's own cleanup comes too late.
        weakref.finalize(self, _close, self._iterators)

    def next(self, state: PyTree = None) -> PyTree:
        """Return the next batch, on the devices.

        Args:
            state: as in `jdl.Source.next`; it is ignored.

        Raises:
            RuntimeError: if a worker process died; an exception in one is raised as it is.
        """
        started = time.perf_counter()
        if not self._iterators:
            self._start()
        try:
            batch = next(self._iterators[-1])
        except Exception as error:
            self.close()
            # Grain's frames and the error refer to each other, and would keep the semaphores of the workers alive.
            traceback.clear_frames(error.__traceback__)
            explain_death(error)
            raise
        self.waited += time.perf_counter() - started
        self.position += 1
        return batch

    def epoch(self) -> Iterator[PyTree]:
        """Iterate over the batches of one pass over the data, all of one size.

        A mask marks the filling of the last batch. The position of `next` does not change.

        Raises:
            ValueError: for a pipeline whose epochs differ or leave examples out.
        """
        if isinstance(self._whole, str):
            raise ValueError(self._whole)
        return self._pass()

    def _pass(self) -> Iterator[PyTree]:
        options = self._workers, self._threads, self._prefetch, self._sharding
        if not self._readers:
            self._readers.append(Pipeline(self._whole.repeat(), self.example, self._identity, *options))
        reader = self._readers.pop()
        try:
            for _ in range(len(self._whole)):
                yield reader.next()
            self._readers.append(reader)  # it has already begun to read ahead
        finally:
            if reader not in self._readers:  # the caller stopped in the middle
                reader.close()

    def _start(self) -> None:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads one of its flags (github.com/google/grain/issues/1355)
            flags.FLAGS.mark_as_parsed()
        reading = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        working = grain.MultiprocessingOptions(num_workers=self._workers)
        batches = self._batches[self.position :].to_iter_dataset(reading).mp_prefetch(working, enter_worker)
        on_host = iter(batches)
        # get_state makes Grain's iterator aware of all workers, so that it starts them at once and ends them all.
        on_host.get_state()
        on_host.start_prefetch()
        placing: Any = _Placing(on_host, self._place)
        self._iterators[:] = on_host, grain.experimental.ThreadPrefetchDatasetIterator(placing, self._prefetch)

    def save(self) -> dict[str, int]:
        """Return the number of batches given so far, and what identifies the data."""
        return {"position": self.position, **self._identity}

    def restore(self, saved: PyTree) -> None:
        """Go to a place that `save` returned.

        Args:
            saved: the place.

        Raises:
            ValueError: for a place in other data, or in other batches.
        """
        for name, value in self._identity.items():
            if int(saved[name]) != value:
                raise ValueError(
                    f"the place in the data was saved with {name} {saved[name]}, and this pipeline has {value}; "
                    "its batches would be others: resume with the data and the arguments that the run began with"
                )
        self.close()
        self.position = int(saved["position"])

    def close(self) -> None:
        """End the threads and worker processes. A later `next` starts them again at the same position."""
        _close(self._iterators)
        _close(self._readers)


def _close(iterators: list[Any]) -> None:
    while iterators:
        iterators.pop().close()


class _FilledUp:
    """Fills batches up to one size with zeros. A mask marks the examples; a mask that is already there is kept."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, batch: PyTree) -> PyTree:
        examples = len(jax.tree.leaves(batch)[0])
        fill = lambda leaf: np.pad(leaf, [(0, self._size - examples)] + [(0, 0)] * (leaf.ndim - 1))  # noqa: E731
        return jax.tree.map(fill, {"mask": np.ones(examples, np.float32), **batch})


class _Placing:
    """The iterator that Grain's prefetching thread consumes: it puts each batch on the device."""

    def __init__(self, on_host: Any, place: Callable[[PyTree], PyTree]) -> None:
        self._on_host, self._place = on_host, place

    def __next__(self) -> PyTree:
        return self._place(next(self._on_host))

    def get_state(self) -> dict[str, Any]:
        return {}  # the pipeline's position is the place in the data


def _placed(batch: PyTree, shared: bool, sharding: jax.sharding.Sharding | None) -> PyTree:
    if shared:  # workers reuse the memory; a CPU device would keep using it, and its file handle, in place
        batch = jax.tree.map(np.array, batch)
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


class _Read:
    """A data source for Grain that gives each example with its index."""

    def __init__(self, data: Examples) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Numbered:
        index = operator.index(index)
        try:
            return index, self._data[index]
        except Exception as error:
            raise _failure(self._data, index, "be read", error) from error


class _Mapped:
    """Applies the user's map to an example that comes with its index."""

    def __init__(self, function: Callable[..., Example], data: Examples) -> None:
        self._function, self._data = function, data

    def __call__(self, numbered: Numbered, *generator: np.random.Generator) -> Numbered:
        index, example = numbered
        try:
            return index, self._function(example, *generator)
        except Exception as error:
            raise _failure(self._data, index, "be mapped", error) from error


def _failure(data: Examples, index: int, what: str, error: Exception) -> ValueError:
    # A type that a worker can send, with everything in its message, because an exception's cause is not sent.
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.name}, {os.path.basename(place.filename)} line {place.lineno}"
    return ValueError(f"{_called(data, index)} could not {what}: {type(error).__name__}: {error} (in {where})")


def _called(data: Examples, index: int) -> str:
    name = getattr(data, "name", None)
    return f"example {index} ({name(index)})" if callable(name) else f"example {index}"


class _Stacked:
    """Stacks examples that come with their indices into a batch."""

    def __init__(self, data: Examples) -> None:
        self._data = data

    def __call__(self, numbered: Sequence[Numbered]) -> PyTree:
        examples = [jax.tree.map(np.asarray, example) for _, example in numbered]
        first = _kind(examples[0])
        for (index, _), example in zip(numbered, examples, strict=True):
            if _kind(example) != first:
                raise ValueError(
                    f"{_called(self._data, index)} is {_described(example)}, and "
                    f"{_called(self._data, numbered[0][0])} is {_described(examples[0])}; "
                    "make them alike in map: crop, resize or pad"
                )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _kind(example: Example) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(example)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _described(example: Example) -> Example:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", example)
