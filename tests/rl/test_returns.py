"""Returns beside a plain Python loop, with random terminations and truncations."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl import returns

TIME, BATCH = 12, 3


def data(seed, rate):
    random = np.random.default_rng(seed)
    shape = (TIME, BATCH)
    terminated = random.random(shape) < rate
    return {
        "reward": random.normal(size=shape),
        "value": random.normal(size=shape),
        "next_value": random.normal(size=shape),  # any values: at a boundary it is no neighbor's
        "terminated": terminated,
        "truncated": (random.random(shape) < rate) & ~terminated,
        "log_ratio": random.normal(size=shape),
    }


def consistent(d):
    """Within an episode the value reached is the next step's own."""
    boundary = d["terminated"] | d["truncated"]
    d["next_value"][:-1] = np.where(boundary[:-1], d["next_value"][:-1], d["value"][1:])
    return d


seeds, rates = st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.4])
fractions = st.sampled_from([0.0, 0.5, 0.9, 1.0])
pick = lambda d, *names: [jnp.asarray(d[name]) for name in names]  # noqa: E731


@settings(max_examples=40, deadline=None)
@given(seeds, rates, fractions, fractions)
def test_generalized_advantages(seed, rate, discount, lambda_):
    d = data(seed, rate)
    found = returns.generalized_advantages(
        *pick(d, "reward", "value", "next_value", "terminated", "truncated"), discount, lambda_
    )
    for b in range(BATCH):
        for t in range(TIME):
            total, weight = 0.0, 1.0
            for k in range(t, TIME):
                bootstrap = 0.0 if d["terminated"][k, b] else d["next_value"][k, b]
                total += weight * (d["reward"][k, b] + discount * bootstrap - d["value"][k, b])
                if d["terminated"][k, b] or d["truncated"][k, b]:
                    break
                weight *= discount * lambda_
            assert found[t, b] == pytest.approx(total, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, rates, fractions, st.integers(1, 15))
def test_n_step_returns(seed, rate, discount, n):
    d = data(seed, rate)
    found = returns.n_step_returns(*pick(d, "reward", "next_value", "terminated", "truncated"), discount, n)
    for b in range(BATCH):
        for t in range(TIME):
            total, k = 0.0, t
            while True:
                total += discount ** (k - t) * d["reward"][k, b]
                over = d["terminated"][k, b] or d["truncated"][k, b]
                if over or k + 1 == TIME or k + 1 - t == n:
                    break
                k += 1
            if not d["terminated"][k, b]:
                total += discount ** (k - t + 1) * d["next_value"][k, b]
            assert found[t, b] == pytest.approx(total, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seeds, rates, fractions, fractions)
def test_lambda_returns_are_advantages_and_values(seed, rate, discount, lambda_):
    d = consistent(data(seed, rate))
    arrays = pick(d, "reward", "next_value", "terminated", "truncated")
    advantages = returns.generalized_advantages(
        *pick(d, "reward", "value", "next_value", "terminated", "truncated"), discount, lambda_
    )
    np.testing.assert_allclose(returns.lambda_returns(*arrays, discount, lambda_), advantages + d["value"], atol=1e-4)
    whole = returns.n_step_returns(*arrays, discount, TIME)
    np.testing.assert_allclose(returns.lambda_returns(*arrays, discount, 1.0), whole, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, rates, fractions, fractions)
def test_vtrace(seed, rate, discount, lambda_):
    d = consistent(data(seed, rate))
    names = "log_ratio", "reward", "value", "next_value", "terminated", "truncated"
    found = returns.vtrace(*pick(d, *names), discount, lambda_, 1.2, 0.9)
    rho, c = np.minimum(1.2, np.exp(d["log_ratio"])), lambda_ * np.minimum(0.9, np.exp(d["log_ratio"]))
    boundary = d["terminated"] | d["truncated"]
    bootstrap = np.where(d["terminated"], 0.0, d["next_value"])
    errors = rho * (d["reward"] + discount * bootstrap - d["value"])
    targets = np.zeros((TIME, BATCH))
    for b in range(BATCH):
        for t in range(TIME):
            weight = 1.0
            targets[t, b] = d["value"][t, b]
            for k in range(t, TIME):
                targets[t, b] += weight * errors[k, b]
                if boundary[k, b]:
                    break
                weight *= discount * c[k, b]
        for t in range(TIME):
            after = bootstrap[t, b] if boundary[t, b] or t + 1 == TIME else targets[t + 1, b]
            advantage = rho[t, b] * (d["reward"][t, b] + discount * after - d["value"][t, b])
            assert found.advantages[t, b] == pytest.approx(advantage, abs=1e-4)
    np.testing.assert_allclose(found.targets, targets, atol=1e-4)


def test_on_policy_vtrace_is_a_lambda_return():
    d = consistent(data(0, 0.2))
    arrays = pick(d, "reward", "value", "next_value", "terminated", "truncated")
    found = returns.vtrace(jnp.zeros((TIME, BATCH)), *arrays, 0.9)
    plain = returns.lambda_returns(*pick(d, "reward", "next_value", "terminated", "truncated"), 0.9, 1.0)
    np.testing.assert_allclose(found.targets, plain, atol=1e-5)


def test_steps_are_at_least_one():
    d = data(0, 0.1)
    with pytest.raises(ValueError, match="n is at least 1"):
        returns.n_step_returns(*pick(d, "reward", "next_value", "terminated", "truncated"), 0.9, 0)
