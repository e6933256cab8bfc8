"""MuZero: numbers as bins beside rlax, unrolls and targets beside plain loops, known answers, laws of learners."""

import sys
from functools import partial

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from agents import DISCOUNT, NUM_ENVS

import jdl
import rl
from rl.model_search import model_search
from rl.two_hot import TwoHot, signed_hyperbolic, signed_parabolic, two_hot
from rl.types import TimeStep
from rl.unrolls import Kept, unrolled

LINE, TWO = gymnasium.spaces.Box(-2, 2, (1,), np.float32), gymnasium.spaces.Discrete(2)
NUMBERS = np.float32([-2000, -1000, -37.5, -1, -1e-3, 0, 0.3, 1, 2.5, 100, 999, 1e6])


def test_numbers_as_bins_beside_rlax(rlax):
    theirs = rlax("transforms")
    np.testing.assert_allclose(signed_hyperbolic(NUMBERS), theirs.signed_hyperbolic(jnp.asarray(NUMBERS)), rtol=1e-6)
    within = NUMBERS[np.abs(NUMBERS) <= 1000]
    squeezed = signed_hyperbolic(within)
    np.testing.assert_allclose(signed_parabolic(squeezed), theirs.signed_parabolic(squeezed), rtol=1e-3, atol=1e-3)
    end = float(signed_hyperbolic(jnp.float32(1000)))
    np.testing.assert_allclose(
        two_hot(1000.0, 51).encode(within), theirs.transform_to_2hot(squeezed, -end, end, 51), atol=2e-5
    )


@pytest.mark.parametrize(("limit", "bins"), [(1000.0, 51), (1000.0, 2), (3.0, 7)])
def test_numbers_come_back_from_their_bins_as_far_as_the_limit(limit, bins):
    numbers = two_hot(limit, bins)
    probabilities = numbers.encode(NUMBERS)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert ((probabilities > 0).sum(-1) <= 2).all()
    back = numbers.decode(jnp.log(probabilities))
    np.testing.assert_allclose(back, np.clip(NUMBERS, -limit, limit), rtol=2e-4, atol=2e-4)


def some_rollouts(random, rollouts=6, time=9, envs=3, actions=2):
    shape = rollouts, time, envs
    terminated = random.random(shape) < 0.15
    return Kept(
        observation={"seen": random.normal(size=(*shape, 4))},
        action=random.integers(0, actions, shape),
        reward=random.normal(size=shape),
        value=random.normal(size=shape),
        weights=random.random((*shape, actions)),
        allowed=random.random((*shape, actions)) < 0.7,
        terminated=terminated,
        truncated=(random.random(shape) < 0.15) & ~terminated,
        valid=random.random(shape) < 0.9,
    )


@pytest.mark.parametrize("steps", [1, 4])
def test_unrolls_beside_a_plain_loop(steps):
    random = np.random.default_rng(0)
    kept = some_rollouts(random)
    places = [(r, t, e) for r in range(6) for t in range(9) for e in range(3)]
    found = jax.device_get(unrolled(jax.tree.map(jnp.asarray, kept), *jnp.array(places).T, steps))
    seen = set()
    for row, (r, t, e) in enumerate(places):
        np.testing.assert_allclose(found.observation["seen"][row], kept.observation["seen"][r, t, e], rtol=1e-6)
        state = "real"
        for k in range(steps + 1):
            if t + k >= 9 and state == "real":
                state = "unknown"
            if state == "real" and not kept.valid[r, t + k, e]:
                state = "unknown"
            real = state == "real"
            assert found.real[row, k] == real
            assert found.known[row, k] == (state != "unknown")
            wanted = (kept.value[r, t + k, e], kept.reward[r, t + k, e]) if real else (0, 0)
            np.testing.assert_allclose(found.value[row, k], wanted[0], rtol=1e-6)
            if k < steps:
                np.testing.assert_allclose(found.reward[row, k], wanted[1], rtol=1e-6)
            if real:
                np.testing.assert_allclose(found.weights[row, k], kept.weights[r, t + k, e], rtol=1e-6)
                np.testing.assert_array_equal(found.allowed[row, k], kept.allowed[r, t + k, e])
                if k < steps:
                    assert found.action[row, k] == kept.action[r, t + k, e]
                if kept.terminated[r, t + k, e]:
                    state = "absorbed"
                elif kept.truncated[r, t + k, e]:
                    state = "unknown"
            seen.add((state, k))
    assert {("real", steps), ("absorbed", steps), ("unknown", steps)} <= seen


