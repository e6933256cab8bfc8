"""Modes in which one run uses several devices, chosen by name in a config.

    @dataclasses.dataclass(frozen=True)
    class Config:
        devices: jdl.Mode = "auto"
        mesh: str = ""

    learner = jdl.distribute(learner, config.devices, config.mesh)

A run learns the same in every mode; only the memory and the time it takes differ. The one exception is random masks
under "pmap": each replica draws different ones.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from jdl.core import seam
from jdl.core.learner import Batch, Learner
from jdl.parallel.partition import Partition, Rules
from jdl.parallel.pmap import pmap
from jdl.parallel.shard import divides, shard
from jdl.runtime import processes

type Mode = Literal["auto", "single", "pmap", "data", "fsdp", "tensor", "fsdp+tensor", "sequence"]

MODES = get_args(Mode.__value__)


def distribute(
    learner: Learner, devices: Mode | str = "auto", mesh_shape: int | str | Sequence[int] = (), rules: Rules = ()
) -> Learner:
    """Spread a learner over this machine's devices, or over those of several processes (`jdl launch`).

    The modes:

    - "single": everything on one device.
    - "pmap": a replica on each device.
    - "data": one program, with a part of the batch on each device.
    - "fsdp": as "data", and parameters and optimizer state are divided as well.
    - "tensor": the work of each layer is divided, by the rules of `jdl.nn`.
    - "fsdp+tensor": both.
    - "sequence": the tokens of each sequence are divided, for long sequences.
    - "auto": "data" on several accelerators, or processes, that divide the batch. "single" on a CPU, whose devices
      share its cores, and within transforms that have taken the devices (`seeds`; with spread=False it leaves them to
      another mode).

    Args:
        learner: the learner to spread.
        devices: the mode.
        mesh_shape: the number of devices, 8 or "8", by default all. "tensor", "fsdp+tensor" and "sequence" take two
            numbers, (4, 2) or "4x2": devices over the batch, and devices within each example or layer. Their default
            is one by all devices, and for "fsdp+tensor" half of the devices by two.
        rules: what else to divide, as in `shard`, over the mesh axes "data" and "model". "pmap" keeps all of the
            state on every device.

    Raises:
        ValueError: for an unknown mode, and for a mesh that does not suit the mode or that the devices cannot form.
    """
    shape = check_mesh(devices, mesh_shape)
    if devices == "auto":
        return _automatic(learner, rules)
    if devices == "single":
        return learner
    mesh = _make_mesh(devices, shape)
    if devices == "pmap":
        return pmap(learner, list(mesh.devices.flat))
    return shard(learner, mesh, rules, **options(devices))


def check_mesh(devices: Mode | str, mesh_shape: int | str | Sequence[int] = ()) -> tuple[int, ...]:
    """Return the numbers of devices along a mesh's axes, () for all devices.

    Args:
        devices: the mode.
        mesh_shape: the mesh, as in `distribute`.

    Raises:
        ValueError: for an unknown mode, and for a mesh that does not suit the mode.
    """
    if devices not in MODES:
        raise ValueError(f"devices={devices!r}: choose among {', '.join(MODES)}")
    shape = _parse(mesh_shape)
    axes = mesh_axes(devices)
    if shape and devices in MODES[:2]:
        raise ValueError(f"devices={devices!r} has no mesh ({mesh_shape!r}); one is for {', '.join(MODES[2:])}")
    if shape and (len(shape) != len(axes) or min(shape) < 1):
        raise ValueError(
            f"devices={devices!r}, mesh={mesh_shape!r}: give {len(axes)} positive number(s), of devices along "
            f"{' and '.join(axes)}"
        )
    return shape


def options(devices: Mode | str) -> dict[str, Any]:
    """Return the keyword arguments of `shard` in a mode."""
    names = {"fsdp": "data", "tensor": "model", "sequence": "sequence"}
    return {name: axis for name, axis in names.items() if name in devices.split("+")}


def mesh_axes(devices: Mode | str) -> tuple[str, ...]:
    """Return the mesh axes of a mode: over the batch and, in some modes, within an example or a layer."""
    return ("data", *(axis for axis in options(devices).values() if axis != "data"))


def _parse(mesh: int | str | Sequence[int]) -> tuple[int, ...]:
    """Return (4, 2) for "4x2", (8,) for 8, () for ""; a sequence is taken as it is."""
    if isinstance(mesh, int):
        return (mesh,)
    if not isinstance(mesh, str):
        return tuple(mesh)
    try:
        return tuple(int(part) for part in mesh.split("x")) if mesh else ()
    except ValueError:
        raise ValueError(f"mesh={mesh!r}: write the numbers of devices along its axes as 8 or 4x2") from None


def _automatic(learner: Learner, rules: Rules) -> Learner:
    """Train data-parallel if accelerators, or processes, divide the work and no transform has taken the devices.

    A CPU's devices share its cores, and a program for one of them uses all the cores.
    """
    spread = shard(learner, rules=rules)

    def fits(batch: Batch) -> bool:
        count = jax.device_count() // seam.groups()
        if not learner.traits.lanes:
            return learner.traits.fed or divides(batch, count)
        partition = Partition(AbstractMesh((count,), ("data",)), lanes=learner.traits.lanes)
        try:
            partition.of_state(jax.eval_shape(learner.init, jax.random.key(0)))
        except ValueError:
            return False
        return True

    def of(batch: Batch = None) -> Learner:
        free = (jax.default_backend() != "cpu" or processes.several()) and not seam.current().devices_taken
        return spread if free and fits(batch) else learner

    return learner._replace(
        init=lambda key: of().init(key),
        step=lambda state, batch: of(batch).step(state, batch),
        evaluate=lambda state, batch: of(batch).evaluate(state, batch),
    )


def _make_mesh(devices: Mode | str, mesh_shape: tuple[int, ...]) -> Mesh:
    """Make the mesh of a mode from the devices that there are."""
    count = jax.device_count()
    shape = mesh_shape or _default_shape(devices, count)
    if math.prod(shape) > count:
        raise ValueError(
            f"mesh {'x'.join(map(str, shape))} needs {math.prod(shape)} devices, and there are {count}; on a CPU "
            "jdl.host_devices(n), before JAX is first used, makes more (a run goes on over fewer by "
            "`jdl resume RUN --mesh N`)"
        )
    chosen = np.array(jax.devices()[: math.prod(shape)])
    alone = set(range(jax.process_count())) - {device.process_index for device in chosen.flat}
    if alone:
        raise ValueError(
            f"mesh {'x'.join(map(str, shape))} has no device of process {min(alone)}: of {processes.count()} processes "
            f"with {count} devices in all each has a part in it; start fewer, or give a mesh of all"
        )
    axes = mesh_axes(devices)
    return Mesh(chosen.reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


def _default_shape(devices: Mode | str, count: int) -> tuple[int, ...]:
    if devices in ("tensor", "sequence"):
        return 1, count
    if devices == "fsdp+tensor":
        return (count // 2, 2) if count % 2 == 0 else (count, 1)
    return (count,)
