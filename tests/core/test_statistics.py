"""Intervals against closed forms, SciPy and simulated coverage."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jdl import statistics as s

properties = settings(max_examples=10, deadline=None, derandomize=True)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def covered(interval, truth):
    return np.mean((interval.low <= truth) & (truth <= interval.high))


def plain_percentiles(values, level, seed):
    """What SciPy's own percentile bootstrap gives, without the expansion."""
    result = stats.bootstrap(
        (values,), np.mean, axis=0, confidence_level=level, n_resamples=2000, method="percentile", rng=seed
    )
    return s.Interval(values.mean(0), result.confidence_interval.low, result.confidence_interval.high)


# The mean and the difference of means.


def test_expansion_covers_what_the_plain_percentile_does_not():
    values = normal(0, 8, 3000)
    expanded, plain = covered(s.mean_interval(values), 0), covered(plain_percentiles(values, 0.95, 0), 0)
    assert 0.93 < expanded < 0.97
    assert plain < 0.92 < expanded


def test_expanded_level_is_hesterbergs():
    """Where runs are many enough to be smooth, the ends are the percentiles of Hesterberg's formula."""
    values, n = normal(1, 20), 20
    alpha = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    expected = plain_percentiles(values, 1 - 2 * alpha, 1)
    interval = s.mean_interval(values)
    np.testing.assert_allclose(interval, expected, atol=0.03)
    # For a mean of normal data that is the t interval, but for the bootstrap's lighter tails.
    t = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(interval[1:], t, atol=0.07)
    assert interval.high - interval.low > 1.05 * np.ptp(plain_percentiles(values, 0.95, 1)[1:])


def test_difference_of_means_covers():
    """Welch's case: different numbers of runs and different spreads."""
    x, y = normal(2, 8, 3000) + 1, 3 * normal(3, 6, 3000)
    interval = s.difference_of_means(x, y)
    np.testing.assert_allclose(interval.mean, x.mean(0) - y.mean(0))
    assert 0.93 < covered(interval, 1) < 0.97


def test_difference_from_a_constant_is_the_interval_of_the_mean():
    x = normal(4, 9, 5)
    one, two = s.mean_interval(x), s.difference_of_means(x, np.full((4, 5), 2.0))
    np.testing.assert_allclose(np.stack(two), np.stack(one) - 2, atol=1e-12)


def test_difference_of_means_turns_with_its_sides():
    x, y = normal(5, 30), normal(6, 20) + 0.5
    forth, back = s.difference_of_means(x, y), s.difference_of_means(y, x)
    np.testing.assert_allclose(forth, (-back.mean, -back.high, -back.low), atol=0.03)
    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    np.testing.assert_allclose(forth[1:], welch, atol=0.05)


@properties
@given(st.integers(2, 6), st.floats(-1e6, 1e6), st.floats(0.1, 100), st.integers(0, 2**20))
def test_intervals_move_and_scale_with_the_values(n, offset, scale, seed):
    values = normal(seed, n, 3)
    base, moved = s.mean_interval(values), s.mean_interval(offset + scale * values)
    for a, b in zip(base, moved, strict=True):
        np.testing.assert_allclose(offset + scale * a, b, rtol=1e-12, atol=1e-8)
    assert (base.low <= base.mean).all()
    assert (base.mean <= base.high).all()
    assert (base.low >= values.min(0) - 1e-12).all()


def test_axis_is_the_axis_of_the_runs():
    values = normal(7, 6, 4, 3)
    expected = s.mean_interval(values)
    for axis in (1, -1):
        result = s.mean_interval(np.moveaxis(values, 0, axis), axis=axis)
        np.testing.assert_array_equal(np.stack(result), np.stack(expected))
        assert result.mean.shape == (4, 3)
    alone = s.mean_interval(values[:, 1, 2])
    np.testing.assert_allclose(alone, [bound[1, 2] for bound in expected], rtol=1e-12)
    assert f"{alone.mean:.3f} [{alone.low:.3f}, {alone.high:.3f}]"  # floats, where no axis is left


def test_runs_without_spread_have_an_interval_without_width():
    for interval in (
        s.mean_interval(np.full(5, 0.1)),
        s.difference_of_means(np.full(3, 0.3), np.full(2, 0.2)),
    ):
        np.testing.assert_allclose(interval[1:], interval.mean, rtol=1e-12)


def test_jax_arrays_and_integers_are_values_too():
    import jax.numpy as jnp

    integers = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(s.mean_interval(jnp.asarray(integers)), s.mean_interval(integers * 1.0))


def test_curves_take_well_under_a_second():
    values = normal(8, 8, 500)
    start = time.process_time()
    s.mean_interval(values)
    assert time.process_time() - start < 1


# Aggregates over runs and tasks.


@properties
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**20))
def test_interquartile_mean_is_scipys_trimmed_mean(runs, tasks, seed):
    scores = normal(seed, runs, tasks)
    np.testing.assert_allclose(s.interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=None))


