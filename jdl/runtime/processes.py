"""Several processes, on one machine or many, that run one program on all their devices (JAX's distributed runtime).

Every process runs the same Python code, and arrays may be spread over the devices of all processes. The first process
owns the run directory. The others write to temporary folders that are deleted when they end.
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

from jdl.runtime import output

_HEARTBEAT = 30  # seconds of silence after which a process counts as dead and the others end
_WRITING = 600  # seconds that a process waits for another process's part of a checkpoint
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
    """Join the processes of a program; call it before JAX is first used.

    Arguments that are None are taken from the environment that Slurm, Kubernetes, Open MPI or a cloud's TPUs set. If
    other processes do not come within `patience` seconds, this process ends with a message and status 2.

    Args:
        coordinator: HOST:PORT at which process 0 listens.
        count: the number of processes.
        index: the index of this process, from 0 up.
        cluster: "slurm", "k8s", "ompi" or "mpi4py", if it should not be detected.
        patience: seconds to wait for the coordinator and for the other processes.

    Raises:
        ConnectionError: if nobody listens at the coordinator's address after `patience` seconds.
        ValueError: for an index outside the count, and if nothing says who the processes are.
    """
    if index is not None and count is not None and not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: processes are numbered from 0 to {count - 1}")
    if coordinator and index:
        _wait_for(coordinator, patience)
    _count[:] = [count] if count else []
    # If some processes never come, JAX would abort this one with a trace of its own stack: end before that.
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
    if not _count:  # taken from the cluster; JAX's public functions would start its devices
        from jax._src import distributed

        _count[:] = [distributed.global_state.num_processes or 1]
    if _count[0] > 1:
        output.drop_lines(b"[Gloo]")  # how many peers the collectives of CPUs connect to


def _missing(count: int | None, index: int | None, coordinator: str | None, patience: int) -> str:
    return (
        f"process {index} of {count} did not meet the others at {coordinator} in {patience} s: is process 0 running "
        "there, are all of them started, and can this machine reach that port?"
    )


def here() -> str:
    """Return HOST:PORT with a free port of this machine, for processes that all run on it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def reach(address: str, timeout: float = 5) -> None:
    """See that somebody listens at HOST:PORT; raises OSError where nobody does within `timeout` seconds."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator {address!r}: give HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()


def _wait_for(coordinator: str, patience: int) -> None:
    """Wait until somebody listens at HOST:PORT."""
    deadline = time.monotonic() + patience
    while True:
        try:
            reach(coordinator)
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
    """Return the number of processes. Unlike `count`, this starts no backend."""
    return _count[0] if _count else 1


def several() -> bool:
    """Whether this process is one of several. If it is the only one, this starts no backend."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """Return the number of processes."""
    return jax.process_count() if several() else 1


def index() -> int:
    """Return the index of this process."""
    return jax.process_index() if several() else 0


def first() -> bool:
    """Whether this process is the one that writes."""
    return not several() or jax.process_index() == 0


def is_lost(error: Exception) -> bool:
    """Whether an error means that another process did not take part in a computation or a barrier."""
    words = ("Gloo", "NCCL", "Connection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "barrier")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in words)


def leave(status: int) -> None:
    """End this process after a failure, without waiting for the others, which notice that it is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def from_first(value: Any) -> Any:
    """Return the first process's value (JSON types only) in every process."""
    return everyones(value)[0]


def everyones(value: Any) -> list[Any]:
    """Return the list of all processes' values (JSON types only) in every process."""
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
    """Call a function in the first process alone and return its result (JSON types only) in every process.

    An OSError, LookupError, ValueError or TypeError that the function raises is raised in every process.
    """
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
    """Check that all processes were given the same values.

    Args:
        what: the name of the values in error messages.
        value: values by name, JSON types only.

    Raises:
        ValueError: in every process, if the values differ; the message says which process differs from the first, and
            in what.
    """
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
    """Wait until all processes have called this, in any of their threads. Each name can be used only once."""
    if several():
        from orbax.checkpoint import multihost  # through the coordinator, so that devices keep working

        multihost.get_barrier_sync_fn()(key=f"jdl/{name}", timeout_ms=_WRITING * 1000)


def addressable(leaf: Any) -> bool:
    """Whether this process can read an array without the others."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def gathered(tree: Any) -> Any:
    """Gather arrays that are divided among processes, as NumPy arrays in every process; leave the rest as it is."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda leaf: leaf if addressable(leaf) else multihost_utils.process_allgather(leaf, tiled=True), tree
    )


def local(tree: Any) -> Any:
    """Return the tree with arrays that this process holds alone: whole copies of those that span processes."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else gathered(leaf)

    return jax.tree.map(one, tree)


def joined(array: np.ndarray, axis: int) -> np.ndarray:
    """Concatenate each process's part of an array (of equal shapes) along `axis`, in every process."""
    if not several():
        return array
    from jax.experimental import multihost_utils

    # As bytes, because JAX would convert double precision to single.
    rows = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.concatenate([np.frombuffer(row.tobytes(), array.dtype).reshape(array.shape) for row in rows], axis)


def part(array: np.ndarray, axis: int) -> np.ndarray:
    """Return this process's part of an array that `joined` has concatenated."""
    return np.array_split(array, count(), axis)[index()]


def side_by_side(tree: Any, axis: int) -> Any:
    """Make arrays over the devices of all processes from each process's part, concatenated along `axis`."""
    if not several():
        return tree
    sharding = of_parts(axis)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def of_parts(axis: int = 0) -> jax.sharding.Sharding:
    """Return the sharding of batches that consist of one part per process along `axis`."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(devices, ("process", "device"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "process"))


def placed(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Put an array on the devices of all processes.

    Args:
        array: an array that every process has, or can read in parts (`training.checkpoint.shards`).
        sharding: which device gets which part.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(np.asarray(array), sharding)
    return jax.make_array_from_callback(tuple(array.shape), sharding, lambda index: np.asarray(array[index]))


class Notice:
    """A scheduler's notice to end, true in all processes at the same call, whichever process received it.

    Every process must ask for its truth value once before each call of the step.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._given = False

    def __bool__(self) -> bool:
        from jax.experimental import multihost_utils

        self._calls += 1
        self._given = self._given or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._given
