"""Distributions beside SciPy and frequencies of samples; spaces as arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

import rl
from rl.distributions import head

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)


def frequencies(distribution, shape, draws=20_000):
    samples = jax.vmap(distribution.sample)(jax.random.split(KEY, draws))
    assert samples.shape[1:] == shape
    return np.asarray(samples)


def test_a_choice():
    logits = RANDOM.normal(size=(2, 4)).astype(np.float32)
    d = head(spaces.Discrete(4)).make(jnp.asarray(logits), jnp.zeros(0), None)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    drawn = frequencies(d, (2,))
    for action in range(4):
        np.testing.assert_allclose((drawn == action).mean(0), p[:, action], atol=0.02)
        np.testing.assert_allclose(d.log_prob(jnp.full(2, action)), np.log(p[:, action]), atol=1e-5)
    np.testing.assert_allclose(d.entropy(), [stats.entropy(row) for row in p], atol=1e-5)
    np.testing.assert_array_equal(d.mode(), p.argmax(-1))


def test_a_masked_choice_is_a_choice_among_the_rest():
    logits, mask = RANDOM.normal(size=(1, 4)).astype(np.float32), np.array([[True, False, True, True]])
    d = head(spaces.Discrete(4)).make(jnp.asarray(logits), jnp.zeros(0), jnp.asarray(mask))
    rest = head(spaces.Discrete(3)).make(jnp.asarray(logits[:, [0, 2, 3]]), jnp.zeros(0), None)
    assert not np.any(frequencies(d, (1,)) == 1)
    np.testing.assert_allclose(d.entropy(), rest.entropy(), atol=1e-5)
    np.testing.assert_allclose(d.log_prob(jnp.array([2])), rest.log_prob(jnp.array([1])), atol=1e-5)
    gradient = jax.grad(lambda x: head(spaces.Discrete(4)).make(x, None, jnp.asarray(mask)).entropy().sum())(logits)
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] == 0


def test_several_choices_are_a_product():
    space = spaces.MultiDiscrete([3, 2])
    logits = jnp.asarray(RANDOM.normal(size=(5, 5)), jnp.float32)
    d = head(space).make(logits, jnp.zeros(0), None)
    one, two = (head(spaces.Discrete(n)).make(part, None, None) for n, part in ((3, logits[:, :3]), (2, logits[:, 3:])))
    action = d.sample(KEY)
    assert all(space.contains(np.asarray(a, space.dtype)) for a in action)
    np.testing.assert_allclose(d.log_prob(action), one.log_prob(action[:, 0]) + two.log_prob(action[:, 1]), atol=1e-5)
    np.testing.assert_allclose(d.entropy(), one.entropy() + two.entropy(), atol=1e-5)
    np.testing.assert_array_equal(d.mode(), np.stack([one.mode(), two.mode()], -1))


def test_bits():
    logits = RANDOM.normal(size=(2, 3)).astype(np.float32)
    d = head(spaces.MultiBinary(3)).make(jnp.asarray(logits), jnp.zeros(0), None)
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(frequencies(d, (2, 3)).mean(0), p, atol=0.02)
    bits = np.array([[1, 0, 1], [0, 0, 1]], np.int8)
    np.testing.assert_allclose(d.log_prob(jnp.asarray(bits)), stats.bernoulli.logpmf(bits, p).sum(-1), atol=1e-5)
    np.testing.assert_allclose(d.entropy(), stats.bernoulli.entropy(p).sum(-1), atol=1e-5)


def test_numbers():
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    found = head(space)
    assert (found.outputs, found.stds) == (6, 6)
    mean, log_std = RANDOM.normal(size=(4, 6)).astype(np.float32), RANDOM.normal(size=6).astype(np.float32) / 3
    d = found.make(jnp.asarray(mean), jnp.asarray(log_std), None)
    drawn = frequencies(d, (4, 2, 3))
    np.testing.assert_allclose(drawn.mean(0).reshape(4, 6), mean, atol=0.06)
    np.testing.assert_allclose(drawn.std(0).reshape(4, 6), np.broadcast_to(np.exp(log_std), (4, 6)), rtol=0.03)
    action = RANDOM.normal(size=(4, 2, 3)).astype(np.float32)
    expected = stats.norm.logpdf(action.reshape(4, 6), mean, np.exp(log_std)).sum(-1)
    np.testing.assert_allclose(d.log_prob(jnp.asarray(action)), expected, rtol=1e-4)
    np.testing.assert_allclose(d.entropy(), np.full(4, stats.norm.entropy(0, np.exp(log_std)).sum()), rtol=1e-5)
    # What is outside is probable, and not what the environment is given.
    legal = rl.spaces.legal(space)(jnp.asarray(drawn[:100]))
    assert all(space.contains(np.asarray(a, np.float32)) for a in legal.reshape(-1, 2, 3))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Box(0, 9, (2,), np.int32), spaces.Dict(a=spaces.Discrete(2))])
def test_an_action_space_without_a_distribution(space):
    with pytest.raises(ValueError, match=r"action space .* has no distribution; there is one for Discrete"):
        rl.ppo(spaces.Box(-1, 1, (2,)), space)


SPACES = {
    "vector": (spaces.Box(-1, 1, (3,), np.float32), 3),
    "matrix": (spaces.Box(-1, 1, (3, 2), np.float64), 6),
    "choice": (spaces.Discrete(5, start=2), 5),
    "choices": (spaces.MultiDiscrete([3, 4]), 7),
    "bits": (spaces.MultiBinary(4), 4),
    "dict": (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,), np.float32)}), 5),
    "tuple": (spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))), 5),
    "nested": (spaces.Dict({"x": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))}), 5),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_a_vector(name):
    space, features = SPACES[name]
    space.seed(0)
    samples = [space.sample() for _ in range(6)]
    batch = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *samples)
    encoded = rl.spaces.encode(space)(batch)
    assert encoded.shape == (6, features)
    if name == "choice":
        np.testing.assert_array_equal(encoded.argmax(-1) + 2, batch)
    if name == "dict":
        np.testing.assert_array_equal(encoded[:, :3].argmax(-1), batch["a"])
        np.testing.assert_array_equal(encoded[:, 3:], batch["b"])
    blank = rl.spaces.zeros(space, 2)
    assert jax.tree.structure(blank) == jax.tree.structure(batch)
    assert rl.spaces.encode(space)(blank).shape == (2, features)
    assert rl.networks.torso(space).init(KEY, blank)


def test_pictures_go_through_convolutions():
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    net = rl.networks.torso(space)
    assert isinstance(net, rl.networks.NatureCNN)
    shapes = jax.eval_shape(net.init, KEY, rl.spaces.zeros(space, 1))["params"]
    assert shapes["Dense_0"]["kernel"].shape == (7 * 7 * 64, 512)  # as published for 84 x 84
    stacked = rl.networks.torso(spaces.Box(0, 255, (4, 84, 84), np.uint8))
    params = net.init(KEY, rl.spaces.zeros(space, 1))
    picture = RANDOM.integers(0, 256, (2, 84, 84, 4)).astype(np.uint8)
    np.testing.assert_allclose(
        net.apply(params, picture), stacked.apply(params, np.moveaxis(picture, -1, 1)), rtol=1e-4, atol=1e-5
    )
    assert isinstance(rl.networks.torso(spaces.Box(0, 255, (7, 7, 3), np.uint8)), rl.networks.MLP)
    with pytest.raises(ValueError, match="cannot be observed here; use Box"):
        rl.spaces.encode(spaces.Text(4))


def test_running_moments_are_those_of_all_that_was_seen():
    values = RANDOM.normal(3, 2, size=(5, 7, 3)).astype(np.float32)
    weights = RANDOM.random((5, 7)) < 0.7
    moments = rl.normalize.initial(jnp.zeros(3))
    np.testing.assert_array_equal(rl.normalize.normalized(moments, values[0]), values[0])
    for start in (0, 2, 4):
        part = slice(start, start + 2)
        moments = rl.normalize.updated(moments, jnp.asarray(values[part]), jnp.asarray(weights[part]))
    seen = values[weights]
    assert moments.weight == len(seen)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, seen.var(0), rtol=1e-3)
    np.testing.assert_allclose(rl.normalize.normalized(moments, seen).std(0), 1, atol=1e-2)


def test_rewards_are_scaled_by_the_deviation_of_their_discounted_returns():
    reward = RANDOM.normal(2, 3, size=(12, 4)).astype(np.float32)
    ends, valid = RANDOM.random((12, 4)) < 0.2, RANDOM.random((12, 4)) < 0.9
    ends &= valid
    given = []

    def update(agent, experience, key):
        given.append(experience.reward)
        return agent, {}

    inner = rl.Algorithm(lambda key: (), lambda num_envs: (), lambda *arguments: arguments[:3], update, 6)
    algorithm = rl.scaled_rewards(inner, num_envs=4, discount=0.9)
    agent = algorithm.init(KEY)
    returned, seen = np.zeros(4), []
    for start in (0, 6):
        part = slice(start, start + 6)
        blank = rl.Experience(*[None] * 10)
        experience = blank._replace(
            reward=jnp.asarray(reward[part]), terminated=jnp.asarray(ends[part]),
            truncated=jnp.zeros((6, 4), bool), valid=jnp.asarray(valid[part]),
        )  # fmt: skip
        agent, _ = algorithm.update(agent, experience, KEY)
        for t in range(start, start + 6):
            for env in np.flatnonzero(valid[t]):
                returned[env] = 0.9 * returned[env] + reward[t, env]
                seen.append(returned[env])
                returned[env] *= not ends[t, env]
        np.testing.assert_allclose(given[-1], np.clip(reward[part] / np.std(seen), -10, 10), rtol=1e-4)
    np.testing.assert_allclose(agent.returned, returned, rtol=1e-5)
    with pytest.raises(ValueError, match=r"scaled_rewards\(num_envs=3\) was given experience of 4 environments"):
        rl.scaled_rewards(inner, num_envs=3).update(agent, experience, KEY)
