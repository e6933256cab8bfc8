"""Environments of other libraries by name: found, trained on, and scored where it is said."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl
from rl.envs import AsGymnasium, gymnasium_id


class Walk:
    """A game like pgx's: legal is to go right, or also left where there is a place; the third place ends it."""

    id, num_players, observation_shape, num_actions = "walk", 1, (4,), 2

    def init(self, key):
        return self._state(jnp.int32(0), 0.0)

    def step(self, state, action, key):
        return self._state(state.place + 2 * action - 1, 1.0)

    def _state(self, place, reward):
        return Stepped(place, jnp.array([reward]), jnp.array([place > 0, True]), place >= 3)


class Stepped(NamedTuple):
    place: Any
    rewards: Any
    legal_action_mask: Any
    terminated: Any
    truncated: Any = np.False_

    @property
    def observation(self):
        return jnp.arange(4) == self.place


@pytest.fixture
def library(monkeypatch):
    """What looks like pgx, with one game; and no other library."""
    pgx = ModuleType("pgx")
    two = SimpleNamespace(id="duel", num_players=2)
    pgx.__dict__.update(available_envs=lambda: ("walk", "duel"), make={"walk": Walk(), "duel": two}.__getitem__)
    monkeypatch.setitem(sys.modules, "pgx", pgx)
    monkeypatch.setitem(sys.modules, "gymnax", None)
    yield pgx
    gymnasium.registry.pop("pgx/walk", None)


def test_what_is_not_there_is_named(library):
    with pytest.raises(LookupError, match="pgx has no environment 'chess'; it has duel, walk"):
        rl.envs.make("pgx:chess")
    with pytest.raises(LookupError, match="pip install gymnax"):
        rl.envs.make("gymnax:CartPole-v1")
    with pytest.raises(ValueError, match="duel is for 2 players"):
        rl.envs.make("pgx:duel")
    with pytest.raises(LookupError, match="'pgx:' names no environment: give pgx's own name"):
        gymnasium_id("pgx:")


def test_options_reach_the_adapter(library):
    env = rl.envs.make("pgx:walk", max_steps=1)
    state, _ = env.reset(jax.random.key(0))
    assert env.step(state, 1, jax.random.key(0))[1].truncated
    with pytest.raises(TypeError, match="limit"):
        rl.envs.make("pgx:walk", limit=1)


def test_where_agents_are_scored(library):
    assert gymnasium_id("LunarLander-v3") == "LunarLander-v3"
    assert gymnasium_id("gymnax:CartPole-v1") == "CartPole-v1"
    assert gymnasium_id("some.module:Own-v0") == "some.module:Own-v0"
    assert gymnasium_id("pgx:walk") == gymnasium_id("pgx:walk") == "pgx/walk"


def test_a_game_of_a_library_is_trained_on_and_scored(library):
    env = rl.envs.make("pgx:walk")
    algorithm = rl.a2c(env.observation_space, env.action_space)
    agent = algorithm.init(jax.random.key(0))
    scores = rl.evaluate(algorithm, agent, "pgx:walk", episodes=5, greedy=False)
    assert (scores.lengths % 2 == 1).all()  # three to the right, and as many again as to the left; never an illegal one
    np.testing.assert_array_equal(scores.returns, scores.lengths)


def test_a_compiled_environment_in_gymnasium_takes_the_same_steps():
    ours, theirs = rl.envs.mountain_car(), AsGymnasium(rl.envs.mountain_car())
    assert theirs.observation_space == ours.observation_space
    observation, _ = theirs.reset(seed=3)
    again, _ = theirs.reset(seed=3)
    np.testing.assert_array_equal(observation, again)
    assert not np.array_equal(observation, theirs.reset()[0])
    state = theirs._state
    truncated = False
    for t in range(200):
        assert not truncated
        observation, reward, terminated, truncated, info = theirs.step(t % 3)
        state, outcome = ours.step(state, t % 3, jax.random.key(0))
        np.testing.assert_allclose(observation, outcome.observation, atol=1e-6)
        assert (reward, terminated, info) == (-1.0, False, {})
    assert truncated


@pytest.mark.parametrize("name", ["Driving-v0", "Market-v0", "Prices-v0", "ICUSepsis-v0"])
def test_copies_share_what_is_compiled(name):
    # Else evaluating 500 agents on ICU-Sepsis would hold its table, 150 MB, as often.
    try:
        one, other = (gymnasium.make(name).unwrapped for _ in range(2))
    except LookupError as error:
        pytest.skip(str(error))
    assert one._step is other._step
    assert one._reset is other._reset