def test_iqm_interval_is_a_stratified_bootstrap():
    scores = normal(9, 5, 4) + 10 * np.arange(4)  # tasks far apart: an unstratified one is far wider
    interval = s.iqm_interval(scores)
    rng, draws = np.random.default_rng(1), []
    for _ in range(4000):
        resampled = np.stack([rng.choice(scores[:, task], 5) for task in range(4)], 1)
        draws.append(stats.trim_mean(resampled, 0.25, axis=None))
    np.testing.assert_allclose(interval[1:], np.quantile(draws, [0.025, 0.975]), atol=0.03)
    assert interval.mean == s.interquartile_mean(scores)


def test_iqm_interval_covers():
    rng = np.random.default_rng(10)
    truth = 0.0  # normal tasks of one mean: the middle half's mean is the mean
    hits = [covered(s.iqm_interval(rng.normal(size=(10, 20)), resamples=500, seed=i), truth) for i in range(300)]
    assert 0.9 < np.mean(hits) < 0.985


@properties
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 4), st.integers(0, 2**20))
def test_probability_of_improvement_is_mann_whitneys(n_x, n_y, tasks, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, (n_x, tasks)), rng.integers(0, 5, (n_y, tasks))  # with ties
    expected = stats.mannwhitneyu(x, y, method="asymptotic").statistic / (n_x * n_y)
    result = s.probability_of_improvement(x, y, resamples=200)
    np.testing.assert_allclose(result.mean, expected.mean())
    assert 0 <= result.low <= result.high <= 1
    np.testing.assert_allclose(s.probability_of_improvement(y, x, resamples=200).mean, 1 - expected.mean())


def test_probability_of_improvement_interval_is_a_stratified_bootstrap():
    x, y = normal(11, 6, 3) + 0.5, normal(12, 5, 3)
    rng, draws = np.random.default_rng(2), []
    for _ in range(4000):
        a = np.stack([rng.choice(x[:, task], 6) for task in range(3)], 1)
        b = np.stack([rng.choice(y[:, task], 5) for task in range(3)], 1)
        draws.append((a[:, None] > b[None]).mean() + (a[:, None] == b[None]).mean() / 2)
    interval = s.probability_of_improvement(x, y)
    np.testing.assert_allclose(interval[1:], np.quantile(draws, [0.025, 0.975]), atol=0.015)


def test_performance_profile_counts_scores_strictly_above():
    scores = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 2.0]])
    profile = s.performance_profile(scores, np.array([-1.0, 0.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(profile.mean, np.array([6, 5, 4, 1, 0]) / 6)
    assert (profile.low <= profile.mean).all()
    assert (profile.mean <= profile.high).all()
    np.testing.assert_array_equal([profile.low[0], profile.high[0], profile.high[-1]], [1, 1, 0])
    # One threshold, one task: the mean of a Bernoulli variable, whose bootstrap is a binomial.
    coin = np.array([0.0] * 12 + [1.0] * 8)[:, None]
    interval = s.performance_profile(coin, np.array([0.5]))
    binomial = stats.binom(20, 0.4).ppf([0.025, 0.975]) / 20
    np.testing.assert_allclose([interval.low[0], interval.high[0]], binomial)


# Laws of all.

EVERY = {
    "mean_interval": lambda x, **options: s.mean_interval(x, **options),
    "difference_of_means": lambda x, **options: s.difference_of_means(x, x[:2] ** 2, **options),
    "iqm_interval": lambda x, **options: s.iqm_interval(x, **options),
    "probability_of_improvement": lambda x, **o: s.probability_of_improvement(x, x[:2] ** 2, **o),
    "performance_profile": lambda x, **options: s.performance_profile(x, np.array([0.1, 0.3]), **options),
}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY.keys())


@every
def test_same_seed_same_interval(function):
    scores = normal(13, 7, 3)
    first, again, other = (function(scores, resamples=300, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    np.testing.assert_array_equal(first.mean, other.mean)
    assert (np.stack(first) != np.stack(other)).any()


@every
def test_a_lower_level_is_a_narrower_interval(function):
    scores = normal(14, 7, 3)
    wide, narrow = function(scores), function(scores, level=0.5)
    assert (narrow.high - narrow.low < wide.high - wide.low).all()


@every
def test_one_run_has_no_interval(function):
    result = function(normal(15, 1, 3))
    assert np.isfinite(result.mean).all()
    assert np.isnan(result.low).all()
    assert np.isnan(result.high).all()


@every
def test_bad_input_is_named(function):
    scores = normal(16, 6, 3)
    with pytest.raises(ValueError, match="level is 95"):
        function(scores, level=95.0)
    with pytest.raises(ValueError, match="resamples is 10;"):
        function(scores, resamples=10)
    with pytest.raises(ValueError, match=r"no runs|make it"):
        function(scores[:0])
    scores[[3, 5], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"in runs \[3, 5\] \(first: nan in run 3, at \[1\]\); drop those"):
        function(scores)


def test_shapes_that_disagree_are_named():
    # __wrapped__: beneath jaxtyping's check, which is on in tests only and would speak first.
    with pytest.raises(ValueError, match="x has 3 tasks and y has 2"):
        s.probability_of_improvement.__wrapped__(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"x has \[3\] a run and y has \[2\]"):
        s.difference_of_means(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="has no axis 2"):
        s.mean_interval(np.zeros((4, 3)), axis=2)
    with pytest.raises(ValueError, match=r"scores\[:, None\]"):
        s.interquartile_mean.__wrapped__(np.zeros(4))
