"""Other libraries' environments behind our protocol, beside those libraries themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium.envs.phys2d.cartpole import CartPoleFunctional

import jdl
import rl
from rl.envs import adapters


def played(env, steps=200, num_envs=4):
    """Random legal play of several environments side by side, episode after episode."""
    step = jax.vmap(rl.envs.auto_reset(env))
    states, seen = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), num_envs))

    def one(now, key):
        states, seen = now
        act_key, env_key = jax.random.split(key)
        if hasattr(env.action_space, "n"):
            logits = jnp.zeros((num_envs, int(env.action_space.n)))
            logits = logits if seen.action_mask is None else jnp.where(seen.action_mask, logits, -jnp.inf)
            action = jax.random.categorical(act_key, logits)
        else:
            action = jax.random.uniform(act_key, (num_envs, *env.action_space.shape), minval=-1)
        states, outcome, seen = step(states, action, jax.random.split(env_key, num_envs))
        return (states, seen), (outcome, action)

    return jax.jit(lambda: jax.lax.scan(one, (states, seen), jax.random.split(jax.random.key(1), steps))[1])()


def test_gymnasiums_functional_cartpole_steps_as_it_does_there():
    theirs = CartPoleFunctional()
    env = adapters.from_functional(theirs, "phys2d/CartPole-v1", 500)
    key = jax.random.key(0)
    state, _ = env.reset(key)
    for t in range(60):
        action = jnp.int32(t % 3 == 0)
        expected = theirs.transition(state.state, action, None)
        state, outcome = env.step(state, action, key)
        np.testing.assert_array_equal(outcome.observation, expected)
        assert outcome.terminated == theirs.terminal(expected, None)
        assert outcome.reward == 1
        if outcome.terminated:
            break
    assert outcome.terminated
    cut = played(adapters.from_functional(CartPoleFunctional(), "phys2d/CartPole-v1", 12))[0]
    assert cut.truncated.any()
    assert not (cut.truncated & cut.terminated).any()


@pytest.mark.slow
def test_an_agent_learns_in_gymnasiums_functional_cartpole():
    env = adapters.from_functional(CartPoleFunctional(), "phys2d/CartPole-v1", 500)
    algorithm = rl.ppo(env.observation_space, env.action_space, optimizer=optax.adam(1e-3), num_steps=32)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 8), 100))
    state, metrics = learner.step(learner.init(jax.random.key(0)), None)
    assert np.nanmean(metrics["return"].compute()[-20:]) > 80
    assert jdl.evaluate(learner, state, rl.episodes(20))["return"] > 80


def test_gymnax():
    gymnax = pytest.importorskip("gymnax", reason="gymnax is not installed")
    theirs, params = gymnax.make("CartPole-v1")
    env = adapters.from_gymnax(theirs, params)
    outcome, _ = played(env)
    assert outcome.terminated.any()
    assert outcome.observation.shape == (200, 4, *env.observation_space.shape)
    ours = rl.envs.cartpole()
    state, first = env.reset(jax.random.key(3))
    timed = ours.reset(jax.random.key(3))[0]._replace(state=first.observation)
    for t in range(30):
        state, outcome = env.step(state, jnp.int32(t % 2), jax.random.key(0))
        timed, own = ours.step(timed, jnp.int32(t % 2), jax.random.key(0))
        np.testing.assert_allclose(outcome.observation, own.observation, atol=1e-5)
        assert outcome.terminated == own.terminated
    pixels = adapters.from_gymnax(*gymnax.make("Breakout-MinAtar"))
    assert played(pixels)[0].observation.shape[2:] == (10, 10, 4)


@pytest.mark.medium
def test_pgx():
    pgx = pytest.importorskip("pgx", reason="pgx is not installed")
    env = adapters.from_pgx(pgx.make("2048"), max_steps=50)
    outcome, action = played(env)
    assert outcome.truncated.any()
    assert (outcome.reward >= 0).all()  # an illegal move would end the game with a penalty
    assert env.action_space.n == 4
    assert np.unique(action).size == 4
    with pytest.raises(ValueError, match="tic_tac_toe is for 2 players"):
        adapters.from_pgx(pgx.make("tic_tac_toe"))


def test_brax():
    brax = pytest.importorskip("brax.envs", reason="brax is not installed")
    env = adapters.from_brax(brax.get_environment("fast"), max_steps=20)
    outcome, _ = played(env, 60)
    assert outcome.truncated.any()
    assert outcome.observation.shape == (60, 4, *env.observation_space.shape)


def test_an_old_gymnax_is_refused():
    class Old:
        name = "old"

    with pytest.raises(ValueError, match=r"gymnax 1\.0 or later"):
        adapters.from_gymnax(Old())