class Chain:
    """A model of four states: from 0, action 0 earns 0.5 and then nothing; action 1 leads to 2, where it earns 1."""

    after = jnp.array([[1, 2], [3, 3], [3, 3], [3, 3]])
    reward = jnp.array([[0.5, 0.0], [0, 0], [0, 1.0], [0, 0]])

    def apply(self, variables, *arrays, method):
        if method == "predict":
            return jnp.zeros((len(arrays[0]), 2)), jnp.zeros((len(arrays[0]), 1))
        state, action = arrays[0][:, 0].astype(int), arrays[1]
        return self.after[state, action][:, None].astype(jnp.float32), self.reward[state, action][:, None]


PLAIN = TwoHot(1, np.inf, jnp.zeros(1), lambda x: x[..., None], lambda x: x[..., 0])


@pytest.mark.medium
@pytest.mark.parametrize(("discount", "best"), [(0.9, 1), (0.3, 0)])
def test_a_search_weighs_what_comes_now_against_what_comes_later(discount, best):
    search = partial(model_search, Chain(), PLAIN, (), jax.random.key(0), jnp.zeros((2, 1)), considered=2)
    found = search(None, discount=discount, simulations=32, gumbel_scale=0.0)
    np.testing.assert_array_equal(found.action, best)
    np.testing.assert_array_equal(found.weights.argmax(-1), best)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)
    assert 0.7 * max(0.5, discount) < found.value[0] <= max(0.5, discount)
    other = search(jnp.arange(2) != best * jnp.ones((2, 1)), discount=discount, simulations=4)
    np.testing.assert_array_equal(other.action, 1 - best)
    np.testing.assert_array_equal(other.weights[:, best], 0)


def small(env, **options):
    made = {
        "optimizer": optax.adam(0.01), "num_envs": NUM_ENVS, "num_steps": 8, "simulations": 4, "minibatches": 4,
        "batch_size": 32, "window": 16, "unroll_steps": 2, "n_step": 3, "discount": DISCOUNT, "width": 16, "bins": 21,
        "value_limit": 10.0,
    }  # fmt: skip
    return rl.muzero(env.observation_space, env.action_space, torso(), **made | options)


def torso():
    return rl.networks.MLP(lambda x: x, (16,), nn.relu)


def a_rollout(random, time=8, **changes):
    """A rollout with search values; episodes end either way at step 4, and what follows is not valid."""
    shape = time, NUM_ENVS
    end = (np.arange(time) == 4)[:, None] & np.ones(shape, bool)
    ends = np.arange(NUM_ENVS) % 2 == 0
    seen, last = random.normal(size=(*shape, 1)), random.normal(size=(NUM_ENVS, 1))
    weights = random.random((*shape, 2))
    return rl.Experience(
        timestep=TimeStep(np.float32(seen), np.zeros(shape, bool)),
        action=random.integers(0, 2, shape),
        extras={"weights": np.float32(weights / weights.sum(-1, keepdims=True)),
                "value": np.float32(random.normal(size=shape))},
        reward=np.float32(random.normal(size=shape)),
        terminated=end & ends, truncated=end & ~ends, valid=(np.arange(time) <= 4)[:, None] & np.ones(shape, bool),
        next_observation=np.float32(np.concatenate([seen[1:], last[None]]) + 10 * end[..., None]),
        last=TimeStep(np.float32(last), np.zeros(NUM_ENVS, bool)), carry=(),
    )._replace(**changes)  # fmt: skip


@pytest.fixture(scope="module")
def learning():
    """An algorithm, an agent, and its compiled update."""
    algorithm = small(probes.matched(), window=4)
    agent = algorithm.init(jax.random.key(0))
    # The last layers begin at zero; here values are to differ.
    agent = agent.replace(
        params=jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), agent.params)
    )
    return algorithm, agent, jax.jit(algorithm.update)


