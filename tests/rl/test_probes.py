"""Every algorithm finds the known answers of the probes, on the device and on the host."""

from functools import partial

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from agents import DISCOUNT, DISCRETE_ONLY, MAKE, NUM_ENVS, on_runners, torso

import jdl
import rl
from rl.policy import Extras, next_values
from rl.types import TimeStep

UPDATES = {"ppo": 100, "a2c": 600, "reinforce": 400, "dqn": 800, "dqn with everything": 400}
WITH_VALUES = [name for name in MAKE if name != "reinforce"]  # it has whole returns alone


everywhere = partial(on_runners, tuple(MAKE))


def trained(runner, name, env, times=1, **options):
    """The algorithm, the agent and the return of the last training episodes."""
    algorithm = MAKE[name](env, **options)
    updates = UPDATES[name] * times
    if runner == "device":
        learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), updates))
        state, metrics = learner.step(learner.init(jax.random.key(0)), None)
        return algorithm, state.agent, metrics["return"].compute()[-10:].mean()
    learner, source = rl.on_host(algorithm, probes.VectorProbe(env, NUM_ENVS))
    # Half of the steps of these short episodes are resets.
    fitted = jdl.fit(jdl.jit(learner), source, steps=2 * updates, log_every=10)
    return algorithm, fitted.state.agent, fitted.rows[-1]["train/return"]


def values(name, algorithm, env, agent, *observations):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    if name.startswith("dqn"):
        network = rl.networks.Values(torso(), int(env.action_space.n), dueling=name != "dqn")
        return network.apply({"params": agent.params}, seen)[..., 0].max(-1)
    timestep = TimeStep(seen, jnp.ones(len(seen), bool))
    action, *_ = algorithm.act(agent, (), timestep, jax.random.key(0), False)
    return algorithm.recall(agent, (), *jax.tree.map(lambda leaf: leaf[None], (timestep, action))).value[0]


def score(algorithm, env, agent, count):
    learner = rl.on_device(algorithm, env, NUM_ENVS)
    state = learner.init(jax.random.key(1)).replace(agent=agent)
    return jdl.evaluate(jdl.jit(learner), state, rl.episodes(count))["return"]


def actions(algorithm, agent, *observations):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    return algorithm.act(agent, (), TimeStep(seen, jnp.ones(len(seen), bool)), jax.random.key(0), True)[0]


@pytest.mark.diagnosis  # the next but one tells more; where it fails, this one says what is wrong
@everywhere()
def test_a_constant_value(runner, name):
    env = probes.constant()
    algorithm, agent, last = trained(runner, name, env)
    np.testing.assert_allclose(values(name, algorithm, env, agent, 0.0), [1], atol=0.05)
    assert last == 1


@pytest.mark.diagnosis  # as above
@everywhere()
def test_a_value_from_the_observation(runner, name):
    env = probes.observed()
    algorithm, agent, _ = trained(runner, name, env)
    np.testing.assert_allclose(values(name, algorithm, env, agent, -1.0, 1.0), [-1, 1], atol=0.1)


@everywhere("ppo", "dqn")
def test_a_discounted_value(runner, name):
    env = probes.two_steps()
    algorithm, agent, _ = trained(runner, name, env)
    np.testing.assert_allclose(values(name, algorithm, env, agent, 0.0, 1.0), [DISCOUNT, 1], atol=0.1)


@pytest.mark.medium
@everywhere("ppo", "a2c", "dqn with everything", names=WITH_VALUES, on_host=("ppo",), apart=("dqn",))
def test_a_truncated_episode_goes_on(runner, name):
    env = probes.endless()
    algorithm, agent, _ = trained(runner, name, env, 2)
    np.testing.assert_allclose(values(name, algorithm, env, agent, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)


@pytest.mark.diagnosis  # as above
@everywhere()
def test_an_action_that_is_right(runner, name):
    env = probes.chosen()
    algorithm, agent, _ = trained(runner, name, env)
    assert score(algorithm, env, agent, 10) == 1


@pytest.mark.medium
@everywhere("ppo", "dqn with everything", on_host=("a2c",), apart=("dqn",))
def test_an_action_that_is_seen(runner, name):
    env = probes.matched()
    algorithm, agent, last = trained(runner, name, env)
    np.testing.assert_array_equal(actions(algorithm, agent, -1.0, 1.0), [0, 1])
    assert last > 0.75  # also where it explores
    np.testing.assert_allclose(values(name, algorithm, env, agent, -1.0, 1.0), [1, 1], atol=0.15)


@pytest.mark.medium
@everywhere("ppo", "dqn with everything", on_host=("ppo", "dqn"), apart=("dqn",))
def test_a_forbidden_action_is_never_taken(runner, name):
    env = probes.masked()
    masked = {"masked": True} if name.startswith("dqn") else {}
    algorithm, agent, last = trained(runner, name, env, **masked)
    assert 1.2 < last <= 2
    assert score(algorithm, env, agent, 200) == pytest.approx(1.5, abs=0.15)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["ppo", pytest.param("dqn", marks=pytest.mark.slow)])
