"""Rows of transitions in lanes: writing rollouts, drawing rows, and reading n-step transitions from them.

Each environment has its own lane, a ring of rows (`jdl.core.ring`) in order of time. The observation that an action led
to is stored in the next row, so no observation is stored twice. After a truncation that next row is a ghost: a row that
is read, but from which no sampled transition starts. With Gymnasium's next-step autoreset the step that only resets is
this row; otherwise `write` inserts it.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdl.core import ring
from jdl.core.ring import Ring
from rl.replay import sum_tree
from rl.types import Experience

_MAX_DRAWS = 64  # redraws until no sample starts from a ghost; ghosts are at most half of all rows


class Layout(NamedTuple):
    """Sizes of a replay.

    Attributes:
        rows: rows in each lane.
        num_envs: number of environments, each with its own lane.
        n_step: rewards that a return sums.
        stack: frames in an observation, of which a row keeps the newest.
        masked: whether rows keep action masks.
    """

    rows: int
    num_envs: int
    n_step: int
    stack: int
    masked: bool


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


class Drawn(NamedTuple):
    """Rows from which sampled transitions start.

    Attributes:
        lane: [batch], int32; the environment.
        number: [batch], int32; number of the row in its lane, counted from the first row ever written.
        weight: [batch]; importance weight.
    """

    lane: Array
    number: Array
    weight: Array


def write(layout: Layout, state: ReplayState, experience: Experience) -> ReplayState:
    """The replay with a rollout; the oldest rows are overwritten."""
    time = len(experience.reward)
    starts_next = jnp.concatenate([experience.timestep.first[1:], experience.last.first[None]])
    # Truncated, and the next row begins another episode: the observation that was reached has no row yet.
    ghost = experience.truncated & ~experience.terminated & starts_next & experience.valid
    ghosts_before = jnp.cumsum(ghost, 0, dtype=jnp.int32) - ghost
    written = state.ring.written
    numbers = written + jnp.arange(time)[:, None] + ghosts_before
    steps = {
        "observation": newest_frame(experience.timestep.observation, layout.stack, axis=2),
        "action": experience.action,
        "reward": experience.reward,
        "terminated": experience.terminated,
        "ends": experience.terminated | experience.truncated,
        "first": jnp.asarray(experience.timestep.first),
        "valid": jnp.asarray(experience.valid),
        "mask": experience.timestep.action_mask if layout.masked else None,
    }
    ghosts = {
        **jax.tree.map(jnp.zeros_like, steps),
        "observation": newest_frame(experience.next_observation, layout.stack, axis=2),
        "mask": experience.next_action_mask if layout.masked else None,
    }
    kept = ring.put(state.ring, jax.tree.map(_by_lane, steps), numbers.T)
    kept = ring.put(kept, jax.tree.map(_by_lane, ghosts), jnp.where(ghost, numbers + 1, -1).T)
    kept = kept.replace(written=written + time + ghost.sum(0, dtype=jnp.int32))  # type: ignore[attr-defined]
    tree = None if state.tree is None else _prioritize_new(layout, state, kept, 2 * time)
    return ReplayState(kept, tree, state.highest)


def _prioritize_new(layout: Layout, state: ReplayState, kept: Ring, most: int) -> Float[Array, " nodes"]:
    """The tree after at most `most` rows per lane were written.

    Rows that can now be drawn get the highest priority so far, and rows that no longer can get zero. A row can be drawn
    when all rows that its return reads are written, until the oldest of its frames is overwritten.
    """
    rows, n_step = layout.rows, layout.n_step
    before, after = state.ring.written[:, None], kept.written[:, None]
    lane = jnp.arange(layout.num_envs)[:, None]
    candidates = before - n_step + jnp.arange(most)
    ready = (candidates >= 0) & (candidates < after - n_step)
    priority = jnp.where(ring.get(kept.rows["valid"], lane, candidates, rows), state.highest, 0)
    tree = sum_tree.assign(
        state.tree,
        jnp.where(ready, lane * rows + candidates % rows, -1).ravel(),
        jnp.broadcast_to(priority, ready.shape).ravel(),
    )
    # The newest rows miss rows of their return, and the oldest miss frames: in the ring they lie side by side.
    expired = after - n_step + jnp.arange(n_step + layout.stack - 1)
    places = jnp.where(expired >= 0, lane * rows + expired % rows, -1)
    return sum_tree.assign(tree, places.ravel(), jnp.zeros(places.size))


def drawable(layout: Layout, state: ReplayState) -> tuple[Int[Array, " lane"], Int[Array, " lane"]]:
    """The numbers of the rows that can be drawn from each lane, [first, last)."""
    written = state.ring.written
    oldest = jnp.maximum(written - layout.rows, 0)
    return jnp.where(oldest > 0, oldest + layout.stack - 1, 0), jnp.maximum(written - layout.n_step, 0)


def ready(layout: Layout, state: ReplayState) -> Bool[Array, ""]:
    """Whether a row can be drawn: from every lane if rows are drawn uniformly, from any by priority."""
    first, last = drawable(layout, state)
    return (last > first).all() if state.tree is None else sum_tree.total(state.tree) > 0


def draw_uniform(layout: Layout, state: ReplayState, key: Array, size: int) -> Drawn:
    """Draw among all rows that are not ghosts."""
    first, last = drawable(layout, state)

    def redraw(now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        draws, lane, number, valid = now
        lane_key, row_key = jax.random.split(jax.random.fold_in(key, draws))
        new_lane = jax.random.randint(lane_key, (size,), 0, layout.num_envs, jnp.int32)
        after_first = jnp.maximum(last, first + 1)
        new = jax.random.randint(row_key, (size,), first[new_lane], after_first[new_lane], jnp.int32)
        lane, number = jnp.where(valid, lane, new_lane), jnp.where(valid, number, new)
        return draws + 1, lane, number, ring.get(state.ring.rows["valid"], lane, number, layout.rows)

    unset = jnp.zeros(size, jnp.int32)
    start = (jnp.zeros((), jnp.int32), unset, unset, jnp.zeros(size, bool))
    _, lane, number, _ = jax.lax.while_loop(lambda now: (now[0] < _MAX_DRAWS) & ~now[3].all(), redraw, start)
    return Drawn(lane, number, jnp.ones(size))


def draw_by_priority(layout: Layout, state: ReplayState, key: Array, size: int, importance: float | Array) -> Drawn:
    """Draw in proportion to priorities, with weights (N P(i))^-β over their maximum (Schaul et al. 2016, section 3.4).

    Args:
        layout: sizes of the replay.
        state: the replay.
        key: a random key.
        size: rows to draw.
        importance: β.
    """
    place = sum_tree.sample(state.tree, key, size)
    lane = place // layout.rows
    newest = state.ring.written[lane] - 1
    probability = sum_tree.priorities(state.tree, place) / sum_tree.total(state.tree)
    weight = (jnp.maximum(probability, 1e-12) / probability.min()) ** -importance
    return Drawn(lane, newest - (newest - place) % layout.rows, weight)


def read(layout: Layout, state: ReplayState, drawn: Drawn, discount: float | Array) -> Transitions:
    """The n-step transitions that start from these rows.

    With k ≤ n steps left in the episode: reward = Σ_{i<k} γ^i r_{t+i}, discount = γ^k, or 0 after a termination.
    """
    rows, kept, lane, number = layout.rows, state.ring.rows, drawn.lane, drawn.number
    ahead = number[:, None] + jnp.arange(layout.n_step)
    steps = ring.get({name: kept[name] for name in ("reward", "ends", "terminated")}, lane[:, None], ahead, rows)
    over = jnp.cumsum(steps["ends"], 1) - steps["ends"] > 0  # the episode ended before this step
    powers = discount ** jnp.arange(layout.n_step)
    count = (~over).sum(1)
    goes_on = ~(steps["terminated"] & ~over).any(1)
    after = number + count
    return Transitions(
        observation=_observation(layout, state, lane, number),
        action=ring.get(kept["action"], lane, number, rows),
        reward=(steps["reward"] * powers * ~over).sum(1),
        discount=jnp.where(goes_on, jnp.asarray(discount, jnp.float32) ** count, 0),
        next_observation=_observation(layout, state, lane, after),
        next_action_mask=ring.get(kept["mask"], lane, after, rows),
        weight=drawn.weight * ring.get(kept["valid"], lane, number, rows),
        place=lane * rows + number % rows,
    )


def _observation(layout: Layout, state: ReplayState, lane: Array, number: Array) -> Any:
    """Observations of rows; stacked frames are read from earlier rows, and an episode's first frame is repeated."""
    kept, stack = state.ring.rows, layout.stack
    if stack == 1:
        return ring.get(kept["observation"], lane, number, layout.rows)
    back = jnp.arange(stack - 1)  # from the newest to the one before the oldest
    begins = ring.get(kept["first"], lane[:, None], number[:, None] - back, layout.rows)
    within = jnp.cumprod(~begins, 1).sum(1)  # the number of earlier rows of the same episode
    age = jnp.minimum(jnp.arange(stack)[::-1], within[:, None])
    return ring.get(kept["observation"], lane[:, None], number[:, None] - age, layout.rows)


def newest_frame(observation: Any, stack: int, axis: int = 0) -> Any:
    """The newest of the stacked frames, which is the part of an observation that is kept."""
    return observation if stack == 1 else jax.tree.map(lambda leaf: jnp.take(leaf, -1, axis), observation)


def _by_lane(leaf: Array) -> Array:
    """[time, env, ...] -> [env, time, ...]."""
    return jnp.swapaxes(leaf, 0, 1)
