"""Where independent runs go on this machine.

On a CPU, `vmap` over runs is slow (batched small matrix products, 0.6-0.9 of one run's speed measured) and one run
leaves cores idle; runs spread over host devices and looped within each use the cores and keep every run's bits.
On an accelerator, `vmap` fills the device.
"""

import contextlib
import fcntl
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jdl import processes, seam
from jdl.memory import keep_scratch_memory

type Placement = Literal["map", "vmap"]

RUNS = "runs"  # the axis of a mesh along which devices have runs of their own


def host_devices(count: int | None = None) -> int:
    """Make each CPU core a JAX device, so that `seeds` and `population` can spread runs; returns how many there are.

    Call it before JAX is first used (the `jdl` command does); once a backend runs this is no longer possible, and a
    warning says so. It also lets the CPU's programs keep their scratch memory (`jdl.memory`). count: how many, by
    default the cores this process may use.
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


def over_runs(
    function: Callable[..., PyTree], runs: int, *, placement: Placement | None, spread: bool | int, transform: str
) -> Callable[..., PyTree]:
    """Map `function(run, *shared)` over the leading axis of `run`, placed as suits this machine.

    placement: "map" (one after another, each run's bits those of a run alone) or "vmap" (together), by default "map"
    on a CPU and "vmap" elsewhere. spread: over all devices, where no transform around has taken them; or a number of
    groups of devices, among which `function` is spread itself. Raises ValueError for groups that do not divide the
    runs, and for groups of runs one after another.
    """
    if spread is not True and spread > 1:
        return _over_groups(function, runs, spread, placement, transform)
    everywhere = spread is True

    def mapped(states: PyTree, *shared: PyTree) -> PyTree:
        within = placement or ("map" if jax.default_backend() == "cpu" else "vmap")
        devices = jax.devices() if everywhere and not seam.current().devices_taken else jax.local_devices()[:1]
        devices = devices if processes.several() else devices[:runs]  # each process has a part in what several do
        if len(devices) == 1:
            return _on_one_device(function, within)(states, *shared)
        with seam.reduced(devices_taken=transform):
            mesh = Mesh(np.array(devices), (RUNS,), axis_types=(AxisType.Auto,))
            padding = -runs % len(devices)
            local = _on_one_device(function, within)
            if padding:  # runs that nobody looks at, so that every device has as many
                states = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:padding]]), states)
                if within == "map":
                    states = (jnp.arange(runs + padding) < runs, states)
                    local = _on_one_device(partial(_only_if_wanted, function), within)
            each, same = PartitionSpec(RUNS), PartitionSpec()
            results = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(each, *[same] * len(shared)),
                out_specs=each,
                check_vma=False,
            )(states, *shared)
            if not padding:
                return results
            # Copies everywhere, of states and of what a step makes of them: a program for each would be compiled.
            whole = NamedSharding(mesh, same)
            return jax.lax.with_sharding_constraint(jax.tree.map(lambda leaf: leaf[:runs], results), whole)

    return mapped


def _over_groups(
    function: Callable[..., PyTree], runs: int, groups: int, placement: Placement | None, transform: str
) -> Callable[..., PyTree]:
    if runs % groups:
        raise ValueError(f"{transform}(spread={groups}): {runs} runs do not divide over {groups} groups of devices")
    if placement == "map":
        raise ValueError(f"{transform}(spread={groups}) trains the runs of all groups together: leave out placement")

    def mapped(states: PyTree, *shared: PyTree) -> PyTree:
        with seam.reduced(groups=groups):
            return jax.vmap(partial(_swapped, function, shared), spmd_axis_name=RUNS)(states)

    return mapped


def _on_one_device(function: Callable[..., PyTree], within: Placement) -> Callable[..., PyTree]:
    def run(states: PyTree, *shared: PyTree) -> PyTree:
        if len(jax.tree.leaves(states)[0]) == 1:  # a loop of one would only hide the operations from the compiler
            result = function(jax.tree.map(lambda leaf: leaf[0], states), *shared)
            return jax.tree.map(lambda leaf: leaf[None], result)
        single = partial(_swapped, function, shared)
        return jax.lax.map(single, states) if within == "map" else jax.vmap(single)(states)

    return run


def _only_if_wanted(function: Callable[..., PyTree], run: tuple[Any, PyTree], *shared: PyTree) -> PyTree:
    """The result of `function`, or next to no work for a run that only fills a device's share."""
    wanted, state = run
    nothing = jax.eval_shape(function, state, *shared)
    return jax.lax.cond(
        wanted,
        lambda: function(state, *shared),
        lambda: jax.tree.map(lambda leaf: jax.lax.full(leaf.shape, 0, leaf.dtype), nothing),
    )


def _swapped(function: Callable[..., PyTree], shared: tuple[PyTree, ...], state: PyTree) -> PyTree:
    return function(state, *shared)


def beside(state: PyTree, data: PyTree) -> PyTree:
    """Put data once where a state lives (on each of its devices), so that no step has to move it there."""
    shardings = {leaf.sharding for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)}
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    if not meshes:
        return jax.device_put(data)
    return jax.device_put(data, NamedSharding(meshes[0], PartitionSpec()))


def warn_if_runs_stay_on_one_core(runs: int, transform: str) -> None:
    """On a CPU of several cores with one JAX device, say how the runs could use the others."""
    if runs > 1 and cores() > 1 and jax.default_backend() == "cpu" and jax.local_device_count() == 1:
        warnings.warn(
            f"{transform}: {runs} runs one after another on 1 of {cores()} cores' devices; "
            "call jdl.host_devices() before the first JAX operation to spread them (the results are the same)",
            stacklevel=4,
        )


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
