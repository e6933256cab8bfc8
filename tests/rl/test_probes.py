"""PPO, A2C and REINFORCE find the known answers of the probes."""

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from agents import DISCOUNT, MAKE

import jdl
import rl
from rl.policy import Extras, next_values
from rl.types import TimeStep

UPDATES = {"ppo": 100, "a2c": 600, "reinforce": 400}


@pytest.fixture(params=MAKE)
def name(request):
    return request.param


def trained(name, env, updates=None, **options):
    algorithm = MAKE[name](env, **options)
    updates = updates or UPDATES[name]
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 8), updates))
    state, metrics = learner.step(learner.init(jax.random.key(0)), None)
    return algorithm, learner, state, metrics


def values(algorithm, state, *observations):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    timestep = TimeStep(seen, jnp.ones(len(seen), bool))
    return algorithm.act(state.agent, (), timestep, jax.random.key(0), False)[2].value


def test_a_constant_value(name):
    algorithm, _, state, metrics = trained(name, probes.constant())
    np.testing.assert_allclose(values(algorithm, state, 0.0), [1], atol=0.05)
    assert metrics["return"].compute()[-1] == 1
    assert metrics["length"].compute()[-1] == 1


def test_a_value_from_the_observation(name):
    algorithm, _, state, _ = trained(name, probes.observed())
    np.testing.assert_allclose(values(algorithm, state, -1.0, 1.0), [-1, 1], atol=0.1)


def test_a_discounted_value(name):
    algorithm, _, state, _ = trained(name, probes.two_steps())
    np.testing.assert_allclose(values(algorithm, state, 0.0, 1.0), [DISCOUNT, 1], atol=0.1)


@pytest.mark.parametrize("name", ["ppo", "a2c"])  # REINFORCE has whole returns, and these have no end
def test_a_truncated_episode_goes_on(name):
    algorithm, _, state, _ = trained(name, probes.endless(), UPDATES[name] * 2)
    np.testing.assert_allclose(values(algorithm, state, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)


def test_an_action_that_is_right(name):
    _, learner, state, _ = trained(name, probes.chosen())
    scores = jdl.evaluate(learner, state, rl.episodes(10))
    assert scores["return"] == 1


def test_an_action_that_is_seen(name):
    algorithm, learner, state, metrics = trained(name, probes.matched())
    np.testing.assert_array_equal(learner.predict(state, np.array([[-1.0], [1.0]], np.float32)), [0, 1])
    assert metrics["return"].compute()[-1] > 0.8  # also sampled
    np.testing.assert_allclose(values(algorithm, state, -1.0, 1.0), [1, 1], atol=0.15)


def test_a_forbidden_action_is_never_taken(name):
    _, learner, state, metrics = trained(name, probes.masked())
    returned = np.asarray(metrics["return"].total)
    assert returned.max() <= 2 * np.asarray(metrics["return"].weight).max()
    assert jdl.evaluate(learner, state, rl.episodes(200))["return"] == pytest.approx(1.5, abs=0.15)
    assert metrics["return"].compute()[-1] > 1.2


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_continuous_action(name):
    _, learner, state, _ = trained(name, probes.aimed(), UPDATES[name] * 2)
    actions = learner.predict(state, np.array([[-1.0], [1.0]], np.float32))
    np.testing.assert_allclose(actions[:, 0], [-0.5, 0.5], atol=0.15)


def test_several_choices_at_once(name):
    _, learner, state, _ = trained(name, probes.two_choices())
    np.testing.assert_array_equal(learner.predict(state, np.zeros((1, 1), np.float32)), [[2, 0]])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_value_that_follows_is_of_the_observation_before_a_reset(rate):
    random = np.random.default_rng(0)
    seen, after = random.normal(size=(7, 3, 2)), random.normal(size=(7, 3, 2))
    terminated = random.random((7, 3)) < 0.2
    truncated = (random.random((7, 3)) < rate) & ~terminated
    goes_on = ~(terminated | truncated)[:-1, :, None]
    after[:-1] = np.where(goes_on, seen[1:], after[:-1])
    values = lambda x: x @ jnp.array([1.0, -2.0])  # noqa: E731
    experience = rl.Experience(
        timestep=TimeStep(seen, None), action=None, extras=Extras(None, values(seen)), reward=None,
        terminated=terminated, truncated=jnp.asarray(truncated), valid=None, next_observation=jnp.asarray(after),
        last=TimeStep(None, None), carry=(),
    )  # fmt: skip
    found = next_values(values, experience)
    np.testing.assert_allclose(found[~terminated], values(after)[~terminated], atol=1e-5)
