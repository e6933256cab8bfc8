"""SAC, TQC, CrossQ, TD3 and DDPG: known answers on the device and on the host, actions in bounds, laws of learners."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from agents import CONTINUOUS, DISCOUNT, NUM_ENVS, on_runners, torso
from gymnasium import spaces

import jdl
import rl
from rl.bounds import bounds
from rl.continuous import LEAST, truncated_quantiles
from rl.distributions import Squashed
from rl.types import TimeStep

UNIT = spaces.Box(-1, 1, (1,), np.float32)
KINDS = {  # low and high of each kind of bounds
    "both": (-3.0, 5.0), "lower": (2.0, np.inf), "upper": (-np.inf, -1.0), "none": (-np.inf, np.inf),
    "the whole range of floats": (np.finfo(np.float32).min, np.finfo(np.float32).max),
}  # fmt: skip


everywhere = partial(on_runners, tuple(CONTINUOUS))


def some(shown, *others):
    """The algorithm with the largest state, statistics among it; where it fails, the others say more."""
    return [shown, *(pytest.param(name, marks=pytest.mark.diagnosis) for name in others)]


def trained(runner, name, env, updates=300, **options):
    if runner == "host":
        updates *= 2
    if name == "crossq":
        # Statistics of a batch and running ones differ while the critics move, and no target network holds these.
        updates *= 4
        options = {"optimizer": optax.adam(optax.linear_schedule(1e-3, 0, updates), b1=0.5)} | options
    algorithm = CONTINUOUS[name](env, **options)
    if runner == "device":
        learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), updates))
        state, _ = learner.step(learner.init(jax.random.key(0)), None)
        return algorithm, state.agent
    learner, source = rl.on_host(algorithm, probes.VectorProbe(env, NUM_ENVS))
    return algorithm, jdl.fit(jdl.jit(learner), source, steps=updates, log_every=50).state.agent


def actions(algorithm, agent, *observations):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    return algorithm.act(agent, (), TimeStep(seen, jnp.ones(len(seen), bool)), jax.random.key(0), True)[0]


def values(name, algorithm, agent, *observations):
    """Mean value of the greedy action: others an actor without randomness tries seldom."""
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    count, outputs = {"ddpg": (1, 1), "tqc": (2, 25)}.get(name, (2, 1))
    critic = rl.networks.Critic(torso(), (64 if name == "crossq" else 256,), outputs, normalized=name == "crossq")
    critics = rl.networks.ensemble(critic, count)
    units = actions(algorithm, agent, *observations)  # its bounds are -1 and 1
    given = {"params": agent.params["critics"], "batch_stats": agent.params.get("statistics", {})}
    return critics.apply(given, seen, units).mean((0, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_actions(kind):
    low, high = (np.float32(end) for end in KINDS[kind])
    box = bounds(spaces.Box(low, high, (2, 3), np.float32))
    x = jnp.linspace(-30, 30, 24).reshape(4, 6)
    units = box.unit(x)
    action = box.action(units)
    assert action.shape == (4, 2, 3)
    assert ((action >= low) & (action <= high)).all()
    np.testing.assert_allclose(box.units(action), units, rtol=1e-5, atol=1e-5)
    slope = jax.vmap(jax.vmap(jax.grad(lambda one: box.unit(one[None, None].repeat(6, 1))[0, 0])))(x)
    near = jnp.abs(x) < 5  # beyond, a tanh rounds to 1 and its slope to zero
    np.testing.assert_allclose(box.log_slope(x)[near], jnp.log(slope)[near], rtol=1e-3, atol=1e-3)
    assert jnp.isfinite(box.log_slope(x)).all()
    drawn = box.action(box.random(jax.random.key(0), 1000))
    assert ((drawn >= low) & (drawn <= high)).all()
    assert drawn.std() > 0.5


def test_bounds_may_differ_by_dimension():
    space = spaces.Box(np.array([-1, 0, -np.inf], np.float32), np.array([3, np.inf, np.inf], np.float32))
    box = bounds(space)
    np.testing.assert_allclose(box.action(jnp.array([1.0, 2.0, -7.0])), [3, 2, -7])
    np.testing.assert_allclose(box.units(jnp.array([[1.0, 2.0, -7.0]])), [[0, 2, -7]])


@pytest.mark.parametrize("kind", ["both", "lower", "none"])
def test_the_density_of_a_squashed_action_integrates_to_its_histogram(kind):
    low, high = KINDS[kind]
    box = bounds(spaces.Box(np.float32(low), np.float32(high), (1,), np.float32))
    distribution = Squashed(jnp.full((100_000, 1), 0.3), jnp.full((100_000, 1), -0.5), box)
    unit, log_prob = distribution.from_noise(jax.random.normal(jax.random.key(0), (100_000, 1)))
    order = jnp.argsort(unit[:, 0])
    x, density = np.asarray(unit[order, 0]), np.exp(np.asarray(log_prob[order]))
    total = np.trapezoid(density, x)  # between the smallest and the largest of the samples
    np.testing.assert_allclose(total, 1, atol=1e-3)
    below = np.trapezoid(density[: len(x) // 2], x[: len(x) // 2])
    np.testing.assert_allclose(below, 0.5, atol=5e-3)


def test_the_least_of_two_values_counts():
    outputs, goals = jnp.array([[[3.0], [-1.0]], [[2.0], [4.0]]]), jnp.array([[1.0], [0.0]])
    np.testing.assert_allclose(LEAST.value(outputs), [2, -1])
    np.testing.assert_allclose(LEAST.following(outputs), [[2], [-1]])
    np.testing.assert_allclose(LEAST.loss(outputs, goals), [(2**2 + 1**2) / 2, (1**2 + 4**2) / 2])


def test_quantile_goals_and_losses_beside_a_plain_loop():
    random = np.random.default_rng(0)
    outputs, critics, quantiles, drop = random.normal(size=(3, 4, 5)), 3, 5, 2
    rule = truncated_quantiles(quantiles, drop)
    goals = rule.following(jnp.asarray(outputs))
    for i in range(4):
        pooled = sorted(outputs[:, i].ravel())[: critics * (quantiles - drop)]
        np.testing.assert_allclose(goals[i], pooled, rtol=1e-6)
    found = rule.loss(jnp.asarray(outputs), goals)
    for i in range(4):
        expected = 0.0
        for c in range(critics):
            for q in range(quantiles):
                level = (2 * q + 1) / (2 * quantiles)
                for goal in np.asarray(goals[i]):
                    u = goal - outputs[c, i, q]
                    huber = 0.5 * u**2 if abs(u) <= 1 else abs(u) - 0.5
                    expected += abs(level - (u < 0)) * huber / (quantiles * goals.shape[1])
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


@pytest.mark.medium
@everywhere("tqc", apart=("ddpg",))
def test_a_discounted_value(runner, name):
    env = probes.two_steps(UNIT)
    options = {"temperature": 1e-4} if name in ("sac", "tqc", "crossq") else {}
    algorithm, agent = trained(runner, name, env, 400, **options)
    np.testing.assert_allclose(values(name, algorithm, agent, 0.0, 1.0), [DISCOUNT, 1], atol=0.1)


@pytest.mark.medium
@everywhere("sac", on_host=("td3",), apart=("ddpg", "tqc"))
def test_a_truncated_episode_goes_on(runner, name):
    env = probes.endless(UNIT)
    options = {"temperature": 1e-4} if name in ("sac", "tqc", "crossq") else {}
    algorithm, agent = trained(runner, name, env, 400, **options)
    np.testing.assert_allclose(values(name, algorithm, agent, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)


@pytest.mark.medium
@everywhere("td3", on_host=("sac",))
def test_an_action_that_is_aimed(runner, name):
    env = probes.aimed()
    algorithm, agent = trained(runner, name, env, 500, optimizer=optax.adam(3e-3))
    np.testing.assert_allclose(actions(algorithm, agent, -1.0, 1.0)[:, 0], [-0.5, 0.5], atol=0.15)


@pytest.mark.medium
@everywhere("tqc", names=("tqc",))
def test_an_action_within_bounds_of_its_own(runner, name):
    low, high, target = [-10.0, 2.0, -np.inf], [30.0, np.inf, np.inf], [20.0, 3.0, -1.5]
    env = probes.aimed_within(low, high, target)
    algorithm, agent = trained(runner, name, env, 1600, optimizer=optax.adam(3e-3), noise=None)
    found = actions(algorithm, agent, 0.0)[0]
    np.testing.assert_allclose(found, target, atol=0.6)


@pytest.mark.medium
def test_the_entropy_is_that_which_is_sought():
    env = probes.aimed()  # every reward asks for less entropy, the temperature for as much as is sought
    algorithm = CONTINUOUS["sac"](env, target_entropy=-1.0)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 1500))
    _, metrics = learner.step(learner.init(jax.random.key(0)), None)
    np.testing.assert_allclose(metrics["entropy"].compute()[-300:].mean(), -1, atol=0.1)


def small(name, **options):
    env = rl.envs.pendulum()
    return rl.on_device(CONTINUOUS[name](env, learning_starts=32, **options), env, NUM_ENVS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split"),
    [
        # What sums gradients is one for all; with `accumulate`, CrossQ's statistics are those of each micro-batch.
        pytest.param("crossq", jdl.pmap, id="crossq-pmap"),
        pytest.param("sac", jdl.pmap, id="sac-pmap", marks=pytest.mark.diagnosis),
        pytest.param("td3", jdl.pmap, id="td3-pmap", marks=pytest.mark.diagnosis),
        pytest.param("sac", lambda learner: jdl.accumulate(learner, 2), id="sac-accumulate"),
        pytest.param("td3", lambda learner: jdl.accumulate(learner, 2), id="td3-accumulate"),
    ],
)
def test_gradients_are_the_same_however_they_are_split(name, split, x64):
    key = jax.random.key(2)
    options = {"policy_delay": 1}
    learners = [jdl.jit(one) for one in (small(name, **options), split(small(name, **options)))]
    results = [learner.step(learner.init(key), None)[0].agent.params for learner in learners]
    before = learners[0].init(key).agent.params
    assert not np.array_equal(jax.tree.leaves(before)[1], jax.tree.leaves(results[0])[1])
    for one, other in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9 if one.dtype == np.float64 else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("crossq", "sac"))
def test_an_agent_over_data_is_that_of_one_device(name, x64):
    key = jax.random.key(2)
    one, split = jdl.jit(small(name)), jdl.jit(jdl.distribute(small(name), "data", "2"))
    results = [learner.step(learner.init(key), None)[0].agent.params for learner in (one, split)]
    for left, right in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9 if left.dtype == np.float64 else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("crossq", "sac", "td3"))
def test_resume_is_to_the_bit(name, tmp_path):
    noise = rl.exploration.ornstein_uhlenbeck(0.3)
    learner = jdl.jit(jdl.scan(small(name, noise=noise, normalize_observations=True), 2))
    options = {"steps": 8, "log_every": 2, "checkpoint_every": 4}
    whole = jdl.fit(learner, None, **options)

    def kill(row, state):
        if row["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jdl.fit(learner, None, **options, run=tmp_path / "run", callbacks=[kill])
    again = jdl.fit(learner, None, **options, run=tmp_path / "run", resume=True)
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    for left, right in zip(*(map(plain, jax.tree.leaves(fitted.state)) for fitted in (whole, again)), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
@pytest.mark.parametrize("name", some("crossq", "sac", "td3"))
def test_a_seed_among_others_is_that_seed_alone(name):
    together = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), 3, placement="map"))
    alone = jdl.jit(jdl.seeds(jdl.scan(small(name), 3), [2]))
    key = jax.random.key(1)
    (state, _), (one, _) = (learner.step(learner.init(key), None) for learner in (together, alone))
    for several, single in zip(jax.tree.leaves(state.agent.params), jax.tree.leaves(one.agent.params), strict=True):
        np.testing.assert_array_equal(several[2], single[0])


def test_drifting_noise_has_the_spread_of_its_formula():
    noise = rl.exploration.ornstein_uhlenbeck(0.5, theta=0.15, dt=0.1)
    begins = jnp.zeros(64, bool)

    def step(carry, key):
        return noise.step(carry, begins, key)

    _, path = jax.lax.scan(step, noise.init(64, 1), jax.random.split(jax.random.key(0), 4000))
    stays = 1 - 0.15 * 0.1
    np.testing.assert_allclose(path[1000:].std(), 0.5 * np.sqrt(0.1 / (1 - stays**2)), rtol=0.05)
    again = noise.step(path[-1], ~begins, jax.random.key(1))[0]
    assert jnp.abs(again).max() < 0.5 * np.sqrt(0.1) * 5  # an episode begins at zero
