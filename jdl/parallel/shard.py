"""One global program that the compiler splits: the batch over devices, the state by rules on its paths.

    learner = jdl.shard(learner)                                                    # data-parallel
    learner = jdl.shard(learner, fsdp="data")                                       # and the state shared out
    learner = jdl.shard(learner, mesh, [("head/kernel$", PartitionSpec(None, "model"))])

What is where is an array's own affair: a checkpoint of one layout restores into any other.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jdl.core import seam
from jdl.core.learner import Batch, Learner, Metrics, State
from jdl.nn.layers.ring_attention import over_ring
from jdl.parallel.partition import Partition, Rules
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
    """One global program: the batch over the mesh's first axis, the state by rules, the rest on every device.

    mesh: by default all devices on one axis, "data". rules: `(regular expression, PartitionSpec)` pairs, the
    first that is found in a leaf's path ("params/Dense_0/kernel", and the optimizer's moments of the same name)
    places it. tensor: a mesh axis that shares out the parameters of `jdl.nn`'s families where it divides them
    (`jdl.nn.TENSOR_PARALLEL`). fsdp: a mesh axis that shares out every array of at least 1,024 numbers along its
    longest axis that is free and divisible, gathered layer by layer as it is needed (Rajbhandari et al., "ZeRO", 2020).
    sequence: a mesh axis that shares out the second axis of the batch, the time of sequences, for networks that mix
    times by `jdl.nn.MultiHeadAttention` alone (`jdl.nn.layers.ring_attention`).

    Use it under `jit`; statistics and random masks are those of one device. Raises ValueError for a batch given to
    a step that the devices do not divide, for a rule that matches nothing or does not divide its axis, and for an
    unknown mesh axis.
    """
    if learner.runs is not None:
        raise ValueError("shard goes inside: seeds(shard(learner), ...), with spread=False to leave shard the devices")
    if mesh is not None:  # whose axes may be explicit, as jax.make_mesh makes them
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        Partition(mesh, rules, tensor, fsdp, sequence).check_axes()

    def chosen() -> Mesh:
        return mesh_of(jax.devices()[: jax.device_count() // seam.current().groups], "data") if mesh is None else mesh

    def alone() -> bool:
        return len(free_devices("shard", None if mesh is None else list(mesh.devices.flat))) == 1

    def partition() -> Partition:
        return Partition(chosen(), rules, tensor, fsdp, sequence, learner.lanes)

    def rows() -> int:
        return chosen().shape[partition().rows]

    def place(tree: PyTree, specs: PyTree) -> PyTree:
        everywhere = of_groups(chosen())
        constrain = lambda leaf, spec: jax.lax.with_sharding_constraint(leaf, NamedSharding(everywhere, spec))  # noqa: E731
        return jax.tree.map(constrain, tree, specs)

    def place_state(tree: PyTree) -> PyTree:
        return place(tree, partition().of_state(tree))

    def over_data(tree: PyTree) -> PyTree:
        return place(tree, jax.tree.map(partition().of_batch, tree))

    def around() -> contextlib.AbstractContextManager[None]:
        return (
            contextlib.nullcontext() if sequence is None else over_ring(of_groups(chosen()), sequence, partition().rows)
        )

    def reduction(summed: seam.SummedGradients) -> seam.SummedGradients:
        def reduced(params: PyTree, batch: Batch, key: Array) -> seam.Summed:
            examples = [len(leaf) for leaf in jax.tree.leaves(batch)[:1]]
            with nn.intercept_methods(_examples_stay(examples, of_groups(chosen()), partition().rows)):
                result = summed(params, batch, key)
            specs = partition().of_state({"params": result.gradients}, part=True)
            return result._replace(gradients=place(result.gradients, specs["params"]))

        return reduced

    def init(key: Array) -> State:
        state = learner.init(key)
        if alone():
            partition().of_state(state)  # a rule that does not fit is told before it meets many devices
            return state
        # Behind a barrier, or the compiler would leave zeros, which are constants, whole on every device.
        return place_state(jax.lax.optimization_barrier(state))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        if alone():
            return learner.step(state, batch)
        if learner.fed and not learner.lanes:
            batch = place(batch, jax.tree.map(lambda leaf: PartitionSpec(), batch))
        elif not learner.fed:
            _check_divides(batch, rows())
            batch = over_data(batch)
        with around(), seam.reduced(reduction if fsdp else None, share=over_data, devices_taken="shard"):
            state, metrics = learner.step(place_state(state), batch)
        return place_state(state), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        if alone() or not divides(batch, rows()):
            return learner.evaluate(state, batch)  # a short batch is not worth an error: every device takes it whole
        with around(), seam.reduced(devices_taken="shard"):
            return learner.evaluate(state, over_data(batch))

    return learner._replace(init=init, step=step, evaluate=evaluate)


def _examples_stay(examples: list[int], mesh: Mesh, rows: str) -> Callable[..., Any]:
    """Modules' outputs stay with their examples: parameters are gathered where they are needed, not activations."""

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
    """Whether a number of devices divides each array of a batch."""
    return all(jnp.ndim(leaf) > 0 and len(leaf) % count == 0 for leaf in jax.tree.leaves(batch))


def _check_divides(batch: Batch, count: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if not divides(leaf, count):
            raise ValueError(
                f"shard: a batch of shape {jnp.shape(leaf)} does not divide over {count} devices; "
                f"its leading axis must be a multiple of {count}"
            )
