"""Portfolios: each day beside a plain loop, look-ahead, intervals beside SciPy and draws, published baselines."""

import importlib.util

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf

import rl
from rl import backtest
from rl.envs.portfolio import portfolio
from rl.envs.prices import SCORED_FROM

KEY = jax.random.key(0)
with_prices = pytest.mark.skipif(importlib.util.find_spec("skfolio") is None, reason="skfolio is not installed")
RNG = np.random.default_rng(3)
RETURNS = RNG.normal(0.001, 0.02, (40, 3))


def episode(env, actions):
    """Observations (before each action), and rewards, of one episode."""
    step = jax.jit(env.step)
    state, outcome = env.reset(KEY)
    seen, rewards, truncated = [outcome.observation], [], []
    for action in actions:
        state, outcome = step(state, jnp.asarray(action, jnp.float32), KEY)
        seen.append(outcome.observation)
        rewards.append(float(outcome.reward))
        truncated.append(bool(outcome.truncated))
    return jax.tree.map(np.asarray, seen), np.array(rewards), truncated


def test_an_episode_is_that_of_a_plain_loop():
    env = portfolio(RETURNS, cost=0.002, past=4, max_steps=36)
    actions = RNG.uniform(-1.5, 1.5, (36, 3))
    seen, rewards, truncated = episode(env, actions)
    held = [0.0, 0.0, 0.0]
    for t, action in enumerate(actions):
        day = 4 + t
        np.testing.assert_allclose(seen[t]["returns"], RETURNS[day - 4 : day], rtol=1e-5)  # none of today
        np.testing.assert_allclose(seen[t]["weights"], held, atol=1e-6)
        scores = [np.exp(3 * min(max(a, -1), 1)) for a in action]
        weights = [score / sum(scores) for score in scores]
        paid = 0.002 * sum(abs(w - h) for w, h in zip(weights, held, strict=True))
        wealth = [w * (1 + r) for w, r in zip(weights, RETURNS[day], strict=True)]
        held = [part / sum(wealth) for part in wealth]
        excess = np.log((1 - paid) * sum(wealth)) - np.log(1 + RETURNS[day].mean())
        assert rewards[t] == pytest.approx(excess, abs=1e-6)
    assert truncated == [False] * 35 + [True]
    assert env.observation_space.contains(seen[3])


def test_the_backtest_is_the_environments():
    env = portfolio(RETURNS, past=4, max_steps=36)
    actions = iter(RNG.uniform(-1, 1, (36, 3)))
    taken = []

    def choose(past, held):
        assert len(past) == 4 + len(taken)
        assert held.sum() == pytest.approx(1.0 if taken else 0.0)
        taken.append(next(actions))
        return np.asarray(rl.envs.weights_of(jnp.asarray(taken[-1])), float)

    track = backtest.backtest(RETURNS, 4, choose)
    _, rewards, _ = episode(env, taken)
    np.testing.assert_allclose(np.log1p(track.returns) - np.log1p(RETURNS[4:].mean(1)), rewards, atol=1e-6)


def test_episodes_begin_on_every_day_that_leaves_room():
    env = portfolio(RETURNS, past=4, max_steps=33)
    states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 200))
    assert set(np.asarray(states.state.day)) == {4, 5, 6, 7}


def test_what_is_leaked_is_the_return_that_moves_the_wealth():
    seen, rewards, _ = episode(portfolio(RETURNS, cost=0.0, past=4, max_steps=36, leaked=True), np.zeros((36, 3)))
    np.testing.assert_allclose([one["tomorrow"] for one in seen[:36]], RETURNS[4:], rtol=1e-5)
    np.testing.assert_allclose(rewards, 0, atol=1e-6)  # equal weights, no costs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"returns": RETURNS[:, :1]}, r"shape \(40, 1\)\): \[days, shares\], with two"),
        ({"returns": np.where(RETURNS[7, 1] == RETURNS, np.nan, RETURNS)}, r"nan on day 7 of share 1 \(1 in all\)"),
        ({"returns": np.where(RETURNS[7, 1] == RETURNS, -1.0, RETURNS)}, r"-1\.0 on day 7 .* above -1"),
        ({"cost": 0.5}, r"cost=0\.5.* 10 bp are 0\.001"),
        ({"past": 8, "max_steps": 33}, r"past=8, max_steps=33.*at most the 40 days"),
        ({"past": 0}, r"past=0"),
    ],
)
def test_wrong_inputs_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        portfolio(**{"returns": RETURNS, "max_steps": 20, **changes})


def test_a_backtest_refuses_what_are_no_weights():
    for weights, message in (((0.7, 0.7, -0.4), r"-0\.4 and more"), ((0.5, 0.5, 0.5), r"sum to 1\.5")):
        with pytest.raises(ValueError, match=message):
            backtest.backtest(RETURNS, 4, lambda past, held, weights=weights: np.array(weights))
    with pytest.raises(ValueError, match=r"first=40"):
        backtest.backtest(RETURNS, 40, backtest.equal_weights)


