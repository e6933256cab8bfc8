"""PPO, A2C and REINFORCE find the known answers of the probes, and obey the laws of learners."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from gymnasium import spaces

import jdl
import rl
from rl.policy import Extras, next_values
from rl.types import TimeStep

DISCOUNT = 0.5
MAKE = {
    "ppo": lambda env, **options: rl.ppo(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "rollout": 8, "discount": DISCOUNT, "entropy_weight": 0.0} | options,
    ),
    "a2c": lambda env, **options: rl.a2c(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "discount": DISCOUNT} | options,
    ),
    "reinforce": lambda env, **options: rl.reinforce(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "rollout": 16, "discount": DISCOUNT} | options,
    ),
}  # fmt: skip
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


# The laws ------------------------------------------------------------------------------------------------------------


def small(name, **options):
    env = rl.envs.cartpole()
    return rl.on_device(MAKE[name](env, **options), env, 8)


def bits(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


def test_a_seed_among_others_is_that_seed_alone(name):
    together = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), 3, placement="map"))
    alone = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), [2]))
    key = jax.random.key(1)
    (state, _), (one, _) = (learner.step(learner.init(key), None) for learner in (together, alone))
    for several, single in zip(bits(state), bits(one), strict=True):
        np.testing.assert_array_equal(several[2], single[0])
    params = np.asarray(state.agent.params["policy"]["kernel"])
    assert not np.array_equal(params[0], params[1])
    assert not np.array_equal(state.timestep.observation[0], state.timestep.observation[1])


def test_seeds_by_vmap_are_close_after_an_update(name):
    key = jax.random.key(1)
    results = []
    for learner in (jdl.seeds(small(name), 2, placement="vmap"), jdl.seeds(small(name), 2, placement="map")):
        learner = jdl.jit(learner)
        results.append(learner.step(learner.init(key), None)[0].agent.params)
    for one, other in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("transform", [jdl.pmap, lambda learner: jdl.accumulate(learner, 2)])
def test_gradients_are_the_same_however_they_are_split(name, transform, x64):
    plain, split = small(name), transform(small(name))
    key = jax.random.key(2)
    results = [jdl.jit(learner).step(jdl.jit(learner).init(key), None)[0].agent.params for learner in (plain, split)]
    for one, other in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9 if one.dtype == np.float64 else 2e-6)


def test_resume_is_to_the_bit(name, tmp_path):
    learner = jdl.jit(jdl.scan(small(name, normalise_observations=True), 2))
    options = {"steps": 8, "log_every": 2, "checkpoint_every": 4}
    whole = jdl.fit(learner, None, **options)

    def kill(row, state):
        if row["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jdl.fit(learner, None, **options, run=tmp_path / "run", callbacks=[kill])
    again = jdl.fit(learner, None, **options, run=tmp_path / "run", resume=True)
    assert [row["step"] for row in again.rows] == [2, 4, 6, 8]
    for one, other in zip(bits(whole.state), bits(again.state), strict=True):
        np.testing.assert_array_equal(one, other)


class Own(nn.Module):
    """A user's own torso, for observations in parts."""

    @nn.compact
    def __call__(self, observation):
        parts = [nn.Dense(8)(observation["place"]), jax.nn.one_hot(observation["door"], 3)]
        return nn.tanh(nn.Dense(16)(jnp.concatenate(parts, -1)))


def door():
    """The right action is the number of the door, in a Dict observation."""
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "door": spaces.Discrete(3)})

    def seen(state):
        return {"place": jnp.zeros(2), "door": state}

    def reset(key):
        state = jax.random.randint(key, (), 0, 3)
        return state, rl.envs.Outcome(seen(state), 0.0, np.False_, np.False_)

    def step(state, action, key):
        return state, rl.envs.Outcome(seen(state), (action == state).astype(jnp.float32), np.True_, np.False_)

    return rl.envs.Environment("door", reset, step, space, spaces.Discrete(3))


@pytest.mark.parametrize("network", [Own(), None])
def test_a_users_own_network_and_dict_observations(network):
    env = door()
    algorithm = rl.ppo(env.observation_space, env.action_space, network, optimizer=optax.adam(3e-3), rollout=16)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 8), 100))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    assert jdl.evaluate(learner, state, rl.episodes(30))["return"] == 1