@pytest.mark.medium
def test_targets_beside_a_plain_loop(learning):
    _, agent, update = learning
    rollout = a_rollout(np.random.default_rng(0), valid=np.ones((8, NUM_ENVS), bool))
    found, metrics = update(agent, rollout, jax.random.key(0))
    model = rl.learned_model.LearnedModel(torso(), 2, 21, 16)
    for env in range(NUM_ENVS):
        for t in range(8):
            total, n = 0.0, 0
            while True:
                total += DISCOUNT**n * rollout.reward[t + n, env]
                n += 1
                at = t + n - 1
                if rollout.terminated[at, env]:
                    break
                if rollout.truncated[at, env] or at == 7:
                    state = model.apply(
                        {"params": agent.params}, rollout.next_observation[at, env][None], method="represent"
                    )
                    _, value = model.apply({"params": agent.params}, state, method="predict")
                    total += DISCOUNT**n * two_hot(10.0, 21).decode(value)[0]
                    break
                if n == 3:
                    total += DISCOUNT**n * rollout.extras["value"][at + 1, env]
                    break
            np.testing.assert_allclose(found.kept.value[0, t, env], total, rtol=1e-4, atol=1e-5)
    assert metrics["beyond_limit"].compute().max() == 0
    _, metrics = update(agent, rollout._replace(reward=rollout.reward + 100), jax.random.key(0))
    np.testing.assert_allclose(metrics["beyond_limit"].compute(), 1)
    assert all(np.isfinite(leaf.compute()).all() for leaf in metrics.values())


def test_what_follows_the_end_of_an_episode_is_not_learned(learning):
    """After a termination value and reward are 0, whatever comes; after a truncation nothing is known."""
    _, agent, update = learning
    one, other = (a_rollout(np.random.default_rng(0)) for _ in range(2))
    strange = a_rollout(np.random.default_rng(1))
    after = slice(5, None)
    other.timestep.observation[after] = strange.timestep.observation[after]
    other.reward[after] = strange.reward[after]
    for name in ("weights", "value"):
        other.extras[name][after] = strange.extras[name][after]
    params = [update(agent, rollout, jax.random.key(0))[0].params for rollout in (one, other)]
    assert not np.array_equal(jax.tree.leaves(params[0])[1], jax.tree.leaves(agent.params)[1])
    for left, right in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(left, right)
    other.reward[4] += 1  # of the step that ends the episode: this one counts
    changed = update(agent, other, jax.random.key(0))[0].params
    assert not np.array_equal(jax.tree.leaves(changed)[1], jax.tree.leaves(params[0])[1])


def test_the_last_rollouts_are_kept(learning):
    _, agent, update = learning
    rewards = []
    for number in range(5):
        rollout = a_rollout(np.random.default_rng(number))
        agent, _ = update(agent, rollout, jax.random.key(number))
        rewards.append(rollout.reward)
    for place, number in enumerate((4, 1, 2, 3)):  # of a window of 4
        np.testing.assert_array_equal(agent.kept.reward[place], rewards[number])


def trained(runner, env, updates, **options):
    algorithm = small(env, **options)
    if runner == "device":
        learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), updates))
        state, metrics = learner.step(learner.init(jax.random.key(0)), None)
        return algorithm, state.agent, metrics["return"].compute()[-10:].mean()
    learner, source = rl.on_host(algorithm, probes.VectorProbe(env, NUM_ENVS))
    fitted = jdl.fit(jdl.jit(learner), source, steps=2 * updates, log_every=10)
    return algorithm, fitted.state.agent, fitted.rows[-1]["train/return"]


def values(agent, *observations):
    model = rl.learned_model.LearnedModel(torso(), 2, 21, 16)
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    state = model.apply({"params": agent.params}, seen, method="represent")
    return two_hot(10.0, 21).decode(model.apply({"params": agent.params}, state, method="predict")[1])


def actions(algorithm, agent, *observations):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    return algorithm.act(agent, (), TimeStep(seen, jnp.ones(len(seen), bool)), jax.random.key(0), True)[0]


