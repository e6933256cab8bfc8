"""Batches of data that does not fit in memory, made by Grain ahead of the step that takes them.

Batch n follows from the seed and n alone: it is the same whatever the number of workers, threads and batches made
ahead, and a place in the data is one number.
"""

import functools
import importlib.machinery
import multiprocessing
import operator
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from jdl.data.dataset import check
from jdl.runtime import processes

type Example = Any
type Numbered = tuple[int, Example]


@runtime_checkable
class Examples(Protocol):
    """Random access: a length, and example i at `[i]`; a method `name(i)`, if there is one, is used in messages."""

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
    """A source of batches, without end, from data that is read example by example.

    data: `jdl.data.image_folder`, `token_file`, `array_records`, or anything with a length whose `[i]` is a dict of
    arrays. Each epoch has an order of its own and leaves out a remainder smaller than a batch, which without
    drop_remainder is a batch too. map, then random_map, act on an example; the generator that random_map is given
    follows from the seed and the place in the epochs.
    workers: processes that read and map, none by default; each imports the functions it is given anew (those of a
    script, a notebook and lambdas are sent), so that a script trains under `if __name__ == "__main__":`. threads: in
    this process or in each worker, one batch in the making each. prefetch: batches that a thread of this process puts
    on the device ahead of time; 0 puts each when it is asked for.
    shard: `(index, count)`, which of count equal parts of every batch this process reads; by default JAX's process.
    sharding: where batches go; over several processes it makes their parts one global array, by default over them all.

    Raises ValueError for sizes that don't fit the data or each other, for functions that cannot be sent to workers,
    and for a first example that `jdl.data.check` refuses; `next` raises ValueError, naming the example, for one that
    cannot be read, mapped or stacked.
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
        _check_sendable(workers, {"data": data, "map": map, "random_map": random_map})

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
    # Parts of a batch follow each other: the processes' parts, put together, are the batch that one would make.
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
    """What `pipeline` gives: a `jdl.Source` that reads ahead; `close` it to end its threads and worker processes.

    In order and with nothing left out, it is also what `jdl.evaluate` and `jdl.fit(validation=)` take.

    example: a batch of one, as `jdl.supervised(..., example=)` takes it. position: batches consumed. waited: seconds
    that `next` was blocked, for lack of a batch that was ready.
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
    ) -> None:
        self.example = example
        self.batch_size = identity["batch_size"]
        self.position = 0
        self.waited = 0.0
        self._batches = batches  # a Grain MapDataset without end
        self._identity = identity
        self._whole = whole  # a Grain MapDataset of one pass, or why there is none
        self._readers: list[Pipeline] = []  # of passes, between two of them
        self._workers, self._threads, self._prefetch = workers, threads, prefetch
        self._sharding = sharding
        self._place = functools.partial(_placed, shared=workers > 0, sharding=sharding)
        # Grain's, over the batches from `position` on, once one was asked for: on the host, and ahead on the device.
        self._iterators: list[Any] = []
        # Also where the source is forgotten, and before the interpreter ends: then Grain itself would be too late.
        weakref.finalize(self, _close, self._iterators)

    def next(self, state: PyTree = None) -> PyTree:
        started = time.perf_counter()
        if not self._iterators:
            self._start()
        try:
            batch = next(self._iterators[-1])
        except Exception as error:
            self.close()
            # Grain's frames and the error hold each other, and with them the semaphores of the workers.
            traceback.clear_frames(error.__traceback__)
            _explain_death(error)
            raise
        self.waited += time.perf_counter() - started
        self.position += 1
        return batch

    def epoch(self) -> Iterator[PyTree]:
        """The batches of one pass over the data, of one size: a mask marks what fills up the last one.

        The place of `next` stays where it is. Raises ValueError for a pipeline whose epochs differ or leave examples
        out.
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
            self._readers.append(reader)  # which has begun to read ahead
        finally:
            if reader not in self._readers:  # somebody stopped in the middle
                reader.close()

    def _start(self) -> None:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain 0.2.18 asks for one of its flags (github.com/google/grain/issues/1355)
            flags.FLAGS.mark_as_parsed()
        reading = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        working = grain.MultiprocessingOptions(num_workers=self._workers)
        batches = self._batches[self.position :].to_iter_dataset(reading).mp_prefetch(working, _enter_worker)
        on_host = iter(batches)
        # The state asked for makes Grain's iterator over workers know them all, to start them at once and end them all.
        on_host.get_state()
        on_host.start_prefetch()
        placing: Any = _Placing(on_host, self._place)
        self._iterators[:] = on_host, grain.experimental.ThreadPrefetchDatasetIterator(placing, self._prefetch)

    def save(self) -> dict[str, int]:
        return {"position": self.position, **self._identity}

    def restore(self, saved: PyTree) -> None:
        for name, value in self._identity.items():
            if int(saved[name]) != value:
                raise ValueError(
                    f"the place in the data was saved with {name} {saved[name]}, and this pipeline has {value}; "
                    "its batches would be others: resume with the data and the arguments that the run began with"
                )
        self.close()
        self.position = int(saved["position"])

    def close(self) -> None:
        """End the threads and worker processes; a `next` after it starts them anew where the last one was."""
        _close(self._iterators)
        _close(self._readers)


def _close(iterators: list[Any]) -> None:
    while iterators:
        iterators.pop().close()


class _FilledUp:
    """Batches of one size: a mask marks what is no example (one that is there already has zeros there)."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, batch: PyTree) -> PyTree:
        examples = len(jax.tree.leaves(batch)[0])
        fill = lambda leaf: np.pad(leaf, [(0, self._size - examples)] + [(0, 0)] * (leaf.ndim - 1))  # noqa: E731
        return jax.tree.map(fill, {"mask": np.ones(examples, np.float32), **batch})