def test_on_the_host_a_truncated_episode_goes_on_and_a_reset_counts_nowhere(name):
    env = probes.endless()
    algorithm, agent, last = trained("host", name, env)
    np.testing.assert_allclose(values(name, algorithm, env, agent, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)
    assert last == 1


@everywhere("ppo", "a2c", names=("ppo", "a2c"), on_host=("ppo",))
def test_a_continuous_action(runner, name):
    env = probes.aimed()
    # The best deviation is none: at ten times this rate it is soon so small that an update throws most seeds off.
    options = {"optimizer": optax.adam(1e-3)} if name == "ppo" else {}
    algorithm, agent, _ = trained(runner, name, env, 2, **options)
    np.testing.assert_allclose(actions(algorithm, agent, -1.0, 1.0)[:, 0], [-0.5, 0.5], atol=0.15)


@pytest.mark.medium
@everywhere("ppo", names=[name for name in MAKE if name not in DISCRETE_ONLY])
@pytest.mark.parametrize("kind", ["choices", pytest.param("bits", marks=pytest.mark.slow)])
def test_several_choices_at_once(runner, name, kind):
    env = probes.two_choices() if kind == "choices" else probes.three_bits()
    algorithm, agent, _ = trained(runner, name, env)
    np.testing.assert_array_equal(actions(algorithm, agent, 0.0), [[2, 0] if kind == "choices" else [1, 0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_picture(name):
    env = probes.picture()
    options = {"num_envs": NUM_ENVS, "capacity": 512, "learning_starts": 64} if name == "dqn" else {"num_steps": 8}
    network = rl.networks.NatureCNN(32)
    algorithm = getattr(rl, name)(env.observation_space, env.action_space, network, **options)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 40 if name == "ppo" else 120))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    assert score(algorithm, env, state.agent, 50) == 1


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
    found = next_values(lambda observation, carry: values(observation), experience)
    np.testing.assert_allclose(found[~terminated], values(after)[~terminated], atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_normalizing_leaves_choices_alone(name):
    env = probes.counted_from()
    options = {"optimizer": optax.adam(3e-3), "normalize_observations": True}
    if name == "dqn":
        options |= {"num_envs": NUM_ENVS, "batch_size": 32, "capacity": 1024, "learning_starts": 64}
    algorithm = getattr(rl, name)(env.observation_space, env.action_space, **options, num_steps=8)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 100))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    np.testing.assert_allclose(score(algorithm, env, state.agent, 64), 1.0)


@pytest.mark.slow
def test_normalizing_leaves_pictures_and_choices_alone():
    env = probes.many_kinds()
    network = rl.networks.torso(env.observation_space, (64, 64), nn.relu)
    algorithm = rl.dqn(
        env.observation_space, env.action_space, network, num_envs=NUM_ENVS, num_steps=8, updates_per_rollout=4,
        discount=DISCOUNT, capacity=4096, learning_starts=256, epsilon=0.3, target_every=50, batch_size=32,
        normalize_observations=True,
    )  # fmt: skip
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 200))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    assert score(algorithm, env, state.agent, 64) >= 15.9


def test_old_names_of_arguments_are_taken_with_a_warning():
    spaces = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    with pytest.warns(FutureWarning, match=r"ppo\(rollout=\) is called num_steps= now"):
        assert rl.ppo(*spaces, rollout=7).num_steps == 7
    with pytest.raises(TypeError, match=r"both rollout= and num_steps="):
        rl.ppo(*spaces, rollout=7, num_steps=7)
