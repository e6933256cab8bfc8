"""Distributions of the return in DQN: losses beside rlax, noise of its layers, and known answers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
from agents import DISCOUNT, MAKE, NUM_ENVS
from gymnasium import spaces

import jdl
import rl
from rl import value_heads
from rl.networks import NoisyDense, Values
from rl.runners import training
from rl.types import TimeStep

DISCRETE, BOX = spaces.Discrete(2), spaces.Box(-1, 1)
BATCH, ATOMS = 7, 11  # not the same: a wrong broadcast must not go unseen
HEADS = {
    "categorical": value_heads.categorical(-3.0, 3.0, 31), "quantiles": value_heads.quantiles(8),
    "implicit": value_heads.implicit(8),
}  # fmt: skip


@pytest.fixture
def numbers():
    random = np.random.default_rng(0)
    return {
        "outputs": random.normal(size=(BATCH, ATOMS)).astype(np.float32),
        "following": random.normal(size=(BATCH, ATOMS)).astype(np.float32),
        "reward": random.normal(size=BATCH).astype(np.float32),
        "discount": (random.random(BATCH) * (random.random(BATCH) > 0.3)).astype(np.float32),
        "levels": random.random((BATCH, ATOMS)).astype(np.float32),
    }


def test_categorical_goals_beside_rlax(rlax, numbers):
    head = value_heads.categorical(-2.0, 3.0, ATOMS)
    atoms = jnp.linspace(-2.0, 3.0, ATOMS)
    found = head.goals(numbers["reward"], numbers["discount"], numbers["following"])
    project = jax.vmap(rlax("value_learning").categorical_l2_project, (0, 0, None))
    shifted = numbers["reward"][:, None] + numbers["discount"][:, None] * atoms
    wanted = project(shifted, jax.nn.softmax(numbers["following"]), atoms)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)  # also where a goal meets an atom


def test_a_goal_on_an_atom_keeps_its_mass():
    head = value_heads.categorical(0.0, 4.0, 5)
    goals = head.goals(jnp.array([2.0, 4.0, 9.0]), jnp.zeros(3), jnp.zeros((3, 5)))
    np.testing.assert_allclose(goals, [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]], atol=1e-6)


def test_what_lies_beyond_the_ends():
    head = value_heads.categorical(0.0, 4.0, 5)
    following = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4, 1e-9]]).repeat(4, 0))
    reward, discount = jnp.array([0.0, 2.0, -1.0, 9.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    found = head.beyond(reward, discount, following)  # 3 + 2 is beyond 4; 0 - 1 is below 0; 9 is beyond without more
    np.testing.assert_allclose(found, [0, 0.4, 0.1, 1], atol=1e-5)


@pytest.mark.parametrize(("high", "share"), [(3.0, 0.0), (0.5, 1.0)])
def test_rewards_out_of_the_support_are_measured(high, share):
    """Every reward is 1, and every episode a step long."""
    _, _, _, metrics = trained(probes.constant(), 40, head=value_heads.categorical(-3.0, high, 11))
    assert metrics["beyond_support"].compute()[-1] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("shares", "told"), [([0.0, 0.12], "0.12"), ([0.01, None, np.nan], None), ([], None)])
def test_a_run_says_when_its_ends_are_too_narrow(shares, told, capsys):
    rows = [{"step": 1, "train/beyond_support": [0.9, 0.9]}, {"step": 2, "train/beyond_support": shares}]
    training._tell_what_is_narrow(rows)
    error = capsys.readouterr().err
    assert (f"beyond_support is {told}" in error and "widen low and high" in error) if told else error == ""


@pytest.mark.parametrize("huber", [1.0, 0.3])
def test_the_quantile_loss_beside_rlax(rlax, numbers, huber):
    found = value_heads.quantile_loss(numbers["outputs"], numbers["following"], numbers["levels"], huber)
    theirs = jax.vmap(lambda *one: rlax("value_learning").quantile_regression_loss(*one, huber))
    wanted = theirs(numbers["outputs"], numbers["levels"], numbers["following"])
    np.testing.assert_allclose(found, wanted / huber, rtol=1e-4)  # theirs is not divided by the limit


def test_quantiles_find_those_of_a_distribution():
    random = np.random.default_rng(0)
    head = value_heads.quantiles(10, huber=0.01)
    quantiles, optimizer = jnp.zeros((1, 10)), optax.adam(0.01)

    def step(now, sample):
        quantiles, state = now
        grads = jax.grad(lambda q: head.loss(q, sample[None], None).sum())(quantiles)
        updates, state = optimizer.update(grads, state)
        return (quantiles + updates, state), None

    samples = jnp.asarray(random.normal(2.0, 3.0, (3000, 64)), jnp.float32)
    (quantiles, _), _ = jax.lax.scan(step, (quantiles, optimizer.init(quantiles)), samples)
    wanted = np.quantile(np.asarray(samples), (np.arange(10) + 0.5) / 10)
    np.testing.assert_allclose(quantiles[0], wanted, atol=0.3)
    np.testing.assert_allclose(head.values(quantiles), [2.0], atol=0.2)


def test_noise_is_another_for_each_example_and_none_without_a_key():
    layer = NoisyDense(3)
    x = jnp.ones((4, 5))
    params = layer.init(jax.random.key(0), x)
    plain = layer.apply(params, x)
    np.testing.assert_allclose(plain, x @ params["params"]["kernel"] + params["params"]["bias"], rtol=1e-6)
    noisy = layer.apply(params, x, rngs={"noise": jax.random.key(1)})
    assert len(np.unique(np.asarray(noisy)[:, 0])) == 4
    # The variance of Σ σ f(εᵢ) f(εₒ) over i, and of the bias: E[f(ε)²] = E|ε| = √(2/π).
    many = layer.apply(params, jnp.ones((100_000, 5)), rngs={"noise": jax.random.key(2)})
    std, share = 0.5 / np.sqrt(5), np.sqrt(2 / np.pi)
    np.testing.assert_allclose(many.var(0), std**2 * share * (5 * share + 1), rtol=0.05)


def test_the_network_has_an_output_for_each_level():
    levels = jnp.linspace(0.1, 0.9, 4)[None].repeat(2, 0)
    model = Values(rl.networks.MLP(lambda x: x, (16,)), 3, True, 4, drawn=True)
    seen = jnp.ones((2, 5))
    params = model.init(jax.random.key(0), seen, levels)
    outputs = model.apply(params, seen, levels)
    assert outputs.shape == (2, 3, 4)
    again = model.apply(params, seen, levels[:, ::-1])
    np.testing.assert_allclose(again[..., ::-1], outputs, rtol=1e-5)  # each level by itself


def trained(env, updates=600, **options):
    algorithm = MAKE["dqn"](env, **options)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), updates))
    state, metrics = learner.step(learner.init(jax.random.key(0)), None)
    return algorithm, learner, state, metrics


def value(head, agent, *observations, dueling=False):
    seen = jnp.asarray(observations, jnp.float32)[:, None]
    levels = jnp.broadcast_to((jnp.arange(head.outputs) + 0.5) / head.outputs, (len(seen), head.outputs))
    model = Values(rl.networks.MLP(lambda x: x, (16,)), 2, dueling, head.outputs, drawn=head.drawn)
    return head.values(model.apply({"params": agent.params}, seen, levels)).max(-1)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["categorical", *(pytest.param(n, marks=pytest.mark.slow) for n in list(HEADS)[1:])])
def test_a_discounted_value(name):
    _, _, state, _ = trained(probes.two_steps(), head=HEADS[name])
    np.testing.assert_allclose(value(HEADS[name], state.agent, 0.0, 1.0), [DISCOUNT, 1], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_truncated_episode_goes_on(name):
    _, _, state, _ = trained(probes.endless(), head=HEADS[name])
    np.testing.assert_allclose(value(HEADS[name], state.agent, 0.0), [1 / (1 - DISCOUNT)], atol=0.1)


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n != "implicit" else ()) for n in HEADS])
def test_an_action_that_is_seen(name):
    env = probes.matched()
    algorithm, _, state, _ = trained(env, head=HEADS[name], dueling=True)
    seen = TimeStep(jnp.array([[-1.0], [1.0]]), jnp.ones(2, bool))
    action, *_ = algorithm.act(state.agent, (), seen, jax.random.key(0), True)
    np.testing.assert_array_equal(action, [0, 1])


@pytest.mark.slow
def test_rainbow_explores_by_noise_alone():
    env = probes.matched()
    network = rl.networks.MLP(lambda x: x, (16,), nn.relu, noisy=True)
    algorithm = rl.rainbow(
        env.observation_space, env.action_space, network, low=-3.0, high=3.0, num_envs=NUM_ENVS, batch_size=32,
        capacity=1024, learning_starts=64, target_every=10, optimizer=optax.adam(3e-3), discount=DISCOUNT,
    )  # fmt: skip
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, NUM_ENVS), 500))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    seen = TimeStep(jnp.array([[-1.0], [1.0]]), jnp.ones(2, bool))
    np.testing.assert_array_equal(algorithm.act(state.agent, (), seen, jax.random.key(0), True)[0], [0, 1])
    fresh = learner.init(jax.random.key(0)).agent
    many = TimeStep(jnp.ones((200, 1)), jnp.ones(200, bool))
    assert len(np.unique(algorithm.act(fresh, (), many, jax.random.key(0), False)[0])) == 2  # before it learns
    assert len(np.unique(algorithm.act(fresh, (), many, jax.random.key(0), True)[0])) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: value_heads.categorical(1.0, 1.0), "from low up to high"),
        (lambda: value_heads.quantiles(0), r"quantiles\(count=0\): at least 1"),
        (
            lambda: rl.dqn(
                DISCRETE, DISCRETE, num_envs=1, huber=1.0,
                head=value_heads.quantiles(),
            ),
            "the head has a limit of its own",
        ),
        (lambda: rl.dqn(DISCRETE, BOX, num_envs=1), "try rl.sac or rl.ppo"),
        (lambda: rl.sac(DISCRETE, DISCRETE, num_envs=1), "use rl.dqn or rl.ppo"),
        (lambda: rl.sac(DISCRETE, BOX, num_envs=1, policy_delay=0), r"sac\(policy_delay=0\): at least 1"),
        (lambda: rl.sac(DISCRETE, BOX, num_envs=1, critics=0), r"sac\(critics=0\): at least 1"),
        (lambda: rl.td3(DISCRETE, BOX, num_envs=1, batch_size=0), r"td3\(batch_size=0\): at least 1"),
        (lambda: rl.dqn(DISCRETE, DISCRETE, num_envs=1, num_steps=0), r"dqn\(num_steps=0\): at least 1"),
        (lambda: rl.td3(DISCRETE, BOX, num_envs=1, tau=5.0), r"td3\(tau=5.0\): above 0, and at most 1"),
        (lambda: rl.sac(DISCRETE, BOX, num_envs=1, temperature=-1.0), r"sac\(temperature=-1.0\): at least 0"),
        (lambda: rl.exploration.normal(-1.0), r"normal\(std=-1.0\): at least 0"),
        (lambda: rl.continuous.truncated_quantiles(2, 2), "at least one left"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noisy_layers_take_the_place_of_random_actions():
    many = TimeStep(jnp.ones((500, 1)), jnp.ones(500, bool))
    algorithm = MAKE["dqn"](probes.matched(), noisy=True)
    agent = algorithm.init(jax.random.key(0))
    still = jax.tree_util.tree_map_with_path(lambda path, x: x * 0 if "std" in str(path[-1]) else x, agent.params)
    quiet = agent.replace(params=still)  # no noise left: and no randomness
    assert len(np.unique(algorithm.act(quiet, (), many, jax.random.key(1), False)[0])) == 1
