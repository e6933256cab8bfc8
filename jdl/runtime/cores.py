"""The cores and devices of this process."""

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
    """Make each CPU core a JAX device, so that `seeds` and `population` can spread runs; returns how many there are.

    Call it before JAX is first used (the `jdl` command does); once a backend runs this is no longer possible, and a
    warning says so. It also lets the CPU's programs keep their scratch memory (`jdl.runtime.memory`).
    count: how many, by default the cores this process may use.
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
    """As `host_devices`, without starting JAX, so that there may be another mind; returns whether it was in time."""
    keep_scratch_memory()
    _let_devices_wait()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return False
    return True


def use_every_core() -> bool:
    """Make each core of this process a JAX device, as `ask_for_devices` does."""
    return ask_for_devices(cores())


def _let_devices_wait() -> None:
    """Let CPU devices wait for each other as long as it takes: one that has more runs than others is not stuck.

    XLA, which reads this when its backend starts, would end the process after 40 seconds of one call.
    """
    given = os.environ.get("XLA_FLAGS", "")
    ours = {
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 3600,
        "--xla_cpu_collective_call_terminate_timeout_seconds": 7 * 24 * 3600,
    }
    missing = [f"{name}={seconds}" for name, seconds in ours.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()


_share: list[int] = []  # of the cores, where several processes have them


def share_cores(count: int) -> None:
    """Count on so many cores from now on: other processes have the rest."""
    _share[:] = [count]


def cores() -> int:
    """How many cores this process may use."""
    if _share:
        return _share[0]
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_core: list[IO[str]] = []  # the core that this process has to itself, as a locked file


_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()  # that it may use


def one_core() -> bool:
    """Keep this process on a core of its own, with one JAX device; returns whether it is.

    For programs of many small calls, as acting in Gymnasium environments is: a CPU backend hands calls and their parts
    from thread to thread, and between cores the waiting takes longer than the work (acting with 256-256: 47 instead of
    117 microseconds). Calls are made by the thread that asks for them, too. Call it before JAX is first used. Other
    processes that ask get other cores; the one that finds none left goes where it may.
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
    """Where this process is on a core of its own, move the calling thread to another that is free; close to give back.

    Its parts of the work then go on beside those of the other threads. None where no core is free.
    """
    return _claimed(_cores) if _core else None


def _claimed(cores: set[int]) -> IO[str] | None:
    """Put the calling thread (before others start: the process) on a core that no one has; the lock on it."""
    for core in sorted(cores):
        with contextlib.suppress(OSError):  # held by another process, or by another user
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
    """Give the core of `one_core` back, to wait for other processes; returns how many this one may use."""
    if _core:
        os.sched_setaffinity(0, _cores)
        _core.pop().close()
    return cores()


def device_kind() -> str:
    """The kind of the default device, for the record of a run."""
    return jax.devices()[0].device_kind


def environment_devices() -> dict[str, Any]:
    """Backend, kind and number of the devices that this process sees."""
    return {
        "backend": jax.default_backend(),
        "kind": device_kind(),
        "count": jax.device_count(),
        "processes": processes.count(),
    }
