"""Compiled environments do what Gymnasium's do: each transition from the same states, and whole episodes' rules."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl import envs
from rl.envs.environment import Timed

KEY = jax.random.key(0)
# Where random states are drawn from, wider than play reaches; and the tolerance of one float32 step.
CLASSIC = {
    "CartPole-v1": (np.array([2.6, 4.0, 0.25, 4.0]), 1e-5),
    "MountainCar-v0": (np.array([1.2, 0.07]), 1e-6),
    "MountainCarContinuous-v0": (np.array([1.2, 0.07]), 1e-6),
    "Acrobot-v1": (np.array([np.pi, np.pi, 4 * np.pi, 9 * np.pi]), 2e-3),  # Runge-Kutta at 28 rad/s amplifies rounding
    "Pendulum-v1": (np.array([np.pi, 8.0]), 1e-4),
}


@pytest.mark.parametrize("name", CLASSIC)
def test_transitions_from_the_same_states(name):
    bound, tolerance = CLASSIC[name]
    theirs, ours = gymnasium.make(name), envs.make(name)
    plain = theirs.unwrapped
    theirs.reset(seed=0)
    random, count = np.random.default_rng(0), 500
    states = random.uniform(-bound, bound, (count, len(bound))).astype(np.float32)
    if name.startswith("MountainCar"):
        states[:, 0] = random.uniform(-1.2, 0.6, count)
    if name == "Acrobot-v1":  # half of them at speeds that play has
        states[::2, 2:] /= 8
    theirs.action_space.seed(0)
    actions = np.stack([theirs.action_space.sample() for _ in range(count)])
    timed = Timed(jnp.asarray(states), jnp.zeros(count, jnp.int32))
    _, outcome = jax.vmap(ours.step, (0, 0, None))(timed, jnp.asarray(actions), KEY)
    differing = 0
    for i in range(count):
        plain.state = states[i].astype(np.float64)
        plain.steps_beyond_terminated = None
        observation, reward, terminated, truncated, _ = plain.step(actions[i])
        np.testing.assert_allclose(outcome.observation[i], observation, rtol=tolerance, atol=tolerance)
        assert not truncated
        if bool(outcome.terminated[i]) != terminated:
            differing += 1  # a state within rounding of a limit
        else:
            np.testing.assert_allclose(outcome.reward[i], reward, rtol=1e-5, atol=1e-5)
    assert differing <= 1
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space


@pytest.mark.parametrize("name", CLASSIC)
def test_first_states_are_drawn_from_the_same_range(name):
    ours, theirs = envs.make(name), gymnasium.make(name)
    _, outcome = jax.vmap(ours.reset)(jax.random.split(KEY, 2000))
    drawn = np.stack([theirs.reset(seed=i)[0] for i in range(2000)])
    np.testing.assert_allclose(outcome.observation.min(0), drawn.min(0), atol=0.02 * np.ptp(drawn) + 1e-6)
    np.testing.assert_allclose(outcome.observation.max(0), drawn.max(0), atol=0.02 * np.ptp(drawn) + 1e-6)
    np.testing.assert_allclose(outcome.observation.mean(0), drawn.mean(0), atol=0.05 * np.ptp(drawn) + 1e-6)


TABLES = ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4"]


@pytest.mark.parametrize("name", TABLES)
def test_every_transition_of_a_table(name):
    theirs, ours = gymnasium.make(name).unwrapped, envs.make(name)
    rules = envs.table(gymnasium.make(name))
    states, actions, _ = rules.probability.shape
    draws = 300 if rules.probability.shape[2] > 1 and states < 100 else 20
    keys = jax.random.split(KEY, draws)

    def state_of(s):
        return Timed(s, jnp.int32(0)) if hasattr(ours.reset(KEY)[0], "elapsed") else s

    step = jax.jit(
        jax.vmap(  # every state, every action, many draws
            jax.vmap(jax.vmap(lambda s, a, k: ours.step(state_of(s), a, k)[1], (None, None, 0)), (None, 0, None)),
            (0, None, None),
        )
    )
    found = jax.tree.map(np.asarray, step(jnp.arange(states), jnp.arange(actions), keys))
    for s in range(states):
        for a in range(actions):
            possible = {}
            for probability, after, reward, terminated in theirs.P[s][a]:
                place = int(after), float(reward), bool(terminated)
                possible[place] = possible.get(place, 0) + probability
            drawn = list(zip(found.observation[s, a], found.reward[s, a], found.terminated[s, a], strict=True))
            counted = {place: sum(d == place for d in drawn) / draws for place in possible}
            assert sum(counted.values()) == pytest.approx(1), (s, a)  # nothing else happens
            for place, probability in possible.items():
                assert abs(counted[place] - probability) < 5 * np.sqrt(probability * (1 - probability) / draws) + 1e-9
            if name == "Taxi-v4":
                np.testing.assert_array_equal(found.action_mask[s, a, 0], theirs.action_mask(drawn[0][0]))
    starts = np.asarray(jax.vmap(lambda k: ours.reset(k)[1].observation)(jax.random.split(KEY, 3000)))
    assert set(starts) <= set(np.flatnonzero(theirs.initial_state_distrib))
    assert len(set(starts)) > 0.95 * np.count_nonzero(theirs.initial_state_distrib)


@pytest.mark.parametrize("name", envs.TWINS)
def test_time_limits_are_gymnasiums(name):
    limit = gymnasium.spec(name).max_episode_steps
    env = envs.make(name)
    state, _ = env.reset(KEY)
    if limit is None:
        assert not hasattr(state, "elapsed")
        return
    late = state._replace(elapsed=jnp.int32(limit - 2))
    action = jnp.asarray(env.action_space.sample())
    state, outcome = env.step(late, action, KEY)
    assert not outcome.truncated
    _, outcome = env.step(state, action, KEY)
    assert outcome.truncated != outcome.terminated  # if both happen, it has terminated


def test_auto_reset_shows_the_true_outcome_and_begins_anew():
    env = envs.time_limit(envs.cartpole(), 2)
    step = envs.auto_reset(env)
    state, first = env.reset(KEY)
    state, outcome, seen = step(state, 1, KEY)
    np.testing.assert_array_equal(outcome.observation, seen.observation)
    state, outcome, seen = step(state, 1, KEY)
    assert outcome.truncated
    assert abs(outcome.observation[1]) > 0.3  # two pushes
    assert abs(seen.observation[1]) <= 0.05  # at rest, another episode
    assert not seen.truncated
    assert int(state.elapsed) == 0
    assert not np.array_equal(seen.observation, first.observation)


def test_the_optimum_of_cliff_walking_is_13_steps():
    rules = envs.table(gymnasium.make("CliffWalking-v1"))
    values = envs.optimal_values(rules, 1.0)
    assert rules.start @ values == pytest.approx(-13)


def test_an_unknown_environment_names_those_there_are():
    with pytest.raises(LookupError, match="there is no JAX environment 'Pong'; there are CartPole-v1"):
        envs.make("Pong")
    with pytest.raises(ValueError, match="has no table"):
        envs.table(gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize("name", ["CartPoleNoVel-v1", "PendulumNoVel-v1", "MemoryChain3-v0"])
def test_what_is_partly_observed_is_the_same_in_gymnasium(name):
    theirs, ours = gymnasium.make(name), envs.make(name)
    assert ours.observation_space == theirs.observation_space
    theirs.action_space.seed(0)
    observation, _ = theirs.reset(seed=0)
    if name.startswith("Memory"):
        state = jnp.int32(observation[2] > 0), jnp.int32(0)
    else:
        plain = theirs.unwrapped
        state = Timed(jnp.asarray(plain.state, jnp.float32), jnp.int32(0))
    for _ in range(4):
        action = theirs.action_space.sample()
        observation, reward, terminated, *_ = theirs.step(action)
        state, outcome = ours.step(state, jnp.asarray(action), KEY)
        np.testing.assert_allclose(outcome.observation, observation, atol=1e-4)
        np.testing.assert_allclose(outcome.reward, reward, atol=1e-4)
        assert bool(outcome.terminated) == terminated
    assert terminated == name.startswith("Memory")


def in_gymnasium(name, act):
    """The suits that were shown, and the return."""
    env = gymnasium.make(name)
    suit, _ = env.reset(seed=0)
    shown, total, truncated = [suit], 0.0, False
    while not truncated:
        suit, reward, terminated, truncated, _ = env.step(act(shown))
        assert not terminated
        shown, total = [*shown, suit], total + reward
    return shown, total


def compiled(name, act):
    env = envs.make(name)
    state, outcome = env.reset(KEY)
    shown, total, step = [int(outcome.observation)], 0.0, jax.jit(env.step)
    while not outcome.truncated:
        state, outcome = step(state, act(shown), jax.random.fold_in(KEY, len(shown)))
        assert not outcome.terminated
        shown, total = [*shown, int(outcome.observation)], total + float(outcome.reward)
    return shown, total


@pytest.mark.parametrize("play", [in_gymnasium, compiled])
def test_every_card_of_the_deck_is_dealt_and_the_first_is_asked_for(play):
    shown, total = play("RepeatFirstEasy-v0", lambda shown: shown[0])
    assert np.bincount(shown).tolist() == [13] * 4
    assert total == pytest.approx(1, abs=1e-5)
    again, total = play("RepeatFirstEasy-v0", lambda shown: (shown[0] + len(shown) // 51) % 4)  # wrong once, at the end
    assert again == shown
    assert total == pytest.approx(1 - 2 / 51, abs=1e-5)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="decks=0"):
        envs.repeat_first(0)
    with pytest.raises(ValueError, match="length=0"):
        envs.memory_chain(0)
