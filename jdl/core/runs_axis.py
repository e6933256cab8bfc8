"""Where independent runs go on this machine.

On a CPU, `vmap` over runs is slow (batched small matrix products, 0.6-0.9 of one run's speed measured) and one run
leaves cores idle; runs spread over host devices and looped within each use the cores and keep every run's bits.
On an accelerator, `vmap` fills the device.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jdl.core import seam
from jdl.runtime import processes
from jdl.runtime.cores import cores

type Placement = Literal["map", "vmap"]

RUNS = "runs"  # the axis of a mesh along which devices have runs of their own


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
        with seam.within(devices_taken=transform):
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
        within = seam.Groups(groups, [])
        with seam.within(groups=within):
            results = jax.vmap(partial(_swapped, function, shared), spmd_axis_name=RUNS)(states)
        if not within.asked:
            warnings.warn(
                f"{transform}(spread={groups}): nothing inside spreads a run over the devices of its group, so all "
                'runs are on one device; give it jdl.distribute(learner, "data") (or pmap, shard), or leave out spread',
                stacklevel=2,
            )
        return results

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
