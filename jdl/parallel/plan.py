"""What a run takes of each device, on paper: bytes, operations, collectives, time; no array is made, no step is run."""

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

_OF_A_PROCESS = 2048  # devices; XLA takes those of a CPU beyond it for other processes'


class Plan(NamedTuple):
    """A learner's state on a mesh of devices."""

    devices: str
    mesh: dict[str, int]  # devices along each axis
    arrays: list[Placed]

    @property
    def bytes(self) -> dict[str, tuple[int, int]]:
        """Of parameters, optimizer and the rest of the state: in all, and on each device."""
        sums: dict[str, tuple[int, int]] = {}
        for array in self.arrays:
            kind = next((kind for kind in ("params", "optimizer") if kind in array.path.split("/")), "other")
            whole, each = sums.get(kind, (0, 0))
            sums[kind] = whole + array.bytes, each + array.bytes_per_device
        return sums

    @property
    def device_count(self) -> int:
        """Of the mesh."""
        return math.prod(self.mesh.values())

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        arrays = [{**array._asdict(), "spec": show(array)} for array in self.arrays]
        return {"devices": self.devices, "mesh": self.mesh, "bytes": self.bytes, "arrays": arrays}


class Work(NamedTuple):
    """A step, as it would be compiled for the mesh."""

    device_count: int
    model_flops: int  # of one forward and one backward pass of the whole batch, nothing recomputed
    arguments: int  # bytes on each device: state and batch
    temporaries: int  # as well: activations, gradients, what else is in memory at the fullest moment
    program: hlo.Program  # on each device

    def on(self, hardware: Hardware) -> Estimate:
        """The time of a step there, at best."""
        traffic = self.program.traffic + 2 * self.arguments  # the state is read, and written anew
        return estimate(hardware, self.program.flops, traffic, self.program.collectives)

    def mfu(self, hardware: Hardware) -> float:
        """Model-FLOPs utilization in that time (Chowdhery et al., "PaLM", 2022, appendix B)."""
        return self.model_flops / (self.device_count * hardware.flops * self.on(hardware).seconds)

    def fits(self, hardware: Hardware) -> bool:
        """Whether a device's memory holds it."""
        return self.arguments + self.temporaries <= hardware.memory

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        there = {
            name: {**self.on(one)._asdict(), "seconds": self.on(one).seconds, "bound": self.on(one).bound,
                   "mfu": self.mfu(one), "fits": self.fits(one)}
            for name, one in HARDWARE.items()
        }  # fmt: skip
        program = {**self.program._asdict(), "collectives": [one._asdict() for one in self.program.collectives]}
        return {**self._asdict(), "program": program, "hardware": there}


def devices_on_paper(count: int) -> None:
    """Have so many CPU devices to compile for, before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
    ask_for_devices(count)
    if count > _OF_A_PROCESS:  # compiling for several processes wants them to be able to meet
        processes.join(processes.here(), 1, 0)


def work(learner: Learner, devices: Mode | str, mesh_shape: str, batch_size: int) -> Work:
    """What a step is on each device of a mesh, by compiling it for as many devices of this machine's CPU.

    batch_size: the examples of a step, all devices together. They need not be cores: `devices_on_paper(4096)`, before
    JAX is first used. Raises ValueError for fewer devices than the mesh has, and where they do not divide the batch.
    """
    batch = _batch(learner, batch_size)
    spread = distribute(learner, devices, mesh_shape)
    state = jax.eval_shape(spread.init, jax.random.key(0))
    compiled, program = hlo.compiled(jax.jit(spread.step, donate_argnums=0).lower(state, batch))
    memory = compiled.memory_analysis()
    assert memory is not None  # on a CPU there always is
    whole = jax.eval_shape(learner.init, jax.random.key(0))
    once = flops.count(learner.step, whole, batch)
    if jax.tree.leaves(batch):
        # Of what is computed again in the backward pass, nothing counts: it is no more than twice the forward pass.
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
    return jax.tree.map(of_batch, learner.example)


def plan(learner: Learner, devices: Mode | str, mesh_shape: str) -> Plan:
    """A dry run of `distribute(learner, devices, mesh_shape)` for any number of devices, which needn't be there."""
    shape, axes = check_mesh(devices, mesh_shape), mesh_axes(devices)
    shape = shape or (1,) * len(axes)
    mesh = AbstractMesh(shape, axes)
    partition = Partition(mesh, lanes=learner.lanes, **options(devices))
    return Plan(devices, dict(zip(axes, shape, strict=True)), layout(learner, partition))


def show(array: Placed) -> str:
    """An array's axes and who shares them out: "768, 3072/model"."""
    entries = [*array.spec, *[None] * (len(array.shape) - len(array.spec))]
    named = [
        f"{size:,}" if entry is None else f"{size:,}/{'/'.join(entry) if isinstance(entry, tuple) else entry}"
        for size, entry in zip(array.shape, entries, strict=True)
    ]
    return ", ".join(named)
