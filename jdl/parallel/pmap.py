"""One training step over many devices with a replica on each: classic data parallelism."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.accumulators import merge_axis
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.core.ring import Ring
from jdl.core.runs_axis import RUNS
from jdl.parallel.partition import Partition
from jdl.runtime import collectives

Device = Any  # a jax.Device, which type checkers take for a variable
_REPLICAS = "data"


def pmap(learner: Learner, devices: Sequence[Device] | None = None) -> Learner:
    """Train with one replica per device; gradients, weights and metrics are summed over the replicas.

    Each replica takes its part of the batch. The state is the same on all, except for the lanes of an agent's
    environments, which are divided among the replicas. Batch normalization uses the statistics of the whole batch
    (Flax's own layer, whose axis is set here). Each replica draws its own random masks.

    Args:
        learner: the learner to spread.
        devices: by default all, including those of other processes.

    Raises:
        ValueError: for a learner that already holds several runs, and for a batch, or environments, that the devices
            do not divide.
    """
    if learner.runs is not None:
        raise ValueError("pmap goes inside: seeds(pmap(learner), ...), with spread=False to leave pmap the devices")

    def reduction(summed: seam.SummedGradients) -> seam.SummedGradients:
        def replicated(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            with nn.intercept_methods(_normalize_over_replicas):
                result = summed(params, batch, jax.random.fold_in(key, jax.lax.axis_index(_REPLICAS)))
            return seam.over_replicas(result, _REPLICAS)

        return replicated

    def init(key: Array) -> State:
        chosen = free_devices("pmap", devices)
        state = learner.init(key)
        if len(chosen) == 1:
            return state
        # Place the state where steps keep it, so that they are compiled once and data is put on the same devices.
        mesh = mesh_of(chosen, _REPLICAS)
        shardings = jax.tree.map(functools.partial(NamedSharding, of_groups(mesh)), _specs(learner, state, mesh))
        return jax.lax.with_sharding_constraint(state, shardings)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        chosen = free_devices("pmap", devices)
        if len(chosen) == 1:
            return learner.step(state, batch)
        count = len(chosen)
        # A batch that holds several steps is split within each of them.
        several = learner.steps if not learner.traits.fed else 1

        def split(leaf: Any) -> Array:
            if jnp.ndim(leaf) == 0 or len(leaf) % (several * count):
                unit = several * count
                raise ValueError(
                    f"pmap: a batch of shape {jnp.shape(leaf)} does not divide over {count} devices"
                    + (f" and {several} steps" if several > 1 else "")
                    + f"; its leading axis must be a multiple of {unit}"
                )
            return jnp.reshape(leaf, (several, count, -1, *leaf.shape[1:]))

        def join(leaf: Array) -> Array:  # [several, 1, size, ...] -> [several * size, ...]
            return leaf.reshape(-1, *leaf.shape[3:])

        def share(positions: Array) -> Array:
            if len(positions) % count:
                raise ValueError(
                    f"pmap: batches of {len(positions)} do not divide over {count} devices; make them a multiple"
                )
            size = len(positions) // count
            return jax.lax.dynamic_slice_in_dim(positions, jax.lax.axis_index(_REPLICAS) * size, size)

        def replica(state: State, batch: Batch) -> tuple[State, Metrics]:
            with seam.within(reduction=reduction, share=share, axis=_REPLICAS, devices_taken="pmap"):
                return learner.step(state, batch if learner.traits.fed else jax.tree.map(join, batch))

        mesh = mesh_of(chosen, _REPLICAS)
        specs = _specs(learner, state, mesh)
        return jax.shard_map(
            replica,
            mesh=of_groups(mesh),
            in_specs=(specs, PartitionSpec() if learner.traits.fed else PartitionSpec(None, _REPLICAS)),
            out_specs=(specs, PartitionSpec()),
            check_vma=False,  # the sums over replicas are taken in the seam, once
        )(state, batch if learner.traits.fed else jax.tree.map(split, batch))

    def evaluate(state: State, batch: Batch) -> Metrics:
        chosen = free_devices("pmap", devices)
        if any(len(leaf) % len(chosen) for leaf in jax.tree.leaves(batch)):
            return learner.evaluate(state, batch)  # no error for a short batch: every device takes all of it

        def replica(state: State, batch: Batch) -> Metrics:
            with seam.within(devices_taken="pmap"):
                parts = collectives.stacked(learner.evaluate(state, batch), _REPLICAS)
            return merge_axis(parts, 0)

        mesh = mesh_of(chosen, _REPLICAS)
        return jax.shard_map(
            replica,
            mesh=of_groups(mesh),
            in_specs=(_specs(learner, state, mesh), PartitionSpec(_REPLICAS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(state, batch)

    return learner._replace(init=init, step=step, evaluate=evaluate)


def _specs(learner: Learner, state: State, mesh: Mesh) -> PyTree:
    """Return the layout of a state: lanes are divided; the rest, including a replay, is whole on each replica."""
    specs = Partition(mesh, lanes=learner.traits.lanes).of_state(state)
    whole = lambda node: jax.tree.map(lambda _: PartitionSpec(), node, is_leaf=_is_spec)  # noqa: E731
    return jax.tree.map(
        lambda node: whole(node) if isinstance(node, Ring) else node,
        specs,
        is_leaf=lambda node: isinstance(node, Ring) or _is_spec(node),
    )


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def mesh_of(devices: Sequence[Device], axis: str) -> Mesh:
    """Make a mesh of devices along one axis."""
    return Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))


def of_groups(mesh: Mesh) -> Mesh:
    """Return the mesh repeated along a new first axis, once for each group of runs (`jdl.seeds(spread=2)`).

    Raises:
        ValueError: if there are not enough devices for all groups.
    """
    groups, all_devices = seam.groups(), jax.devices()
    if groups == 1:
        return mesh
    if groups * mesh.size > len(all_devices):
        raise ValueError(
            f"seeds(spread={groups}): {groups} groups of {mesh.size} devices (a mesh of {dict(mesh.shape)}) are "
            f"{groups * mesh.size}, and there are {len(all_devices)}; give each run fewer, or spread over fewer groups"
        )
    devices = np.array(all_devices[: groups * mesh.size]).reshape(groups, *mesh.devices.shape)
    return Mesh(devices, (RUNS, *mesh.axis_names), axis_types=(AxisType.Auto,) * devices.ndim)


def free_devices(transform: str, devices: Sequence[Device] | None) -> Sequence[Device]:
    """Return the devices that a transform may use.

    These are the devices asked for, by default all. If an enclosing transform has already taken the devices, it is a
    single device, and a warning says so.

    Args:
        transform: the name of the transform, for the warning.
        devices: the devices asked for, or None for all.
    """
    taken = seam.current().devices_taken
    if taken:
        warnings.warn(
            f"{transform} has one device here, because {taken} around it has taken them; "
            + ("use one of the two" if taken in ("pmap", "shard") else f"give {taken} spread=False to leave them"),
            stacklevel=5,
        )
        return jax.local_devices()[:1]
    return jax.devices()[: jax.device_count() // seam.groups()] if devices is None else devices


def _normalize_over_replicas(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    """Let Flax's batch normalization average its statistics over replicas, by setting its axis during the call."""
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == "__call__" and module.axis_name is None:
        object.__setattr__(module, "axis_name", _REPLICAS)
        try:
            return next_function(*args, **kwargs)
        finally:
            object.__setattr__(module, "axis_name", None)
    return next_function(*args, **kwargs)