class _Placing:
    """What Grain's prefetching thread iterates over: batches, put on the device."""

    def __init__(self, on_host: Any, place: Callable[[PyTree], PyTree]) -> None:
        self._on_host, self._place = on_host, place

    def __next__(self) -> PyTree:
        return self._place(next(self._on_host))

    def get_state(self) -> dict[str, Any]:
        return {}  # the place in the data is the pipeline's position


def _placed(batch: PyTree, shared: bool, sharding: jax.sharding.Sharding | None) -> PyTree:
    if shared:  # the memory goes back to the workers; a CPU device would keep using it, and its file handle, in place
        batch = jax.tree.map(np.array, batch)
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


class _Read:
    """Grain's data source: numbered examples."""

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
    """A map of the user's over numbered examples."""

    def __init__(self, function: Callable[..., Example], data: Examples) -> None:
        self._function, self._data = function, data

    def __call__(self, numbered: Numbered, *generator: np.random.Generator) -> Numbered:
        index, example = numbered
        try:
            return index, self._function(example, *generator)
        except Exception as error:
            raise _failure(self._data, index, "be mapped", error) from error


def _failure(data: Examples, index: int, what: str, error: Exception) -> ValueError:
    # Of a kind that can be sent from a worker, with all that is said in its words: causes stay behind.
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.name}, {os.path.basename(place.filename)} line {place.lineno}"
    return ValueError(f"{_called(data, index)} could not {what}: {type(error).__name__}: {error} (in {where})")


def _called(data: Examples, index: int) -> str:
    name = getattr(data, "name", None)
    return f"example {index} ({name(index)})" if callable(name) else f"example {index}"


class _Stacked:
    """A batch of numbered examples."""

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


def _check_sendable(workers: int, things: dict[str, Any]) -> None:
    import cloudpickle  # which Grain sends by

    for name, thing in things.items():
        module = sys.modules.get(getattr(thing, "__module__", None) or type(thing).__module__)
        if module is not None and not _importable(module.__name__):  # an experiment's file, say
            cloudpickle.register_pickle_by_value(module)
        try:
            cloudpickle.dumps(thing)
        except Exception as error:
            raise ValueError(
                f"pipeline(workers={workers}): {name} cannot be sent to another process ({type(error).__name__}: "
                f"{error}); let it open files and make locks and generators when it is called, or use workers=0"
            ) from error


def _importable(module: str) -> bool:
    """Whether another process would find a module."""
    if module == "__main__" or module in sys.builtin_module_names:
        return True
    package = module.rpartition(".")[0]
    path = getattr(sys.modules.get(package), "__path__", None) if package else None
    return importlib.machinery.PathFinder.find_spec(module, path) is not None


def _enter_worker(index: int, count: int) -> None:
    """What a worker process does first: it leaves accelerators alone, and ends with the process that it works for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # which was imported before this
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process is told, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_DEATHS = {
    "-7": "shared memory is full; give more (docker run --shm-size=8g), or use fewer workers or smaller batches",
    "-9": "it was killed, as by a machine short of memory; use fewer workers or threads",
    "1": 'if it could not start: what a script does is put under `if __name__ == "__main__":`, since workers import it',
}


def _explain_death(error: Exception) -> None:
    words = str(error)
    if "terminated unexpectedly with exit code" in words:
        code = words.partition("exit code ")[2].split(".")[0]
        hint = _DEATHS.get(code, "what it printed above may say why")
        raise RuntimeError(f"a worker process of the pipeline ended with exit code {code}: {hint}") from error
