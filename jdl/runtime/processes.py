"""Several processes, on one machine or many, that run one program on all of their devices together (JAX's own runtime).

Each runs the same Python; arrays may lie over the devices of all. The first process owns the run directory; the others
keep what they write in folders of their own that go when they end.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_HEARTBEAT = 30  # seconds after which a process that is silent counts as dead, and the others end
_WRITING = 600  # seconds that a process waits for another's part of a checkpoint
_count: list[int] = []
_TOLD = {
    kind.__name__: kind for kind in (FileExistsError, FileNotFoundError, OSError, LookupError, ValueError, TypeError)
}


def join(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    cluster: str | None = None,
    patience: int = 120,
) -> None:
    """Join the processes of a program, before JAX is first used.

    coordinator: HOST:PORT, where process 0 listens. count, index: how many processes there are, and which this one is.
    What is None follows from the environment that Slurm, Kubernetes, Open MPI or a cloud's TPUs set. cluster: which of
    these ("slurm", "k8s", "ompi", "mpi4py"), where it is not to be found out.
    Raises ConnectionError where nobody listens there after `patience` seconds, ValueError where nothing says who the
    processes are; where others do not come in that time, the process ends with a message and status 2.
    """
    if index is not None and count is not None and not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: processes are numbered from 0 to {count - 1}")
    if coordinator and index:
        _wait_for(coordinator, patience)
    _count[:] = [count] if count else []
    # Where some never come, JAX would abort this process with a trace of its own stack.
    alarm = threading.Timer(patience, _give_up, [_missing(count, index, coordinator, patience)])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            coordinator, count, index,
            cluster_detection_method=cluster or ("deactivate" if coordinator and count and index is not None else None),
            initialization_timeout=patience + 60, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=60,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{error} Give --coordinator HOST:PORT, --processes N and --index I, or --cluster") from error
    finally:
        alarm.cancel()
    if not _count:  # as the cluster says; to ask JAX in public would start its devices
        from jax._src import distributed

        _count[:] = [distributed.global_state.num_processes or 1]


def _missing(count: int | None, index: int | None, coordinator: str | None, patience: int) -> str:
    return (
        f"process {index} of {count} did not meet the others at {coordinator} in {patience} s: is process 0 running "
        "there, are all of them started, and can this machine reach that port?"
    )


def here() -> str:
    """HOST:PORT of this machine, for the processes on it: a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def _wait_for(coordinator: str, patience: int) -> None:
    """Return when somebody listens at HOST:PORT."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {coordinator!r}: give HOST:PORT")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"nobody listens at {coordinator} after {patience} s ({error}): is process 0 "
                    "running there, and can this machine reach that port?"
                ) from error
        time.sleep(0.2)


def _give_up(message: str) -> None:
    print(f"jdl: {message}", file=sys.stderr)
    leave(2)


def started() -> int:
    """How many processes there are; unlike `count` this starts no backend."""
    return _count[0] if _count else 1


def several() -> bool:
    """Whether this process is one of several; starts no backend where it is alone."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if several() else 1


def index() -> int:
    """Which of the processes this one is."""
    return jax.process_index() if several() else 0


def first() -> bool:
    """Whether this process is the one that writes."""
    return not several() or jax.process_index() == 0


def is_lost(error: Exception) -> bool:
    """Whether an error is that of a computation, or a meeting, that another process did not come to."""
    words = ("Gloo", "NCCL", "Connection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "barrier")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in words)


def leave(status: int) -> None:
    """End this process without waiting for the others, which notice; for one that has failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def from_first(value: Any) -> Any:
    """What the first process gives (of JSON's types), in all."""
    return everyones(value)[0]


def everyones(value: Any) -> list[Any]:
    """What each process gives (of JSON's types), in all."""
    if not several():
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def by_first(function: Callable[[], Any]) -> Any:
    """What a function gives (of JSON's types) that the first process alone calls; raises in all what it raises."""
    if not several():
        return function()
    told: dict[str, Any] = {}
    if first():
        try:
            told = {"value": function()}
        except tuple(_TOLD.values()) as error:
            kind = next(name for name, kind in _TOLD.items() if isinstance(error, kind))
            told = {"error": kind, "words": str(error)}
    told = from_first(told)
    if "error" in told:
        raise _TOLD[told["error"]](told["words"])
    return told["value"]


def agree(what: str, value: Mapping[str, Any]) -> None:
    """Raises ValueError in every process, saying who differs in what, where one was given other values."""
    ours, *others = everyones(value)
    for index, theirs in enumerate(others, 1):
        differ = [
            f"{name} {theirs.get(name)!r}, not {ours.get(name)!r}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differ:
            raise ValueError(f"process {index} was started with another {what} than process 0: {'; '.join(differ)}")


def barrier(name: str) -> None:
    """Return when all processes are here; from any thread. Each name once."""
    if several():
        from orbax.checkpoint import multihost  # through the coordinator: the devices go on meanwhile

        multihost.get_barrier_sync_fn()(key=f"jdl/{name}", timeout_ms=_WRITING * 1000)


def addressable(leaf: Any) -> bool:
    """Whether this process can read an array by itself."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def gathered(tree: Any) -> Any:
    """The tree with arrays whose parts lie with several processes brought together, as NumPy's, in every process."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda leaf: leaf if addressable(leaf) else multihost_utils.process_allgather(leaf, tiled=True), tree
    )


def local(tree: Any) -> Any:
    """The tree with arrays of this process alone: of what lies with several, its own copy."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else gathered(leaf)

    return jax.tree.map(one, tree)


def joined(array: np.ndarray, axis: int) -> np.ndarray:
    """The parts that each process has of an array, of equal shapes, side by side along an axis: in every process."""
    if not several():
        return array
    from jax.experimental import multihost_utils

    # As bytes: JAX would make single precision of double.
    rows = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.concatenate([np.frombuffer(row.tobytes(), array.dtype).reshape(array.shape) for row in rows], axis)


def part(array: np.ndarray, axis: int) -> np.ndarray:
    """This process's part of an array, as `joined` joined them."""
    return np.array_split(array, count(), axis)[index()]


def side_by_side(tree: Any, axis: int) -> Any:
    """Arrays over the devices of all processes, put together from a part of each along an axis."""
    if not several():
        return tree
    sharding = of_parts(axis)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def of_parts(axis: int = 0) -> jax.sharding.Sharding:
    """Where batches lie that are put together from a part of each process, along an axis."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(devices, ("process", "device"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "process"))


def placed(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, or can read in parts (`training.checkpoint.shards`), on the devices of all."""
    if sharding.is_fully_addressable:
        return jax.device_put(np.asarray(array), sharding)
    return jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: np.asarray(array[index]))


class Notice:
    """A scheduler's notice to any of the processes, given to all at the same call: asked once before each."""

    def __init__(self) -> None:
        self._calls = 0
        self._given = False

    def __bool__(self) -> bool:
        from jax.experimental import multihost_utils

        self._calls += 1
        self._given = self._given or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._given
