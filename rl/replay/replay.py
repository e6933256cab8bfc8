"""Experience replay: past transitions in memory that is allocated once, and samples of them."""

import functools
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jdl.core import ring
from rl import spaces
from rl.replay import sum_tree, transitions
from rl.replay.transitions import Layout, ReplayState, Transitions
from rl.types import Experience

type Memory = Literal["device", "host"]


class Replay(NamedTuple):
    """Replay as pure functions.

    Attributes:
        init: `() -> state`, an empty replay.
        add: `(state, experience) -> state`; the oldest rows are overwritten.
        ready: `(state) -> scalar bool`, whether there is something to sample.
        sample: `(state, key, batch_size, discount, importance=1) -> Transitions`. `importance` is the exponent of the
            importance weights for prioritized sampling: 0 for no correction, 1 for full correction.
        reprioritize: `(state, place [batch], error [batch]) -> state`; sets priorities by the size of the TD errors.
    """

    init: Callable[[], ReplayState]
    add: Callable[[ReplayState, Experience], ReplayState]
    ready: Callable[[ReplayState], Array]
    sample: Callable[..., Transitions]
    reprioritize: Callable[..., ReplayState]


def replay(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    capacity: int,
    num_envs: int,
    n_step: int = 1,
    prioritized: bool = False,
    exponent: float = 0.6,
    masked: bool = False,
    stack: int = 1,
    memory: Memory = "device",
) -> Replay:
    """A replay of the newest `capacity` rows of all environments, sampled uniformly or by priority.

    Args:
        observation_space: space of the observations.
        action_space: space of the actions.
        capacity: rows kept, of all environments together.
        num_envs: how many environments the runner has.
        n_step: rewards to sum before bootstrapping; sums stop at the end of an episode.
        prioritized: sample in proportion to priorities (Schaul et al. 2016) instead of uniformly.
        exponent: priorities are absolute TD errors to this power.
        masked: keep action masks.
        stack: observations are this many frames along their first axis (Gymnasium's FrameStackObservation). Only the
            newest frame is kept; the others are read from earlier rows.
        memory: where observations are kept, "device" or "host". "host" is for observations too large for an
            accelerator's memory; each sample is then read from there.

    Raises:
        ValueError: for sizes below 1, a capacity too small for `n_step` and `stack`, an unknown memory, and rows that
            do not fit in memory; the last before anything is allocated. `Replay.add` raises it for another number of
            environments and for rollouts longer than half of a lane.
    """
    for name, value in (("capacity", capacity), ("num_envs", num_envs), ("n_step", n_step), ("stack", stack)):
        if value < 1:
            raise ValueError(f"replay({name}={value}): at least 1")
    if memory not in ("device", "host"):
        raise ValueError(f'replay(memory={memory!r}): it is "device" or "host"')
    rows = capacity // num_envs
    if rows < 2 * (n_step + stack):
        raise ValueError(
            f"replay(capacity={capacity}): {rows} rows for each of {num_envs} environments; give at least "
            f"{2 * (n_step + stack) * num_envs} for returns of {n_step} step(s)"
        )
    layout = Layout(rows, num_envs, n_step, stack, masked)
    on_device = _row(observation_space, action_space, layout)
    on_host = {"observation": on_device.pop("observation")} if memory == "host" else {}
    _check_memory(on_host, rows * num_envs, of_host=True)
    _check_memory(on_device, rows * num_envs)

    def init() -> ReplayState:
        tree = sum_tree.empty(rows * num_envs) if prioritized else None
        kept = ring.empty(on_device, num_envs, rows)
        kept.rows.update(jax.tree.map(functools.partial(ring.host_zeros, num_envs, rows), on_host))
        return ReplayState(kept, tree, jnp.ones(()))

    def add(state: ReplayState, experience: Experience) -> ReplayState:
        time, lanes = experience.reward.shape
        if lanes != num_envs:
            raise ValueError(f"a replay of {num_envs} environments was given experience of {lanes}; make both the same")
        if 2 * time > rows:  # each step may need a ghost
            raise ValueError(
                f"replay(capacity={capacity}) holds {rows} steps of each environment; a rollout of {time} steps needs "
                f"{2 * time}: give at least {2 * time * num_envs}"
            )
        _check_masks(experience.timestep.action_mask is not None, masked)
        return transitions.write(layout, state, experience)

    def sample(
        state: ReplayState, key: Array, size: int, discount: float | Array, importance: float | Array = 1.0
    ) -> Transitions:
        if prioritized:
            drawn = transitions.draw_by_priority(layout, state, key, size, importance)
        else:
            drawn = transitions.draw_uniform(layout, state, key, size)
        return transitions.read(layout, state, drawn, discount)

    def reprioritize(state: ReplayState, place: Array, error: Array) -> ReplayState:
        if not prioritized:
            return state
        priority = (jnp.abs(error) + 1e-6) ** exponent
        tree = sum_tree.assign(state.tree, place, priority)
        return state.replace(tree=tree, highest=jnp.maximum(state.highest, priority.max()))  # type: ignore[attr-defined]

    return Replay(init, add, functools.partial(transitions.ready, layout), sample, reprioritize)


def _row(observation_space: gymnasium.Space, action_space: gymnasium.Space, layout: Layout) -> dict[str, Any]:
    """Shapes and types of one row, by name."""
    flag = jax.ShapeDtypeStruct((), bool)
    mask = jax.ShapeDtypeStruct((sum(spaces.choices(action_space)),), bool)
    return {
        "observation": transitions.newest_frame(spaces.zeros(observation_space), layout.stack),
        "action": jax.eval_shape(lambda: jnp.asarray(spaces.zeros(action_space))),
        "reward": jax.ShapeDtypeStruct((), jnp.float32),
        "terminated": flag,
        "ends": flag,  # terminated or truncated
        "first": flag,
        "valid": flag,
        "mask": mask if layout.masked else None,
    }


def _check_masks(given: bool, kept: bool) -> None:
    if kept and not given:
        raise ValueError("replay(masked=True) was given experience without action masks; leave masked out")
    if given and not kept:
        warnings.warn(
            "the environment gives action masks, but the replay keeps none: next actions are valued as if all were "
            "allowed. Pass masked=True, to rl.dqn or rl.replay.replay (--masked True)",
            stacklevel=3,
        )


def _check_memory(row: Any, count: int, of_host: bool = False) -> None:
    needed = count * sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(row))
    free = free_memory(of_host)
    if free is not None and needed > free:
        where = "this machine" if of_host else "this device"
        raise ValueError(
            f"a replay of {count} transitions takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
            f"{where}; give a capacity of at most {int(count * free / needed * 0.8)}"
        )


def free_memory(of_host: bool = False) -> int | None:
    """Free bytes on the default device, or on the host; None if unknown.

    Args:
        of_host: look at the host's memory, also when the default device is not a CPU.
    """
    device = jax.devices()[0]
    if of_host or device.platform == "cpu":
        meminfo = Path("/proc/meminfo")
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
        return int(found[1]) * 1024 if found else None
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
