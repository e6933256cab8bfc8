"""Experience replay: past transitions in memory that is allocated once, and samples of them.

Each environment has its own lane, a ring of rows (`jdl.core.ring`) in order of time. The observation that an action led
to is stored in the next row, so no observation is stored twice. After a truncation that next row is a ghost: a row that
is read, but from which no sampled transition starts. With Gymnasium's next-step autoreset the step that only resets is
this row; otherwise `add` inserts it.
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdl.core import ring
from jdl.core.ring import Ring
from rl import spaces
from rl.replay import sum_tree
from rl.types import Experience

type Memory = Literal["device", "host"]

_TRIES = 64  # limit of redraws until no sample starts from a ghost; ghosts are at most half of all rows


@flax.struct.dataclass
class ReplayState:
    """The transitions kept, and their priorities.

    Attributes:
        ring: rows of transitions, with a lane per environment.
        tree: [nodes], float32; priorities of the rows (`rl.replay.sum_tree`), lane by lane. None for uniform sampling.
        highest: scalar float32; the highest priority so far, which new rows get.
    """

    ring: Ring
    tree: Any
    highest: Any


class Transitions(NamedTuple):
    """A sample of n-step transitions.

    Attributes:
        observation: leaves [batch, ...].
        action: [batch, ...].
        reward: discounted sum of the rewards of n steps, or of fewer if the episode ends before.
        discount: factor of the value of `next_observation`: γ to the power of the number of steps; zero after a
            termination.
        next_observation: leaves [batch, ...]; the observation after these steps.
        next_action_mask: [batch, actions], bool; the mask that belongs to it. None if masks are not kept.
        weight: importance weight; zero for samples that must not count.
        place: index of the row, for `Replay.reprioritize`.
    """

    observation: Any
    action: Any
    reward: Float[Array, " batch"]
    discount: Float[Array, " batch"]
    next_observation: Any
    next_action_mask: Any
    weight: Float[Array, " batch"]
    place: Int[Array, " batch"]


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
    rows = capacity // num_envs
    if rows < 2 * (n_step + stack):
        raise ValueError(
            f"replay(capacity={capacity}): {rows} rows for each of {num_envs} environments; give at least "
            f"{2 * (n_step + stack) * num_envs} for returns of {n_step} step(s)"
        )
    one = {
        "observation": _one_frame(spaces.zeros(observation_space), stack),
        "action": jax.eval_shape(lambda: jnp.asarray(spaces.zeros(action_space))),
        "reward": jax.ShapeDtypeStruct((), jnp.float32),
        "terminated": jax.ShapeDtypeStruct((), bool),
        "ends": jax.ShapeDtypeStruct((), bool),  # terminated or truncated
        "first": jax.ShapeDtypeStruct((), bool),
        "valid": jax.ShapeDtypeStruct((), bool),
        "mask": jax.ShapeDtypeStruct((sum(spaces.choices(action_space)),), bool) if masked else None,
    }
    if memory not in ("device", "host"):
        raise ValueError(f'replay(memory={memory!r}): it is "device" or "host"')
    on_host = {"observation"} if memory == "host" else set()
    _check_memory({name: leaf for name, leaf in one.items() if name not in on_host}, rows * num_envs)
    _check_memory({name: one[name] for name in on_host}, rows * num_envs, of_host=True)

    def init() -> ReplayState:
        tree = sum_tree.empty(rows * num_envs) if prioritized else None
        kept = ring.empty({name: leaf for name, leaf in one.items() if name not in on_host}, num_envs, rows)
        zeros = functools.partial(ring.host_zeros, num_envs, rows)
        kept.rows.update({name: jax.tree.map(zeros, one[name]) for name in on_host})
        return ReplayState(kept, tree, jnp.ones(()))

    def add(state: ReplayState, experience: Experience) -> ReplayState:
        time, lanes = experience.reward.shape
        if lanes != num_envs:
            raise ValueError(f"a replay of {num_envs} environments was given experience of {lanes}; make both the same")
        if 2 * time > rows:
            raise ValueError(
                f"replay(capacity={capacity}) holds {rows} steps of each environment; a rollout of {time} steps needs "
                f"{2 * time}: give at least {2 * time * num_envs}"
            )
        ends = experience.terminated | experience.truncated
        starts_next = jnp.concatenate([experience.timestep.first[1:], experience.last.first[None]])
        # Truncated, and the next row begins another episode: the observation that was reached has no row yet.
        ghost = experience.truncated & ~experience.terminated & starts_next & experience.valid
        before = jnp.cumsum(ghost, 0, dtype=jnp.int32) - ghost
        written = state.ring.written
        numbers = written + jnp.arange(time)[:, None] + before
        new = {
            "observation": _one_frame(experience.timestep.observation, stack, axis=2),
            "action": experience.action,
            "reward": experience.reward,
            "terminated": experience.terminated,
            "ends": ends,
            "first": jnp.asarray(experience.timestep.first),
            "valid": jnp.asarray(experience.valid),
            "mask": experience.timestep.action_mask if masked else None,
        }
        nothing = jax.tree.map(jnp.zeros_like, new)
        reached = {
            **nothing,
            "observation": _one_frame(experience.next_observation, stack, axis=2),
            "mask": experience.next_action_mask if masked else None,
        }
        kept = ring.put(state.ring, jax.tree.map(_by_lane, new), numbers.T)
        kept = ring.put(kept, jax.tree.map(_by_lane, reached), jnp.where(ghost, numbers + 1, -1).T)
        total = written + time + ghost.sum(0, dtype=jnp.int32)
        kept = kept.replace(written=total)  # type: ignore[attr-defined]
        return ReplayState(kept, _with_new(state, kept, written, 2 * time), state.highest)

    def _with_new(state: ReplayState, kept: Ring, before: Array, most: int) -> Any:
        """The tree after at most `most` rows per lane were added.

        Rows that can now be drawn get the highest priority so far, and rows that no longer can get zero. A row can be
        drawn from when the rows that its return needs are there until the oldest of its frames is overwritten.
        """
        if state.tree is None:
            return None
        after = kept.written
        lane = jnp.arange(num_envs)[:, None]
        candidates = before[:, None] - n_step + jnp.arange(most)
        drawable = (candidates >= 0) & (candidates < after[:, None] - n_step)
        priority = jnp.where(ring.get(kept.rows["valid"], lane, candidates, rows), state.highest, 0)
        tree = sum_tree.assign(
            state.tree,
            jnp.where(drawable, lane * rows + candidates % rows, -1).ravel(),
            jnp.broadcast_to(priority, drawable.shape).ravel(),
        )
        expired = after[:, None] - n_step + jnp.arange(n_step + stack - 1)
        places = jnp.where(expired >= 0, lane * rows + expired % rows, -1)
        return sum_tree.assign(tree, places.ravel(), jnp.zeros(places.size))

    def bounds(state: ReplayState) -> tuple[Array, Array]:
        """The numbers of the rows that can be drawn: [first, last), each [lane]."""
        written = state.ring.written
        oldest = jnp.maximum(written - rows, 0)
        return jnp.where(oldest > 0, oldest + stack - 1, 0), jnp.maximum(written - n_step, 0)

    def ready(state: ReplayState) -> Array:
        first, last = bounds(state)
        return (last > first).all() if state.tree is None else sum_tree.total(state.tree) > 0

    def draw(state: ReplayState, key: Array, size: int) -> tuple[Array, Array]:
        """Lanes and row numbers [size], drawn uniformly among the rows that are not ghosts."""
        first, last = bounds(state)

        def again(now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            tries, lane, number, good = now
            lane_key, row_key = jax.random.split(jax.random.fold_in(key, tries))
            new_lane = jax.random.randint(lane_key, (size,), 0, num_envs, jnp.int32)
            new = jax.random.randint(
                row_key, (size,), first[new_lane], jnp.maximum(last, first + 1)[new_lane], jnp.int32
            )
            lane, number = jnp.where(good, lane, new_lane), jnp.where(good, number, new)
            return tries + 1, lane, number, ring.get(state.ring.rows["valid"], lane, number, rows)

        nobody = jnp.zeros(size, jnp.int32)
        start = (jnp.zeros((), jnp.int32), nobody, nobody, jnp.zeros(size, bool))
        return jax.lax.while_loop(lambda now: (now[0] < _TRIES) & ~now[3].all(), again, start)[1:3]

    def sample(
        state: ReplayState, key: Array, size: int, discount: float | Array, importance: float | Array = 1.0
    ) -> Transitions:
        if state.tree is None:
            lane, number = draw(state, key, size)
            place = lane * rows + number % rows
            weight = jnp.ones(size)
        else:
            place = sum_tree.sample(state.tree, key, size)
            lane = place // rows
            written = state.ring.written[lane]
            number = written - 1 - (written - 1 - place) % rows
            probability = sum_tree.priorities(state.tree, place) / sum_tree.total(state.tree)
            weight = (jnp.maximum(probability, 1e-12) / probability.min()) ** -importance
        kept = state.ring.rows
        weight = weight * ring.get(kept["valid"], lane, number, rows)
        ahead = number[:, None] + jnp.arange(n_step)
        there = ring.get({name: kept[name] for name in ("reward", "ends", "terminated")}, lane[:, None], ahead, rows)
        over = jnp.cumsum(there["ends"], 1) - there["ends"] > 0  # the episode ended before this step
        powers = discount ** jnp.arange(n_step)
        reward = (there["reward"] * powers * ~over).sum(1)
        count = (~over).sum(1)
        goes_on = ~(there["terminated"] & ~over).any(1)
        after = number + count
        return Transitions(
            observation=frames(state, lane, number),
            action=ring.get(kept["action"], lane, number, rows),
            reward=reward,
            discount=jnp.where(goes_on, jnp.asarray(discount, jnp.float32) ** count, 0),
            next_observation=frames(state, lane, after),
            next_action_mask=ring.get(kept["mask"], lane, after, rows),
            weight=weight,
            place=place,
        )

    def frames(state: ReplayState, lane: Array, number: Array) -> Any:
        """Observations of rows; stacked frames are read from earlier rows, and an episode's first frame is repeated."""
        kept = state.ring.rows
        if stack == 1:
            return ring.get(kept["observation"], lane, number, rows)
        back = jnp.arange(stack - 1)  # from the newest to the one before the oldest
        begins = ring.get(kept["first"], lane[:, None], number[:, None] - back, rows)
        within = jnp.cumprod(~begins, 1).sum(1)  # the number of earlier rows of the same episode
        age = jnp.minimum(jnp.arange(stack)[::-1], within[:, None])
        return ring.get(kept["observation"], lane[:, None], number[:, None] - age, rows)

    def reprioritize(state: ReplayState, place: Array, error: Array) -> ReplayState:
        if state.tree is None:
            return state
        priority = (jnp.abs(error) + 1e-6) ** exponent
        tree = sum_tree.assign(state.tree, place, priority)
        return state.replace(tree=tree, highest=jnp.maximum(state.highest, priority.max()))  # type: ignore[attr-defined]

    return Replay(init, add, ready, sample, reprioritize)


def _by_lane(leaf: Array) -> Array:
    """[time, env, ...] -> [env, time, ...]."""
    return jnp.swapaxes(leaf, 0, 1)


def _one_frame(observation: Any, stack: int, axis: int = 0) -> Any:
    """The newest of the stacked frames, which is the part of an observation that is kept."""
    return observation if stack == 1 else jax.tree.map(lambda leaf: jnp.take(leaf, -1, axis), observation)


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
