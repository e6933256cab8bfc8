"""Replay beside a plain list of transitions; the tree of sums beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from agents import MAKE, NUM_ENVS
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
import rl
from rl.replay import sum_tree
from rl.replay.replay import replay
from rl.types import Experience, TimeStep

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
DISCOUNT = 0.9


class World:
    """Environments that play random episodes; what they see is the number of the lane and a count that never repeats.

    reset_steps: an episode that ended is followed by a step that only resets (Gymnasium's next-step mode).
    """

    def __init__(self, lanes, reset_steps, stack=1, seed=0):
        self.random, self.lanes, self.reset_steps = np.random.default_rng(seed), lanes, reset_steps
        self.count = np.zeros(lanes, int)
        self.stack = stack
        self.frames = [[] for _ in range(lanes)]
        self.ended, self.first = np.zeros(lanes, bool), np.ones(lanes, bool)
        self.now = [self.see(i, True) for i in range(lanes)]
        self.transitions = [[] for _ in range(lanes)]  # of each lane, in order

    def see(self, i, first):
        self.count[i] += 1
        frame = np.array([i, self.count[i]], np.float32)
        self.frames[i] = [frame] * self.stack if first else [*self.frames[i][1:], frame]
        return np.stack(self.frames[i]) if self.stack > 1 else frame

    def rollout(self, time):
        rows = []
        for _ in range(time):
            row = {"seen": np.stack(self.now), "first": self.first.copy()}
            reward = self.random.normal(size=self.lanes).astype(np.float32)
            action = self.random.integers(0, 3, self.lanes)
            kind = self.random.random(self.lanes)
            terminated, truncated, valid = kind < 0.1, (kind > 0.85), np.ones(self.lanes, bool)
            reached = []
            for i in range(self.lanes):
                if self.reset_steps and self.ended[i]:
                    terminated[i] = truncated[i] = valid[i] = self.ended[i] = False
                    reward[i], self.first[i] = 0, True
                    self.now[i] = self.see(i, True)
                    reached.append(self.now[i])
                    continue
                after = self.see(i, False)
                reached.append(after)
                over = bool(terminated[i] or truncated[i])
                self.transitions[i].append(
                    (self.now[i], int(action[i]), float(reward[i]), bool(terminated[i]), over, after)
                )
                self.first[i], self.ended[i], self.now[i] = False, over, after
                if over and not self.reset_steps:
                    self.now[i], self.first[i] = self.see(i, True), True
            rows.append(row | {
                "action": action, "reward": reward, "terminated": terminated, "truncated": truncated, "valid": valid,
                "reached": np.stack(reached),
            })  # fmt: skip
        column = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
        return Experience(
            timestep=TimeStep(column["seen"], column["first"]), action=column["action"], extras=(),
            reward=column["reward"], terminated=column["terminated"], truncated=column["truncated"],
            valid=column["valid"], next_observation=column["reached"],
            last=TimeStep(jnp.asarray(np.stack(self.now)), self.first.copy()), carry=(),
        )  # fmt: skip

    def expected(self, i, k, steps):
        """The n-step transition from transition k of lane i, by a plain loop; None if it is not over yet."""
        seen, action = self.transitions[i][k][:2]
        total = 0.0
        for j in range(steps):
            if k + j >= len(self.transitions[i]):
                return None
            _, _, reward, terminated, over, after = self.transitions[i][k + j]
            total += DISCOUNT**j * reward
            if over or j == steps - 1:
                return seen, action, total, 0.0 if terminated else DISCOUNT ** (j + 1), after
        return None


def sampled(memory, state, key, size, *options):
    return jax.jit(memory.sample, static_argnums=2)(state, jax.random.key(key), size, DISCOUNT, *options)


def filled(memory, world, times):
    state = memory.init()
    add = jax.jit(memory.add)
    for time in times:
        state = add(state, world.rollout(time))
    return state


@pytest.mark.parametrize("reset_steps", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize(("steps", "stack"), [(1, 1), (3, 1), (1, 3), (2, 4)])
def test_every_sample_is_a_transition_of_a_plain_loop(steps, stack, prioritized, reset_steps):
    observed = BOX if stack == 1 else spaces.Box(-np.inf, np.inf, (stack, 2), np.float32)
    memory = replay(
        observed, spaces.Discrete(3), capacity=120, num_envs=2, n_step=steps, prioritized=prioritized, stack=stack
    )
    world = World(2, reset_steps, stack)
    state = filled(memory, world, [7] * 20)
    batch = sampled(memory, state, 0, 3000)
    assert (batch.weight > 0).all()
    begins = {}
    for i in range(2):
        for k in range(len(world.transitions[i])):
            begins[(i, int(np.ravel(world.transitions[i][k][0])[-1]))] = (i, k)
    drawn_rows = np.asarray(batch.observation).reshape(3000, -1)
    rows = [begins[(int(row[0]), int(row[-1]))] for row in drawn_rows]
    seen = set(rows)
    expected = {(i, k): world.expected(i, k, steps) for i, k in seen}
    observation, action, total, discount, after = map(np.array, zip(*(expected[row] for row in rows), strict=True))
    np.testing.assert_array_equal(batch.observation, observation)
    np.testing.assert_array_equal(batch.action, action)
    np.testing.assert_allclose(batch.reward, total, atol=1e-5)
    np.testing.assert_allclose(batch.discount, discount, atol=1e-6)
    goes_on = discount > 0
    np.testing.assert_array_equal(np.asarray(batch.next_observation)[goes_on], after[goes_on])
    # All that is kept can be drawn: per lane 60 rows, of which ghosts, and the newest and oldest few, are none.
    assert len(seen) > 75
    for i in range(2):
        drawn = sorted(k for lane, k in seen if lane == i)
        assert drawn == list(range(drawn[0], drawn[-1] + 1))
        newest = max(k for k in range(len(world.transitions[i])) if world.expected(i, k, steps) is not None)
        assert newest - drawn[-1] <= steps


def test_samples_are_uniform():
    memory = replay(BOX, spaces.Discrete(3), capacity=60, num_envs=2)
    state = filled(memory, World(2, False), [10, 10])
    places = sampled(memory, state, 1, 40_000).place
    counts = np.bincount(places)
    counts = counts[counts > 0]
    np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.2)


@pytest.mark.medium
def test_samples_follow_priorities_and_weights_undo_them():
    memory = replay(BOX, spaces.Discrete(3), capacity=60, num_envs=2, prioritized=True, exponent=0.5)
    state = filled(memory, World(2, False), [10, 10])
    possible = np.unique(sampled(memory, state, 1, 4000).place)
    errors = np.linspace(0.1, 2, len(possible))
    state = jax.jit(memory.reprioritize)(state, jnp.asarray(possible), jnp.asarray(errors))
    batch = sampled(memory, state, 2, 50_000, 1.0)
    share = np.bincount(batch.place, minlength=60)[possible] / 50_000
    np.testing.assert_allclose(share, errors**0.5 / (errors**0.5).sum(), rtol=0.06)
    total = np.bincount(batch.place, batch.weight, minlength=60)[possible]
    np.testing.assert_allclose(total / total.mean(), 1, rtol=0.06)
    assert batch.weight.max() == 1


@pytest.mark.medium
def test_new_rows_have_the_highest_priority():
    memory = replay(BOX, spaces.Discrete(3), capacity=60, num_envs=2, prioritized=True, exponent=1.0)
    world = World(2, False)
    state = filled(memory, world, [10])
    state = jax.jit(memory.reprioritize)(state, jnp.array([0]), jnp.array([100.0]))
    state = jax.jit(memory.add)(state, world.rollout(5))
    leaves = sum_tree.priorities(state.tree, jnp.arange(60))
    assert ((leaves > 99) & (leaves < 101)).sum() > 6


@pytest.mark.medium
@given(
    st.sampled_from([1, 3, 8, 40]).flatmap(lambda n: st.lists(st.floats(0, 10, width=32), min_size=n, max_size=n)),
    st.lists(st.tuples(st.integers(0, 39), st.floats(0, 10, width=32)), max_size=20),
)
@settings(max_examples=30, deadline=None)
def test_a_tree_holds_the_sums(first, then):
    size = len(first)
    tree = sum_tree.assign(sum_tree.empty(size), jnp.arange(size), jnp.array(first, jnp.float32))
    values = np.array(first, np.float32)
    for leaf, value in then:
        if leaf < size:
            tree = sum_tree.assign(tree, jnp.array([leaf, -1]), jnp.array([value, 99.0], jnp.float32))
            values[leaf] = value
    np.testing.assert_allclose(sum_tree.total(tree), values.sum(), rtol=1e-5)
    if values.max() > 1e-30:
        drawn = sum_tree.sample(tree, jax.random.key(0), 50)
        assert (values[np.asarray(drawn)] > 0).all()


def test_sampling_twice_is_the_same_and_another_key_is_not():
    memory = replay(BOX, spaces.Discrete(3), capacity=60, num_envs=2)
    state = filled(memory, World(2, False), [10, 10])
    one, same, other = (sampled(memory, state, k, 50).place for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_pictures_stay_bytes():
    picture = spaces.Box(0, 255, (4, 8, 8), np.uint8)
    memory = replay(picture, spaces.Discrete(3), capacity=100, num_envs=2, stack=4)
    kept = memory.init().ring.rows["observation"]
    assert (kept.dtype, kept.shape) == (np.uint8, (2, 50, 8, 8))


def test_what_does_not_fit_is_said_before_anything_is_allocated():
    picture = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    with pytest.raises(ValueError, match=r"takes 2[0-9]{3}.* GB, and .* GB are free .* capacity of at most [1-9]"):
        replay(picture, spaces.Discrete(3), capacity=100_000_000, num_envs=8)
    with pytest.raises(ValueError, match=r"replay\(capacity=3\): 1 rows for each of 2 environments; give at least 8"):
        replay(BOX, spaces.Discrete(3), capacity=3, num_envs=2)
    memory = replay(BOX, spaces.Discrete(3), capacity=20, num_envs=2)
    with pytest.raises(ValueError, match="replay of 2 environments was given experience of 3"):
        memory.add(memory.init(), World(3, False).rollout(2))
    with pytest.raises(ValueError, match=r"holds 10 steps of each environment; a rollout of 8 steps needs 16"):
        memory.add(memory.init(), World(2, False).rollout(8))


def trained_with(memory, transform, folder=None):
    env = probes.picture()
    algorithm = rl.dqn(
        env.observation_space, env.action_space, rl.networks.MLP(rl.spaces.encode(env.observation_space), (8,)),
        num_envs=2, capacity=64, learning_starts=16, batch_size=8, memory=memory, prioritized=True,
    )  # fmt: skip
    learner = jdl.jit(transform(rl.on_device(algorithm, env, 2)))
    options = {"steps": 16, "log_every": 8, "checkpoint_every": 8}
    if folder is None:
        return jdl.fit(learner, None, **options).state

    def kill(row, state):
        if row["step"] == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jdl.fit(learner, None, **options, run=folder, callbacks=[kill])
    return jdl.fit(learner, None, **options, run=folder, resume=True).state


@pytest.mark.parametrize("placement", [pytest.param(p, marks=pytest.mark.slow) for p in ("map", None, "vmap")])
def test_observations_on_the_host_change_no_bit(placement, tmp_path):
    def transform(learner):
        return learner if placement is None else jdl.seeds(learner, 2, placement=placement)

    there = trained_with("host", transform, tmp_path / "run")
    here = trained_with("device", transform)
    kept = there.agent.replay.ring.rows
    assert kept["observation"].sharding.memory_kind == "pinned_host"
    assert kept["valid"].sharding.memory_kind == "device"
    for one, other in zip(jax.tree.leaves(there.agent), jax.tree.leaves(here.agent), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replay_that_the_host_cannot_hold_is_an_error():
    space = spaces.Box(0, 255, (84, 84), np.uint8)
    with pytest.raises(ValueError, match=r"takes 7056.0 GB, .* free on this machine"):
        replay(space, spaces.Discrete(2), capacity=10**9, num_envs=1, memory="host")
    with pytest.raises(ValueError, match=r"memory='disk'\): it is"):
        replay(space, spaces.Discrete(2), capacity=100, num_envs=1, memory="disk")


@pytest.mark.parametrize(
    ("env", "masked", "kind", "told"),
    [
        (probes.masked, False, UserWarning, "Pass masked=True"),
        (probes.matched, True, ValueError, "without action masks; leave masked out"),
    ],
)
def test_masks_are_kept_where_there_are_some(env, masked, kind, told):
    env = env()
    learner = rl.on_device(MAKE["dqn"](env, masked=masked), env, NUM_ENVS)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with pytest.warns(kind, match=told) if kind is UserWarning else pytest.raises(kind, match=told):
        jax.eval_shape(learner.step, state, None)
