"""Returns beside rlax's, which has no truncations: there its λ is zero, so that the value reached stands alone."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from test_returns import consistent, data, fractions, pick, rates, seeds

from rl import returns


def theirs(function, *arrays, **options):
    """A function of one sequence, of a batch of them."""
    return jax.vmap(lambda *one: function(*one, **options), 1, 1)(*arrays)


def continuing(d, discount):
    """Their discounts, zero where nothing follows; and whether the trace goes on."""
    return discount * ~d["terminated"], 1.0 * ~(d["terminated"] | d["truncated"])


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rate=rates, discount=fractions, lambda_=fractions)
def test_advantages(rlax, seed, rate, discount, lambda_):
    d = data(seed, rate)
    d["truncated"][:] = False
    d = consistent(d)
    names = "reward", "value", "next_value", "terminated", "truncated"
    values = np.concatenate([d["value"], d["next_value"][-1:]])
    # Beyond what terminates their value is that of another episode; its discount is zero.
    wanted = jax.vmap(rlax("multistep").truncated_generalized_advantage_estimation, (1, 1, None, 1), 1)(
        d["reward"], continuing(d, discount)[0], lambda_, values
    )
    found = returns.generalized_advantages(*pick(d, *names), discount, lambda_)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rate=rates, discount=fractions, lambda_=fractions)
def test_lambda_returns(rlax, seed, rate, discount, lambda_):
    d = data(seed, rate)
    discounts, goes_on = continuing(d, discount)
    arrays = d["reward"], discounts, d["next_value"], lambda_ * goes_on
    wanted = theirs(rlax("multistep").lambda_returns, *arrays)
    names = "reward", "next_value", "terminated", "truncated"
    np.testing.assert_allclose(returns.lambda_returns(*pick(d, *names), discount, lambda_), wanted, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 15])
@settings(max_examples=10, deadline=None)
@given(seed=seeds, rate=rates, discount=fractions)
def test_n_step_returns(rlax, n, seed, rate, discount):
    d = data(seed, rate)
    discounts, goes_on = continuing(d, discount)

    def one(reward, discount, value, lambda_):
        return rlax("multistep").n_step_bootstrapped_returns(reward, discount, value, n, lambda_)

    wanted = theirs(one, d["reward"], discounts, d["next_value"], goes_on)
    names = "reward", "next_value", "terminated", "truncated"
    np.testing.assert_allclose(returns.n_step_returns(*pick(d, *names), discount, n), wanted, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rate=rates, discount=fractions, lambda_=fractions)
def test_vtrace(rlax, seed, rate, discount, lambda_):
    d = consistent(data(seed, rate))
    discounts, goes_on = continuing(d, discount)
    arrays = d["value"], d["next_value"], d["reward"], discounts, np.exp(d["log_ratio"]), lambda_ * goes_on
    wanted = theirs(rlax("vtrace").vtrace, *arrays, clip_rho_threshold=1.2)
    names = "log_ratio", "reward", "value", "next_value", "terminated", "truncated"
    found = returns.vtrace(*pick(d, *names), discount, lambda_, 1.2, 1.0)
    np.testing.assert_allclose(found.targets, d["value"] + np.asarray(wanted), atol=1e-4)
