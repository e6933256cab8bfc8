"""Gymnasium's composite spaces and its wrappers, on the host."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.vector import SyncVectorEnv
from test_on_host import gathered

import jdl
import rl


class Noise(gymnasium.Env):
    """Sees samples of its space, and insists on actions of its space."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.seen = []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
            self.seen = []
        return self._sample(), {}

    def step(self, action):
        assert action in self.action_space, action
        return self._sample(), 1.0, len(self.seen) % 7 == 0, False, {}

    def _sample(self):
        self.seen.append(self.observation_space.sample())
        return self.seen[-1]


LINE = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        pytest.param(
            spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
            spaces.MultiDiscrete([2, 3]),
            marks=pytest.mark.slow,
        ),
        (spaces.Dict(a=spaces.Dict(b=LINE, c=spaces.MultiDiscrete([2, 4])), d=spaces.Discrete(5)), LINE),
        pytest.param(spaces.MultiBinary(4), spaces.Box(-np.inf, np.inf, (2, 2), np.float32), marks=pytest.mark.slow),
    ],
    ids=["tuple", "dict", "bits"],
)
def test_composite_spaces(observation_space, action_space):
    envs = SyncVectorEnv([lambda: Noise(observation_space, action_space)] * 2)
    algorithm = rl.ppo(envs.single_observation_space, envs.single_action_space, num_steps=6, minibatches=2, epochs=1)
    learner, source = rl.on_host(algorithm, envs)
    learner = jdl.jit(learner)
    state = learner.init(jax.random.key(0))
    timesteps = []
    for _ in range(2):
        batch = source.next(state)
        timesteps.append(jax.tree.map(np.array, batch["experience"].timestep.observation))
        state, metrics = learner.step(state, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    stored = jax.tree.map(lambda *leaves: np.concatenate(leaves), *timesteps)
    for i, env in enumerate(envs.envs):
        for t, seen in enumerate(env.seen[:12]):
            for one, other in zip(jax.tree.leaves(stored), jax.tree.leaves(seen), strict=True):
                np.testing.assert_array_equal(one[t, i], other)


def test_stacked_frames_are_those_of_the_episode():
    envs = rl.make_vec("CartPole-v1", 2, "sync", wrappers=[lambda env: wrappers.FrameStackObservation(env, 3)])
    experience, _ = gathered(envs)
    seen, after = experience.timestep.observation, experience.next_observation
    assert seen.shape[2:] == (3, 4)
    np.testing.assert_array_equal(after[experience.valid][:, :-1], seen[experience.valid][:, 1:])
    first = seen[experience.timestep.first]
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, -1:], first.shape))


def test_a_time_limit_truncates_and_rewards_are_those_of_the_wrapper():
    limits = [
        lambda env: wrappers.TimeLimit(env, 5),
        lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    ]
    experience, episodes = gathered(rl.make_vec("CartPole-v1", 2, "sync", wrappers=limits))
    assert experience.truncated.any()
    assert not experience.terminated.any()
    returned, length, number = np.sum(episodes, 0)
    assert (returned, length) == (10 * number, 5 * number)


@pytest.mark.parametrize("vectorization", ["vector_entry_point", "sync"])
def test_atari(vectorization):
    """Pong's frames, by ALE's own vector environment and by Gymnasium's wrappers."""
    pytest.importorskip("ale_py", reason="the atari extra is not installed")
    pytest.importorskip("cv2", reason="the atari extra is not installed")
    options = {}
    if vectorization == "sync":
        preprocessing = [wrappers.AtariPreprocessing, lambda env: wrappers.FrameStackObservation(env, 4)]
        options = {"frameskip": 1, "wrappers": preprocessing}
    envs = rl.make_vec("ale_py:ALE/Pong-v5", 2, vectorization, **options)
    experience, _ = gathered(envs, rollouts=1, rollout=12)
    seen, after = experience.timestep.observation, experience.next_observation
    assert (seen.dtype, seen.shape) == (np.uint8, (12, 2, 4, 84, 84))
    np.testing.assert_array_equal(seen[1:, :, :-1], seen[:-1, :, 1:])
    np.testing.assert_array_equal(after[:-1], seen[1:])
    assert (seen[-1, :, -1] != seen[0, :, -1]).any()