RUNNERS = [pytest.param("device", marks=pytest.mark.medium), pytest.param("host", marks=pytest.mark.diagnosis)]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["device", "host"])
def test_an_action_that_is_seen(runner):
    env = probes.matched()
    algorithm, agent, last = trained(runner, env, 60)
    np.testing.assert_array_equal(actions(algorithm, agent, -1.0, 1.0), [0, 1])
    np.testing.assert_array_equal(actions(small(env, simulations=0), agent, -1.0, 1.0), [0, 1])
    assert last > 0.75
    np.testing.assert_allclose(values(agent, -1.0, 1.0), [1, 1], atol=0.15)
    seen = TimeStep(jnp.array([[-1.0], [1.0]]), None)
    returns, probabilities, discount = algorithm.beliefs(agent, seen)
    assert discount == DISCOUNT
    # Of the action that is not taken any more nothing is kept, and what was known of it fades.
    np.testing.assert_allclose((returns * probabilities).sum(-1)[jnp.arange(2), jnp.arange(2)], 1, atol=0.1)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_discounted_value(runner):
    _, agent, _ = trained(runner, probes.two_steps(), 100)
    np.testing.assert_allclose(values(agent, 0.0, 1.0), [DISCOUNT, 1], atol=0.1)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_truncated_episode_goes_on(runner):
    _, agent, last = trained(runner, probes.endless(), 100)
    np.testing.assert_allclose(values(agent, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)
    assert last == 1


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_forbidden_action_is_never_taken(runner):
    env = probes.masked()
    algorithm, agent, last = trained(runner, env, 100)
    assert 1.2 < last <= 2
    learner = rl.on_device(algorithm, env, NUM_ENVS)
    state = learner.init(jax.random.key(1)).replace(agent=agent)
    assert jdl.evaluate(jdl.jit(learner), state, rl.episodes(200))["return"] == pytest.approx(1.5, abs=0.15)


def cartpole(**options):
    env = rl.envs.cartpole()
    return rl.on_device(small(env, **options), env, NUM_ENVS)


@pytest.mark.diagnosis  # agents with as much in them are resumed in `test_agents.py` and `test_continuous.py`
def test_resume_is_to_the_bit(tmp_path):
    learner = jdl.jit(cartpole(normalize_observations=True))
    whole = jdl.fit(learner, None, steps=4, run=tmp_path / "whole").state
    jdl.fit(learner, None, steps=2, run=tmp_path / "parts", checkpoint_every=1)
    parts = jdl.fit(learner, None, steps=4, run=tmp_path / "parts", resume=True).state
    same = jax.tree.map(np.array_equal, jax.device_get(whole.agent), jax.device_get(parts.agent))
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_a_seed_among_others_is_that_seed_alone():
    several = jdl.jit(jdl.seeds(jdl.scan(cartpole(), 2), [3, 5], placement="map"))
    state, _ = several.step(several.init(jax.random.key(0)), None)
    alone = jdl.jit(jdl.seeds(jdl.scan(cartpole(), 2), [5], placement="map"))
    one, _ = alone.step(alone.init(jax.random.key(0)), None)
    for together, by_itself in zip(jax.tree.leaves(state.agent), jax.tree.leaves(one.agent), strict=True):
        np.testing.assert_array_equal(together[1], by_itself[0])


@pytest.mark.slow
@pytest.mark.parametrize("split", [jdl.pmap, lambda learner: jdl.accumulate(learner, 2)], ids=["pmap", "accumulate"])
def test_gradients_are_the_same_however_they_are_split(split, x64):
    optimizer = optax.adam(0.01)
    results = []
    for learner in (cartpole(optimizer=optimizer), split(cartpole(optimizer=optimizer))):
        state = learner.init(jax.random.key(2))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state.agent.params)
        state = state.replace(agent=state.agent.replace(params=params, optimizer=optimizer.init(params)))
        results.append(jdl.jit(learner, donate=False).step(state, None)[0].agent.params)
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_what_it_cannot_do_is_said():
    for space, other in (
        (gymnasium.spaces.Box(-1, 1), "rl.sac or rl.ppo"),
        (gymnasium.spaces.MultiBinary(2), "rl.ppo"),
    ):
        with pytest.raises(ValueError, match=rf"is not Discrete; MuZero searches single choices \(try {other}\)"):
            rl.muzero(LINE, space, num_envs=1)
    counts = "num_envs", "num_steps", "considered", "minibatches", "batch_size", "window", "unroll_steps", "n_step"
    for name in counts:
        with pytest.raises(ValueError, match=rf"muzero\({name}=0\): at least 1"):
            rl.muzero(LINE, TWO, **{"num_envs": 1, name: 0})
    with pytest.raises(ValueError, match=r"muzero\(simulations=-1\): at least 1, or 0 to act by the policy alone"):
        rl.muzero(LINE, TWO, num_envs=1, simulations=-1)
    with pytest.raises(ValueError, match=r"two_hot\(limit=-1.0, bins=51\): at least 2 bins, up to a limit above 0"):
        rl.muzero(LINE, TWO, num_envs=1, value_limit=-1.0)
    for options, message in (
        ({"num_envs": 4}, r"muzero\(num_envs=4\): a rollout has 8 environments; give the runner the same number"),
        ({"simulations": 0}, r"muzero\(simulations=0\) acts by its policy alone, and finds nothing to learn"),
    ):
        learner = cartpole(**options)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(learner.step, jax.eval_shape(learner.init, jax.random.key(0)))


def test_without_mctx_it_says_so_before_it_compiles(monkeypatch):
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(LookupError, match=r"mctx is not installed .*: pip install mctx"):
        rl.muzero(LINE, TWO, num_envs=4)
