"""The axis of independent runs, and how they are spread over the devices of this machine.

On a CPU, `vmap` over runs is slow (batches of small matrix products; 0.6 to 0.9 times the speed of one run, measured),
and a single run leaves cores idle. So runs are spread over host devices, with a loop over the runs of each: that uses
all cores, and every run gives the same bits as alone. On an accelerator, `vmap` fills the device.
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

RUNS = "runs"  # the name of the mesh axis along which devices hold different runs


def over_runs(
    function: Callable[..., PyTree], runs: int, *, placement: Placement | None, spread: bool | int, transform: str
) -> Callable[..., PyTree]:
    """Map `function(run, *shared)` over the leading axis of `run`, spread over the devices of this machine.

    Args:
        function: takes one run's pytree and pytrees that all runs share.
        runs: the length of the leading axis.
        placement: "map" for one run after another on each device, with the same bits as a run alone, or "vmap" for all
            runs of a device at once; by default "map" on a CPU and "vmap" elsewhere.
        spread: True to divide the runs among all devices unless an outer transform has taken them; False to stay on
            one; or the number of groups of devices to divide the runs among, if a transform inside `function` spreads
            each run over the devices of its group.
        transform: the name of the caller in messages.

    Raises:
        ValueError: for groups that do not divide the runs, and for groups with placement "map".
    """
    if spread is not True and spread > 1:
        return _over_groups(function, runs, spread, placement, transform)
    everywhere = spread is True

    def mapped(states: PyTree, *shared: PyTree) -> PyTree:
        within = placement or ("map" if jax.default_backend() == "cpu" else "vmap")
        devices = jax.devices() if everywhere and not seam.current().devices_taken else jax.local_devices()[:1]
        devices = devices if processes.several() else devices[:runs]  # every process must take part in the program
        if len(devices) == 1:
            return _on_one_device(function, within)(states, *shared)
        with seam.within(devices_taken=transform):
            mesh = Mesh(np.array(devices), (RUNS,), axis_types=(AxisType.Auto,))
            padding = -runs % len(devices)
            local = _on_one_device(function, within)
            if padding:  # unused runs, so that every device has the same number
                states = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:padding]]), states)
                if within == "map":
                    states = (jnp.arange(runs + padding) < runs, states)
                    local = _on_one_device(partial(_skip_padding, function), within)
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
            # Replicate the results: if `init` and `step` gave states of two layouts, the step would be compiled twice.
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
            results = jax.vmap(partial(_with_shared, function, shared), spmd_axis_name=RUNS)(states)
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
        if len(jax.tree.leaves(states)[0]) == 1:  # a loop over one run would only hide its operations from the compiler
            result = function(jax.tree.map(lambda leaf: leaf[0], states), *shared)
            return jax.tree.map(lambda leaf: leaf[None], result)
        single = partial(_with_shared, function, shared)
        return jax.lax.map(single, states) if within == "map" else jax.vmap(single)(states)

    return run


def _skip_padding(function: Callable[..., PyTree], run: tuple[Any, PyTree], *shared: PyTree) -> PyTree:
    """Return the result of `function`, or zeros, without computing it, for a run that is padding."""
    wanted, state = run
    nothing = jax.eval_shape(function, state, *shared)
    return jax.lax.cond(
        wanted,
        lambda: function(state, *shared),
        lambda: jax.tree.map(lambda leaf: jax.lax.full(leaf.shape, 0, leaf.dtype), nothing),
    )


def _with_shared(function: Callable[..., PyTree], shared: tuple[PyTree, ...], state: PyTree) -> PyTree:
    return function(state, *shared)


def beside(state: PyTree, data: PyTree) -> PyTree:
    """Copy data to every device that holds a state, once, so that no step has to move it there.

    Args:
        state: a pytree of JAX arrays, all on the same devices.
        data: a pytree of arrays.
    """
    shardings = {leaf.sharding for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)}
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    if not meshes:
        return jax.device_put(data)
    return jax.device_put(data, NamedSharding(meshes[0], PartitionSpec()))


def warn_if_runs_stay_on_one_core(runs: int, placement: Placement | None, transform: str) -> None:
    """Warn of idle cores, with the remedy, if this CPU has several cores and JAX a single device.

    Args:
        runs: the number of runs; a single one gives no warning.
        placement: as in `over_runs`; "vmap" gives no warning, since one operation for all runs uses all cores.
        transform: the name of the caller in the message.
    """
    if placement == "vmap" or runs == 1:
        return
    if cores() > 1 and jax.default_backend() == "cpu" and jax.local_device_count() == 1:
        warnings.warn(
            f"{transform}: {runs} runs one after another on 1 of {cores()} cores' devices; "
            "call jdl.host_devices() before the first JAX operation to spread them (the results are the same)",
            stacklevel=4,
        )
