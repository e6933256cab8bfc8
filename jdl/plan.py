"""What a run takes of each device, on paper: where every array of its state would be, without making any."""

from typing import Any, NamedTuple

from jax.sharding import AbstractMesh

from jdl.learner import Learner
from jdl.modes import Mode, check_mesh, mesh_axes, options
from jdl.partition import Partition, Placed, layout


class Plan(NamedTuple):
    """A learner's state on a mesh of devices."""

    devices: str
    mesh: dict[str, int]  # devices along each axis
    arrays: list[Placed]

    @property
    def bytes(self) -> dict[str, tuple[int, int]]:
        """Of parameters, optimiser and the rest of the state: in all, and on each device."""
        sums: dict[str, tuple[int, int]] = {}
        for array in self.arrays:
            kind = next((kind for kind in ("params", "optimizer") if kind in array.path.split("/")), "other")
            whole, each = sums.get(kind, (0, 0))
            sums[kind] = whole + array.bytes, each + array.bytes_per_device
        return sums

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        arrays = [{**array._asdict(), "spec": show(array)} for array in self.arrays]
        return {"devices": self.devices, "mesh": self.mesh, "bytes": self.bytes, "arrays": arrays}


def plan(learner: Learner, devices: Mode | str, mesh_shape: str) -> Plan:
    """A dry run of `distribute(learner, devices, mesh_shape)` for any number of devices, which needn't be there."""
    shape, axes = check_mesh(devices, mesh_shape), mesh_axes(devices)
    shape = shape or (1,) * len(axes)
    mesh = AbstractMesh(shape, axes)
    return Plan(devices, dict(zip(axes, shape, strict=True)), layout(learner, Partition(mesh, **options(devices))))


def show(array: Placed) -> str:
    """An array's axes and who shares them out: "768, 3072/model"."""
    entries = [*array.spec, *[None] * (len(array.shape) - len(array.spec))]
    named = [
        f"{size:,}" if entry is None else f"{size:,}/{'/'.join(entry) if isinstance(entry, tuple) else entry}"
        for size, entry in zip(array.shape, entries, strict=True)
    ]
    return ", ".join(named)
