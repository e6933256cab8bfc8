"""One global program that the compiler splits: the batch over devices, the state by rules on its paths.

    learner = jdl.shard(learner)                                                    # data-parallel
    learner = jdl.shard(learner, fsdp="data")                                       # the state divided, too
    learner = jdl.shard(learner, mesh, [("head/kernel$", PartitionSpec(None, "model"))])

Each array carries its own layout, so a checkpoint of one layout restores into any other.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.nn.layers.ring_attention import over_ring
from jdl.parallel.partition import Partition, Rules, factored
from jdl.parallel.pmap import free_devices, mesh_of, of_groups


def shard(
    learner: Learner,
    mesh: Mesh | None = None,
    rules: Rules = (),
    *,
    tensor: str | None = None,
    fsdp: str | None = None,
    sequence: str | None = None,
) -> Learner:
    """Turn a learner into one global program that the compiler splits over the devices of a mesh.

    The batch is divided over the mesh's first axis and the state by rules; everything else is on every device.
    Statistics and random masks are those of a single device. Use it under `jit`.

    Args:
        learner: the learner to spread.
        mesh: by default all devices on one axis, "data".
        rules: `(regular expression, PartitionSpec)` pairs. The first expression found in a leaf's path
            ("params/Dense_0/kernel", and the optimizer's moments of the same name) determines the layout of the leaf.
        tensor: a mesh axis that divides the parameters of `jdl.nn`'s network families where they are divisible
            (`jdl.nn.TENSOR_PARALLEL`).
        fsdp: a mesh axis that divides every array of at least 1,024 elements along its longest axis that is free and
            divisible. If an array has no such axis, it is divided along several: on 512 devices, 64 times along one
            and 8 times along another. Arrays are gathered layer by layer as they are needed (Rajbhandari et al.,
            "ZeRO", 2020).
        sequence: a mesh axis that divides the second axis of the batch, the time of sequences, for networks that mix
            time steps only in `jdl.nn.MultiHeadAttention` (`jdl.nn.layers.ring_attention`).

    Raises:
        ValueError: for an unknown mesh axis, a rule that matches nothing or does not divide its axis, a learner that
            already holds several runs, and a batch given to a step that the devices do not divide.
    """
    if learner.runs is not None:
        raise ValueError("shard goes inside: seeds(shard(learner), ...), with spread=False to leave shard the devices")
    if mesh is not None:  # its axes may be explicit, as those of jax.make_mesh are
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        Partition(mesh, rules, tensor, fsdp, sequence).check_axes()

    def alone() -> bool:
        return len(free_devices("shard", None if mesh is None else list(mesh.devices.flat))) == 1

    @functools.cache
    def of_devices(count: int) -> Partition:
        chosen = mesh_of(jax.devices()[:count], "data") if mesh is None else mesh
        partition = Partition(chosen, rules, tensor, fsdp, sequence, learner.traits.lanes)
        return factored(partition, jax.eval_shape(learner.init, jax.random.key(0))) if fsdp else partition

    def partition() -> Partition:
        return of_devices(jax.device_count() // seam.groups())

    def everywhere() -> Mesh:
        return of_groups(cast(Mesh, partition().mesh))

    def place(tree: PyTree, specs: PyTree) -> PyTree:
        layouts = jax.tree.map(functools.partial(NamedSharding, everywhere()), specs)
        return jax.tree.map(jax.lax.with_sharding_constraint, tree, layouts)

    def place_state(tree: PyTree) -> PyTree:
        return place(tree, partition().of_state(tree))

    def over_data(tree: PyTree) -> PyTree:
        return place(tree, jax.tree.map(partition().of_batch, tree))

    def around() -> contextlib.AbstractContextManager[None]:
        if sequence is None:
            return contextlib.nullcontext()
        return over_ring(everywhere(), sequence, partition().rows)

    def reduction(summed: seam.SummedGradients) -> seam.SummedGradients:
        def reduced(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            examples = [len(leaf) for leaf in jax.tree.leaves(batch)[:1]]
            with nn.intercept_methods(_examples_stay(examples, everywhere(), partition().rows)):
                result = summed(params, batch, key)
            specs = partition().of_state({"params": result.gradients}, part=True)
            return result._replace(gradients=place(result.gradients, specs["params"]))

        return reduced

    def apart(summed: seam.SummedGradients) -> seam.SummedGradients:
        axis = cast(str, partition().rows)

        def sums(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            return seam.over_replicas(summed(params, batch, key), axis)

        def reduced(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            if not divides(batch, partition().row_count):
                return summed(params, batch, key)
            specs = PartitionSpec(), PartitionSpec(axis), PartitionSpec()
            exchanged = jax.shard_map(
                sums, mesh=everywhere(), in_specs=specs, out_specs=PartitionSpec(), check_vma=False
            )
            return exchanged(params, batch, key)

        return reduced

    def init(key: Array) -> State:
        state = learner.init(key)
        if alone():
            partition().of_state(state)  # so that a rule that does not fit is reported on one device, too
            return state
        # Without the barrier, the compiler would leave zeros, which are constants, whole on every device.
        return place_state(jax.lax.optimization_barrier(state))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        if alone():
            return learner.step(state, batch)
        if learner.traits.fed and not learner.traits.lanes:
            batch = place(batch, jax.tree.map(lambda leaf: PartitionSpec(), batch))
        elif not learner.traits.fed:
            _check_divides(batch, partition().row_count)
            batch = over_data(batch)
        around_gradients = reduction if fsdp else None
        by_itself = None if rules or tensor or fsdp or sequence else apart
        with (
            around(),
            seam.within(reduction=around_gradients, apart=by_itself, share=over_data, devices_taken="shard"),
        ):
            state, metrics = learner.step(place_state(state), batch)
        return place_state(state), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        if alone() or not divides(batch, partition().row_count):
            return learner.evaluate(state, batch)  # no error for a short batch: every device takes all of it
        with around(), seam.within(devices_taken="shard"):
            return learner.evaluate(state, over_data(batch))

    return learner._replace(init=init, step=step, evaluate=evaluate)


def _examples_stay(examples: list[int], mesh: Mesh, rows: str | tuple[str, ...]) -> Callable[..., Any]:
    """Return a Flax interceptor that keeps the outputs of modules on the devices of their examples.

    The compiler then gathers parameters where they are needed, not activations.

    Args:
        examples: the number of examples, in a list; empty for an empty batch.
        mesh: the devices.
        rows: the mesh axis that divides the examples.
    """

    def stay(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or list(leaf.shape[:1]) != examples:
            return leaf
        spec = PartitionSpec(rows, *[PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def intercept(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = next_function(*args, **kwargs)
        return jax.tree.map(stay, outputs) if context.method_name == "__call__" else outputs

    return intercept


def divides(batch: Batch, count: int) -> bool:
    """Whether `count` divides the leading axis of each array of a batch."""
    return all(jnp.ndim(leaf) > 0 and len(leaf) % count == 0 for leaf in jax.tree.leaves(batch))


def _check_divides(batch: Batch, count: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if not divides(leaf, count):
            raise ValueError(
                f"shard: a batch of shape {jnp.shape(leaf)} does not divide over {count} devices; "
                f"its leading axis must be a multiple of {count}"
            )
