"""MinAtar: the games of pgx, which agents train in, beside the originals, which they are scored in."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl
from rl.envs import adapters, gymnasium_id
from rl.spaces import encode, is_grid, is_image

pgx = pytest.importorskip("pgx", reason="pgx is not installed")
pytest.importorskip("minatar", reason="minatar is not installed")
GAMES = {
    "breakout": "Breakout",
    "asterix": "Asterix",
    "freeway": "Freeway",
    "seaquest": "Seaquest",
    "space_invaders": "SpaceInvaders",
}
# Channels that are the same after a reset, whatever the seed; the others begin at random.
CERTAIN = {
    "asterix": [0, 1, 2, 3],
    "freeway": [0],
    "seaquest": [0, 2, 3, 4, 5, 6, 7, 8, 9],
    "space_invaders": [0, 1, 2, 3, 4],
}
FIRST = {"freeway": [1] * 4, "seaquest": [4]}  # away from the edge, where some actions do nothing


def both(game):
    """The twin and the original, none of whose actions are sticky; the twin's functions are compiled."""
    pgx.make(f"minatar-{game}")  # imports its module
    names = {name.lower(): name for name in dir(sys.modules[f"pgx.minatar.{game}"])}
    made = getattr(sys.modules[f"pgx.minatar.{game}"], names["minatar" + game.replace("_", "")])
    twin = adapters.from_pgx(made(sticky_action_prob=0.0))
    original = gymnasium.make(gymnasium_id(f"pgx:minatar-{game}"), sticky_action_prob=0.0)
    return twin, jax.jit(twin.reset), jax.jit(twin.step), original


@pytest.mark.parametrize("game", GAMES)
def test_the_original_has_the_same_spaces(game):
    twin, reset, _, original = both(game)
    assert gymnasium_id(f"pgx:minatar-{game}") == original.spec.id == f"MinAtar/{GAMES[game]}-v1"
    assert original.observation_space == twin.observation_space
    assert original.action_space == twin.action_space
    _, outcome = jax.eval_shape(reset, jax.random.key(0))
    assert outcome.observation.dtype == bool
    assert outcome.action_mask is None
    assert gymnasium.make(original.spec.id).spec.kwargs["use_minimal_action_set"]


def test_breakout_is_the_same_game():
    _, reset, step, original = both("breakout")
    lengths = []
    for seed in range(4):
        state, outcome = reset(jax.random.key(seed))
        for begin in range(20):  # the ball begins on the left or on the right
            seen, _ = original.reset(seed=begin)
            if np.array_equal(seen, outcome.observation):
                break
        actions = np.random.default_rng(seed).integers(3, size=60)
        for t, action in enumerate(actions):
            state, outcome = step(state, action, jax.random.key(t))
            seen, reward, terminated, truncated, _ = original.step(action)
            np.testing.assert_array_equal(outcome.observation, seen)
            assert (outcome.reward, bool(outcome.terminated), truncated) == (reward, terminated, False)
            if terminated:
                lengths.append(t)
                break
    assert max(lengths) > 10


@pytest.mark.medium
@pytest.mark.parametrize("game", CERTAIN)
def test_actions_and_channels_mean_the_same(game):
    twin, reset, step, original = both(game)
    ends, channels = set(), CERTAIN[game]
    for action in range(twin.action_space.n):
        state, outcome = reset(jax.random.key(0))
        seen, _ = original.reset(seed=0)
        for t, taken in enumerate([*FIRST.get(game, []), *[action] * 4]):
            np.testing.assert_array_equal(outcome.observation[..., channels], seen[..., channels])
            state, outcome = step(state, taken, jax.random.key(t))
            seen, *_ = original.step(taken)
        ends.add(np.asarray(outcome.observation[..., channels]).tobytes())
    assert len(ends) == twin.action_space.n  # no two actions do the same


def test_cars_drive_as_fast():
    _, reset, _, original = both("freeway")
    ours = jax.vmap(reset)(jax.random.split(jax.random.key(0), 400))[1].observation.sum((1, 2)).mean(0)
    theirs = np.mean([original.reset(seed=seed)[0].sum((0, 1)) for seed in range(400)], 0)
    np.testing.assert_allclose(ours, theirs, atol=0.25)
    assert (theirs[2:] > 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("game", ["asterix", "seaquest", "space_invaders"])
def test_channels_are_as_full_in_random_play(game):
    twin, _, _, original = both(game)
    draw = jax.random.randint(jax.random.key(0), (300, 32), 0, twin.action_space.n)

    def play(state, drawn):
        state, outcome = jax.vmap(rl.envs.auto_reset(twin))(state, *drawn)[:2]
        return state, outcome.observation.sum((0, 1, 2))

    keys = jax.random.split(jax.random.key(1), (300, 32))
    state, _ = jax.vmap(twin.reset)(keys[0])
    ours = np.asarray(jax.lax.scan(play, state, (draw, keys))[1].mean(0)) / 32
    original.reset(seed=0)
    random, seen = np.random.default_rng(0), []
    for _ in range(4000):
        observation, _, terminated, *_ = original.step(random.integers(twin.action_space.n))
        seen.append(observation.sum((0, 1)))
        if terminated:
            original.reset()
    np.testing.assert_allclose(ours, np.mean(seen, 0), rtol=0.25, atol=0.05)


def test_truth_values_are_seen_as_zeros_and_ones():
    space = rl.envs.make("pgx:minatar-breakout").observation_space
    assert is_grid(space)
    assert not is_image(space)
    grid = space.sample()
    np.testing.assert_array_equal(encode(space)(grid[None])[0], grid.ravel())
    torso = rl.networks.torso(space)
    assert isinstance(torso, rl.networks.MinAtarCNN)
    params = torso.init(jax.random.key(0), grid[None])
    np.testing.assert_array_equal(torso.apply(params, grid[None]), torso.apply(params, jnp.float32(grid)[None]))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == (3 * 3 * 4 * 16 + 16) + (8 * 8 * 16 * 128 + 128)  # Young and Tian 2019


def test_an_agent_of_the_twin_is_scored_in_the_original():
    env = rl.envs.make("pgx:minatar-breakout")
    algorithm = rl.dqn(env.observation_space, env.action_space, num_envs=2, capacity=256)
    agent = algorithm.init(jax.random.key(0))
    scores = rl.evaluate(algorithm, agent, "pgx:minatar-breakout", episodes=3)
    again = rl.evaluate(algorithm, agent, "MinAtar/Breakout-v1", episodes=3)
    np.testing.assert_array_equal(scores.returns, again.returns)
    assert gymnasium.spec("MinAtar/Breakout-v1").max_episode_steps == 10_000


def test_without_minatar_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    monkeypatch.delitem(gymnasium.registry, "MinAtar/Breakout-v1", raising=False)
    with pytest.raises(LookupError, match=r"pip install 'jdl\[minatar\]'"):
        gymnasium_id("pgx:minatar-breakout")
