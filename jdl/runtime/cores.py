"""The CPU cores and the devices of this process."""

import contextlib
import fcntl
import os
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any

import jax

from jdl.runtime import processes
from jdl.runtime.memory import keep_scratch_memory


def host_devices(count: int | None = None) -> int:
    """Make each CPU core a JAX device, so that `seeds` and `population` can spread runs over them.

    Call it before JAX is first used (the `jdl` command does). Once a backend runs, the number of devices is fixed,
    and a warning says so. This also lets CPU programs keep their scratch memory (`jdl.runtime.memory`).

    Args:
        count: the number of devices, by default the cores that this process may use.

    Returns:
        The number of devices of this process.

    Raises:
        ValueError: for a count below 1.
    """
    if count is None:
        count = cores()
    if count < 1:
        raise ValueError(f"host_devices(count={count}): there is at least 1 device")
    if not ask_for_devices(count) and jax.default_backend() == "cpu" and jax.local_device_count() != count:
        warnings.warn(
            f"JAX already runs with {jax.local_device_count()} CPU device(s), {count} were asked for: "
            "call jdl.host_devices() before the first JAX operation",
            stacklevel=2,
        )
    return jax.local_device_count()


def ask_for_devices(count: int) -> bool:
    """Like `host_devices`, but leave JAX unstarted, so that a later call can change the count.

    Returns:
        False if JAX already runs, so that the number of devices stays as it is.
    """
    keep_scratch_memory()
    _let_devices_wait()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return False
    return True


def use_every_core() -> bool:
    """Call `ask_for_devices` with one device for each core of this process."""
    return ask_for_devices(cores())


def _let_devices_wait() -> None:
    """Raise XLA's timeouts for CPU devices that wait for each other: one that has more runs than others is not stuck.

    By default XLA ends the process once a call has waited for 40 seconds. It reads these flags when its backend
    starts.
    """
    given = os.environ.get("XLA_FLAGS", "")
    ours = {
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 3600,
        "--xla_cpu_collective_call_terminate_timeout_seconds": 7 * 24 * 3600,
    }
    missing = [f"{name}={seconds}" for name, seconds in ours.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()


_share: list[int] = []  # the number of cores of this process, where several processes share them


def share_cores(count: int) -> None:
    """Set the number of cores that this process counts on from now on; other processes use the rest."""
    _share[:] = [count]


def cores() -> int:
    """Return the number of cores that this process may use."""
    if _share:
        return _share[0]
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_core: list[IO[str]] = []  # the lock file of the core that this process is pinned to


_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()  # the cores that this process may use


def one_core() -> bool:
    """Pin this process to a core that no other process of jdl uses, with one JAX device.

    Use it for programs of many small calls, such as acting in Gymnasium environments. A CPU backend hands calls and
    their parts from thread to thread, and between cores the waiting takes longer than the work (acting with a 256-256
    network: 47 instead of 117 microseconds). Calls also run in the thread that makes them.

    Call it before JAX is first used. Other processes that call it get other cores; a process that finds no free core
    is not pinned.

    Returns:
        Whether this process is pinned to a core.
    """
    if _core or not hasattr(os, "sched_setaffinity"):
        return bool(_core)
    ask_for_devices(1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    claim = _claimed(os.sched_getaffinity(0))
    if claim is None:
        return False
    _core.append(claim)
    return True


def another_core() -> IO[str] | None:
    """Move the calling thread to another free core, if `one_core` has pinned this process.

    The thread then runs in parallel with the other threads of the process.

    Returns:
        A lock file to close when giving the core back, or None if the process is not pinned or no core is free.
    """
    return _claimed(_cores) if _core else None


def _claimed(cores: set[int]) -> IO[str] | None:
    """Pin the calling thread to a core that no other process has claimed.

    Before other threads start, this pins the whole process. Returns the lock on the core, or None if every core is
    claimed.
    """
    for core in sorted(cores):
        with contextlib.suppress(OSError):  # claimed by another process, or the file is another user's
            claim = (Path(tempfile.gettempdir()) / f"jdl-core-{core}").open("w")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                claim.close()
                raise
            os.sched_setaffinity(0, {core})
            return claim
    return None


def leave_core() -> int:
    """Give up the core of `one_core` while waiting for other processes; return how many cores this one may use."""
    if _core:
        os.sched_setaffinity(0, _cores)
        _core.pop().close()
    return cores()


def device_kind() -> str:
    """The kind of the default device, for a run's record."""
    return jax.devices()[0].device_kind


def environment_devices() -> dict[str, Any]:
    """Backend, device kind, number of devices and number of processes, as this process sees them."""
    return {
        "backend": jax.default_backend(),
        "kind": device_kind(),
        "count": jax.device_count(),
        "processes": processes.count(),
    }
