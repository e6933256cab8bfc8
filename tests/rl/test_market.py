"""The planted market: the oracle's growth beside a search and beside many draws, and what is seen beside what comes."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl

KEY = jax.random.key(0)


def play(env, share, count=4000, steps=50):
    """Log growths of episodes that hold a share in the signal's direction, with all that was seen."""

    def episode(key):
        def one(now, key):
            state, seen = now
            state, outcome = env.step(state, share * seen[-1:], key)
            return (state, outcome.observation), (seen, outcome)

        keys = jax.random.split(key, steps + 1)
        state, first = env.reset(keys[0])
        return jax.lax.scan(one, (state, first.observation), keys[1:])[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(episode))(jax.random.split(KEY, count)))


@pytest.mark.parametrize("reliability", [0.5, 0.65, 0.7, 0.9, 1.0])
def test_no_share_grows_faster_than_the_oracles(reliability):
    share, growth = rl.envs.best_growth(reliability)
    shares = np.linspace(-1, 1, 20_001)
    growths = reliability * np.log(1 + 0.5 * shares) + (1 - reliability) * np.log(1 - 0.5 * shares)
    assert growth == pytest.approx(growths.max(), abs=1e-9)
    assert share == pytest.approx(shares[growths.argmax()], abs=1e-4)
    if reliability < 0.75:  # not at the bound: Kelly's rate, what the signal says of the outcome in nats
        entropy = -sum(p * np.log(p) for p in (reliability, 1 - reliability))
        assert growth == pytest.approx(np.log(2) - entropy)


def test_the_oracles_growth_is_that_of_many_draws():
    for reliability in (0.65, 1.0):
        share, growth = rl.envs.best_growth(reliability)
        seen, outcome = play(rl.envs.market(reliability), share)
        totals = outcome.reward.sum(1)
        assert abs(totals.mean() - 50 * growth) < 5 * totals.std() / np.sqrt(len(totals)) + 1e-4
        moved = outcome.observation[..., 3]
        assert (np.sign(moved) == seen[..., 4]).mean() == pytest.approx(reliability, abs=0.01)
        np.testing.assert_array_equal(outcome.observation[..., :3], seen[..., 1:4])
        np.testing.assert_allclose(outcome.reward, np.log1p(share * seen[..., 4] * moved), atol=1e-6)
        for past in range(4):  # the past says nothing of what comes
            assert abs(np.corrcoef(seen[..., past].ravel(), moved.ravel())[0, 1]) < 0.012
        assert outcome.truncated[:, -1].all()
        assert not outcome.truncated[:, :-1].any()


def test_gymnasium_and_compiled_agree():
    for name in ("Market-v0", "MarketLeaked-v0"):
        env, world = rl.envs.make(name), gymnasium.make(name)
        assert world.observation_space == env.observation_space
        observation, _ = world.reset(seed=3)
        key = world.unwrapped._key
        state, outcome = env.reset(key)
        for t in range(1, 51):
            np.testing.assert_array_equal(observation, outcome.observation)
            observation, reward, terminated, truncated, _ = world.step(np.float32([0.3]))
            state, outcome = env.step(state, jnp.float32([0.3]), jax.random.fold_in(key, t))
            assert reward == pytest.approx(float(outcome.reward), abs=1e-6)
            assert (terminated, truncated) == (False, t == 50) == (bool(outcome.terminated), bool(outcome.truncated))


def test_a_wrong_reliability_is_refused():
    for make in (rl.envs.market, rl.envs.best_growth):
        with pytest.raises(ValueError, match=r"reliability=0\.4: from 0\.5"):
            make(0.4)
