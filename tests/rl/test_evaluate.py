"""Evaluation in Gymnasium: each environment's first episode alone, whatever its length."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import rl
from rl.types import Algorithm


class Counting(gymnasium.Env):
    """Episodes of 1 or 9 steps, drawn at the reset; each step pays 1, which favors those who take the first to end."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 if self.np_random.random() < 0.5 else 9
        return np.array([self.left], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {}


@pytest.fixture
def counting():
    gymnasium.register("Counting-v0", Counting)
    yield "Counting-v0"
    del gymnasium.registry["Counting-v0"]


def constant(action):
    """An agent that always does the same, and does not learn."""
    act = lambda agent, carry, timestep, key, greedy: (  # noqa: E731
        jnp.broadcast_to(agent * jnp.asarray(action), (*timestep.first.shape, *np.shape(action))), carry, ()
    )  # fmt: skip
    return Algorithm(lambda key: jnp.float32(1), lambda n: (), act, lambda *_: None, 1)


def test_first_episodes_alone(counting):
    scores = rl.evaluate(constant([5.0, 0.0]), jnp.float32(1), counting, episodes=200)
    assert set(scores.returns) == {1.0, 9.0}
    assert abs((scores.returns == 9).mean() - 0.5) < 0.12  # taking the first 200 to end would find one in ten
    np.testing.assert_array_equal(scores.returns, scores.lengths)
    assert scores.terminated.all()
    cut = rl.evaluate(constant([5.0, 0.0]), jnp.float32(1), counting, episodes=9, options={"max_episode_steps": 4})
    np.testing.assert_array_equal(cut.terminated, cut.lengths == 1)
    assert set(cut.lengths) == {1.0, 4.0}


def test_runs_side_by_side_and_the_real_environment_scores_like_its_twin():
    env = rl.envs.cartpole()
    algorithm = constant(1)._replace(init=lambda key: jnp.int32(1))
    agents = jnp.array([0, 1], jnp.int32)
    scores = rl.evaluate(algorithm, agents, "CartPole-v1", runs=2, episodes=50)
    assert scores.returns.shape == scores.terminated.shape == (2, 50)
    assert np.all((scores.returns >= 8) & (scores.returns <= 11))  # pushed one way alone it falls at once
    twin = rl.on_device(algorithm, env, 1)
    state = twin.init(jax.random.key(0))
    assert abs(float(twin.evaluate(state, rl.episodes(50))["return"].compute()) - scores.returns[1].mean()) < 0.5


def test_masks_of_gymnasium_are_obeyed():
    env = rl.envs.make("Taxi-v4")
    algorithm = rl.q_learning(env.observation_space, env.action_space, epsilon=1.0)
    agent = algorithm.init(jax.random.key(0))
    seen = []

    def act(agent, carry, timestep, key, greedy):
        seen.append(timestep.action_mask.shape)
        return algorithm.act(agent, carry, timestep, key, greedy)

    scores = rl.evaluate(algorithm._replace(act=act), agent, "Taxi-v4", episodes=3, greedy=False)
    assert seen == [(3, 6)]  # traced once
    assert np.all(scores.lengths <= 200)


def test_an_endless_episode_is_an_error():
    with pytest.raises(ValueError, match="CartPole-v1 was not over after max_steps=2"):
        rl.evaluate(constant(1), jnp.int32(1), "CartPole-v1", episodes=2, max_steps=2)
    with pytest.raises(ValueError, match="at least 1 episode"):
        rl.evaluate(constant(1), jnp.int32(1), "CartPole-v1", episodes=0)
    with pytest.raises(ValueError, match=r"episodes\(0\): at least 1"):
        rl.episodes(0)