def test_minimum_variance_is_that_of_a_general_solver():
    mixed = RNG.normal(0, 0.01, (300, 6)) @ RNG.normal(0, 1, (6, 6))
    weights = backtest.minimum_variance(window=200)(mixed, np.zeros(6))
    covariance = LedoitWolf().fit(mixed[-200:]).covariance_
    scale = np.trace(covariance)
    found = minimize(
        lambda w: w @ covariance @ w / scale, np.full(6, 1 / 6), bounds=[(0, 1)] * 6, tol=1e-14,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert 0 in weights  # so that a bound counts
    np.testing.assert_allclose(weights, found.x, atol=1e-4)
    held = np.full(6, 1 / 6)
    assert backtest.minimum_variance(every=7)(mixed, held) is held
    assert backtest.minimum_variance(every=10)(mixed, held) is not held


def test_figures_of_a_track_by_hand():
    returns = np.array([0.1, -0.5, 0.2, 0.5])
    assert backtest.drawdown(returns) == pytest.approx(-0.5)
    assert backtest.drawdown(np.array([-0.2, 0.1])) == pytest.approx(-0.2)  # the first wealth is the highest
    assert backtest.yearly_return(np.full(252, 2 ** (1 / 252) - 1)) == pytest.approx(1)
    assert backtest.turnover(np.array([0.5, 0.0])) == pytest.approx(63)
    assert backtest.sharpe(returns)[0] == pytest.approx(0.075 / np.sqrt(0.55 / 3 - 4 * 0.075**2 / 3) * 252**0.5)


def test_the_standard_error_of_a_sharpe_ratio_is_its_spread():
    drawn = RNG.normal(0.06, 1, (4000, 500))
    ratios, errors = zip(*map(backtest.sharpe, drawn), strict=True)
    assert np.std(ratios) == pytest.approx(np.mean(errors), rel=0.04)


def test_block_bootstrap_is_a_plain_one_and_knows_pairs_and_clusters():
    x, y = RNG.normal(0.05, 1, (2, 30))
    found = backtest.sharpe_difference(x, y, block=7, resamples=500, seed=5)
    starts = np.random.default_rng(5).integers(0, 30, (500, 5))
    differences = []
    for row in starts:
        days = np.concatenate([(start + np.arange(7)) % 30 for start in row])[:30]
        differences.append(backtest.sharpe(x[days])[0] - backtest.sharpe(y[days])[0])
    np.testing.assert_allclose([found.low, found.high], np.quantile(differences, (0.025, 0.975)), rtol=1e-9)
    assert found.mean == pytest.approx(backtest.sharpe(x)[0] - backtest.sharpe(y)[0])
    assert backtest.sharpe_difference(x, x)[1:] == (0, 0)
    days = RNG.normal(0, 1, (100, 2)).repeat(10, 0)  # ten days alike: intervals of single days are too narrow
    narrow, wide = (backtest.sharpe_difference(*days.T, block=block) for block in (1, 40))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    with pytest.raises(ValueError, match=r"30 and 29 days"):
        backtest.sharpe_difference(x, y[1:])


@with_prices
def test_published_baselines():
    """Those of the years 2016 to 2022 with 10 basis points; minimum variance was published without its settings."""
    quotes, index = rl.envs.share_returns(), rl.envs.index_returns()
    assert len(quotes.names) == 20
    np.testing.assert_array_equal(quotes.dates, index.dates)
    first = int(np.searchsorted(quotes.dates, SCORED_FROM))
    assert str(quotes.dates[first]) == "2016-01-04"
    tracks = {
        rule: backtest.backtest(quotes.returns, first, rule) for rule in (backtest.equal_weights, backtest.buy_and_hold)
    }
    equal, held = (one.returns for one in tracks.values())
    assert round(backtest.yearly_return(equal), 3) == 0.192
    assert tuple(np.round(backtest.sharpe(equal), 2)) == (1.02, 0.38)
    assert round(backtest.sharpe(held)[0], 2) == 0.88
    least = backtest.backtest(quotes.returns, first, backtest.minimum_variance()).returns
    assert backtest.sharpe(least)[0] == pytest.approx(0.75, abs=0.015)
    price_index = index.returns[first:, 0]
    assert round(backtest.sharpe(price_index)[0], 2) == 0.55
    lost = [round(100 * backtest.drawdown(one)) for one in (equal, held, price_index, least)]
    assert lost == [-32, -38, -34, -29]


@with_prices
def test_the_environment_is_of_the_years_before_in_gymnasium_and_compiled():
    env, world = rl.envs.make("Prices-v0"), gymnasium.make("Prices-v0")
    assert world.observation_space == env.observation_space
    quotes = rl.envs.share_returns()
    before = quotes.returns[: np.searchsorted(quotes.dates, SCORED_FROM)]
    observation, _ = world.reset(seed=1)
    place = np.flatnonzero(np.isclose(before[:, 0], observation["returns"][0, 0], rtol=1e-5))
    day = next(d for d in place if np.allclose(before[d : d + 5], observation["returns"], rtol=1e-4)) + 5
    assert day + 252 <= len(before)
    _, reward, *_ = world.step(np.zeros(20, np.float32))
    assert reward == pytest.approx(np.log(1 - 0.001), abs=1e-6)  # the first purchase alone
    assert "tomorrow" in rl.envs.make("PricesLeaked-v0").observation_space.spaces


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rl.envs.share_returns.cache_clear()
    with pytest.raises(LookupError, match=r"skfolio: pip install 'jdl\[finance\]'"):
        rl.envs.make("Prices-v0")
