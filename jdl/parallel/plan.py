"""Plan what a run needs of each device: bytes, operations, collectives, time. No array is made and no step is run."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from jdl.core.learner import Batch, Learner
from jdl.parallel import flops, hlo
from jdl.parallel.hardware import HARDWARE, Estimate, Hardware, estimate
from jdl.parallel.modes import Mode, check_mesh, distribute, mesh_axes, options
from jdl.parallel.partition import Partition, Placed, layout
from jdl.runtime import processes
from jdl.runtime.cores import ask_for_devices

_OF_A_PROCESS = 2048  # devices; XLA treats further CPU devices as those of other processes


class Plan(NamedTuple):
    """The layout of a learner's state on a mesh of devices."""

    devices: str
    mesh: dict[str, int]  # the number of devices along each axis
    arrays: list[Placed]

    @property
    def bytes(self) -> dict[str, tuple[int, int]]:
        """Total bytes, and bytes on each device, of the parameters, the optimizer and the rest of the state."""
        sums: dict[str, tuple[int, int]] = {}
        for array in self.arrays:
            kind = next((kind for kind in ("params", "optimizer") if kind in array.path.split("/")), "other")
            whole, each = sums.get(kind, (0, 0))
            sums[kind] = whole + array.bytes, each + array.bytes_per_device
        return sums

    @property
    def device_count(self) -> int:
        """The number of devices of the mesh."""
        return math.prod(self.mesh.values())

    def as_json(self) -> dict[str, Any]:
        """Return the plan for `--json`."""
        arrays = [{**array._asdict(), "spec": show(array)} for array in self.arrays]
        return {"devices": self.devices, "mesh": self.mesh, "bytes": self.bytes, "arrays": arrays}


class Work(NamedTuple):
    """The costs of one step, as it would be compiled for the mesh."""

    device_count: int
    model_flops: int  # one forward and one backward pass of the whole batch, without recomputation
    arguments: int  # bytes on each device: state and batch
    temporaries: int  # further bytes on each device at the peak: activations, gradients and so on
    program: hlo.Program  # on each device

    def on(self, hardware: Hardware) -> Estimate:
        """Estimate the least time of a step on this hardware."""
        traffic = self.program.traffic + 2 * self.arguments  # the state is read and written again
        return estimate(hardware, self.program.flops, traffic, self.program.collectives)

    def mfu(self, hardware: Hardware) -> float:
        """Model-FLOPs utilization in that time (Chowdhery et al., "PaLM", 2022, appendix B)."""
        return self.model_flops / (self.device_count * hardware.flops * self.on(hardware).seconds)

    def fits(self, hardware: Hardware) -> bool:
        """Whether the step fits in a device's memory."""
        return self.arguments + self.temporaries <= hardware.memory

    def as_json(self) -> dict[str, Any]:
        """Return the costs, with estimates for all known hardware, for `--json`."""
        there = {
            name: {**self.on(one)._asdict(), "seconds": self.on(one).seconds, "bound": self.on(one).bound,
                   "mfu": self.mfu(one), "fits": self.fits(one)}
            for name, one in HARDWARE.items()
        }  # fmt: skip
        program = {**self.program._asdict(), "collectives": [one._asdict() for one in self.program.collectives]}
        return {**self._asdict(), "program": program, "hardware": there}


def devices_on_paper(count: int) -> None:
    """Provide `count` CPU devices to compile for. Call it before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
    ask_for_devices(count)
    if count > _OF_A_PROCESS:  # compiling for several processes needs a coordinator
        processes.join(processes.here(), 1, 0)


def work(learner: Learner, devices: Mode | str, mesh_shape: str, batch_size: int) -> Work:
    """Measure what a step costs on each device of a mesh, by compiling it for as many CPU devices of this machine.

    There may be more devices than cores: call `devices_on_paper(4096)`, say, before JAX is first used.

    Args:
        learner: the learner, not yet distributed.
        devices: the mode, as in `distribute`.
        mesh_shape: the mesh, as in `distribute`.
        batch_size: the examples of a step, on all devices together.

    Raises:
        ValueError: if there are fewer devices than the mesh has, and if they do not divide the batch.
    """
    batch = _batch(learner, batch_size)
    spread = distribute(learner, devices, mesh_shape)
    state = jax.eval_shape(spread.init, jax.random.key(0))
    compiled, program = hlo.compiled(jax.jit(spread.step, donate_argnums=0).lower(state, batch))
    memory = compiled.memory_analysis()
    assert memory is not None  # a CPU always has this analysis
    whole = jax.eval_shape(learner.init, jax.random.key(0))
    once = flops.count(learner.step, whole, batch)
    if jax.tree.leaves(batch):
        # Recomputation in the backward pass does not count: without it, that pass is at most twice the forward pass.
        once = min(once, 3 * flops.count(learner.evaluate, whole, batch))
    count = math.prod(check_mesh(devices, mesh_shape) or (jax.device_count(),))
    return Work(
        1 if devices == "single" else count,
        once,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        program,
    )


def _batch(learner: Learner, batch_size: int) -> Batch:
    of_batch = lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    return jax.tree.map(of_batch, learner.traits.example)


def plan(learner: Learner, devices: Mode | str, mesh_shape: str) -> Plan:
    """Lay out the state of `distribute(learner, devices, mesh_shape)` without the devices, which need not exist.

    Args:
        learner: the learner, not yet distributed.
        devices: the mode, as in `distribute`.
        mesh_shape: the mesh, as in `distribute`; one device if it is empty.
    """
    shape, axes = check_mesh(devices, mesh_shape), mesh_axes(devices)
    shape = shape or (1,) * len(axes)
    mesh = AbstractMesh(shape, axes)
    partition = Partition(mesh, lanes=learner.traits.lanes, **options(devices))
    return Plan(devices, dict(zip(axes, shape, strict=True)), layout(learner, partition))


def show(array: Placed) -> str:
    """Write the lengths of an array's axes and the mesh axes that divide them: "768, 3072/model".

    A number follows where only some factors of a mesh axis divide: "1600/data:8, 6400/data:64".
    """
    entries = [*array.spec, *[None] * (len(array.shape) - len(array.spec))]
    written = []
    for size, entry, parts in zip(array.shape, entries, array.parts, strict=True):
        names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        axes = dict.fromkeys(name.partition(".")[0] for name in names)
        part = f":{parts}" if len(axes) < len(names) or any("." in name for name in names) else ""
        written.append(f"{size:,}{''.join('/' + axis for axis in axes)}{part}")
    return ", ".join(written)
