"""How one run uses the devices, by the name that a config gives it.

    @dataclasses.dataclass(frozen=True)
    class Config:
        devices: jdl.Mode = "auto"
        mesh: str = ""

    learner = jdl.distribute(learner, config.devices, config.mesh)

Under every name a run learns the same; what differs is the memory and the time that it takes. Random masks under
"pmap" are the one exception: each replica has its own.
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
    """The learner over this machine's devices, or over those of several processes (`jdl launch`).

    devices: "single" leaves it on one; "pmap" has a replica on each; "data" is one program over parts of the batch;
    "fsdp" shares out parameters and optimizer state as well; "tensor" shares out each layer's work, by the rules of
    `jdl.nn`; "fsdp+tensor" does both; "sequence" shares out the tokens of each sequence, for long ones; "auto" is
    "data" on several accelerators, or processes, that divide the batch, and "single" on a CPU, whose devices share its
    cores, and within transforms that have taken the devices (`seeds`; spread=False leaves them to another mode).
    mesh_shape: how many devices, 8 or "8", by default all; for the last three over the batch and within each example
    or layer, (4, 2) or "4x2", by default one by all, and half by two for "fsdp+tensor". rules: what else to share out,
    as in `shard`, over the mesh's axes "data" and "model"; "pmap" has all of the state everywhere.

    Raises ValueError for a mode that there is not, and for a mesh that the devices do not make.
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
    """The numbers of devices that a mesh's text or number says, () for all; raises ValueError where a mode has none."""
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
    """What `shard` is told in a mode."""
    names = {"fsdp": "data", "tensor": "model", "sequence": "sequence"}
    return {name: axis for name, axis in names.items() if name in devices.split("+")}


def mesh_axes(devices: Mode | str) -> tuple[str, ...]:
    """Over what a mode's devices are laid out: the batch, and in some modes what is within an example or a layer."""
    return ("data", *(axis for axis in options(devices).values() if axis != "data"))


def _parse(mesh: int | str | Sequence[int]) -> tuple[int, ...]:
    """(4, 2) from "4x2", (8,) from 8, () from ""; a sequence is taken as it is."""
    if isinstance(mesh, int):
        return (mesh,)
    if not isinstance(mesh, str):
        return tuple(mesh)
    try:
        return tuple(int(part) for part in mesh.split("x")) if mesh else ()
    except ValueError:
        raise ValueError(f"mesh={mesh!r}: write the numbers of devices along its axes as 8 or 4x2") from None


def _automatic(learner: Learner, rules: Rules) -> Learner:
    """Data-parallel where devices are accelerators of their own that divide the work, and nothing has taken them.

    A CPU's devices share its cores, and a program for one of them uses them all.
    """
    spread = shard(learner, rules=rules)

    def fits(batch: Batch) -> bool:
        count = jax.device_count() // seam.current().groups
        if not learner.lanes:
            return learner.fed or divides(batch, count)
        partition = Partition(AbstractMesh((count,), ("data",)), lanes=learner.lanes)
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
    """The mesh of a mode, from the devices that there are."""
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
