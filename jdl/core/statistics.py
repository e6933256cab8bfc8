"""Error bars: bootstrap intervals for a handful of runs, and rliable's aggregates over runs and tasks.

Curves and scores come as arrays with a runs axis; intervals come as `Interval(mean, low, high)` of arrays
without it. Everything is NumPy in float64 and the same for the same seed.

A percentile interval over few runs is too narrow, for two reasons: the spread of n values is a factor
√((n − 1)/n) below the unbiased one, and a normal quantile stands where Student's t belongs. The
intervals of a mean and of a difference of means undo both by widening the percentiles (Hesterberg 2015,
"What Teachers Should Know about the Bootstrap", the *expanded percentile interval*). A bootstrap mean
never leaves the range of the data, though, so no percentile is wide enough for the fewest runs: for
normal data the 95% interval covers 50, 74, 87, 92 and 93% with 2, 3, 4, 5 and 6 runs, and its 95% from 8.

The aggregates of Agarwal et al. 2021 ("Deep RL at the Edge of the Statistical Precipice") take plain
percentiles of a bootstrap stratified by task, as published.
"""

from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Real
from scipy.special import ndtr, stdtrit

AnyArray = Array | np.ndarray
Result = np.ndarray | np.float64
"""An array, or a NumPy float where no axis is left."""

_CHUNK = 4_000_000  # numbers resampled at a time: 32 MB


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval (NaN where one run gives none)."""

    mean: Result
    low: Result
    high: Result


def mean_interval(
    values: Real[AnyArray, "..."],
    level: float = 0.95,
    axis: int = 0,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean over runs with its expanded bootstrap percentile interval.

    `values` has its runs on `axis`; the other axes (the points of a curve) are treated alike, each on
    its own, under the same resamples. One run gives the mean, and NaN for both ends.

    Raises ValueError for NaN or infinite values, naming the runs. Source: Hesterberg 2015.

    >>> interval = mean_interval(np.array([[0.90], [0.92], [0.91], [0.95], [0.89]]))
    >>> print(*(f"{bound[0]:.3f}" for bound in interval))
    0.914 0.892 0.944
    """
    _check_resampling(level, resamples)
    runs = _runs_first("values", values, axis)
    mean, n = runs.mean(0), len(runs)
    if n == 1:
        return _without_interval(mean)
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2))
    deviations = _resampled_means(runs - mean, resamples, np.random.default_rng(seed))
    low, high = _quantiles(deviations, tail)
    return _interval(mean, mean + low, mean + high)


def difference_of_means(
    x: Real[AnyArray, "..."],
    y: Real[AnyArray, "..."],
    level: float = 0.95,
    axis: int = 0,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """`mean(x) − mean(y)` of independent runs, with its expanded bootstrap percentile interval.

    `x` and `y` have their runs on `axis`, may differ in how many, and agree in the other axes. Each sample
    is resampled by itself. The expansion is that of one sample with Welch's standard error and
    degrees of freedom: where one side does not vary, it is exactly `mean_interval` of the other. For
    runs paired by seed, `mean_interval(x - y)` is the narrower.

    Raises ValueError for NaN or infinite values, naming the runs, and for shapes that disagree.
    Sources: Hesterberg 2015; Welch 1947.
    """
    _check_resampling(level, resamples)
    x_runs, y_runs = _runs_first("x", x, axis), _runs_first("y", y, axis)
    if x_runs.shape[1:] != y_runs.shape[1:]:
        raise ValueError(
            f"x has {list(x_runs.shape[1:])} a run and y has {list(y_runs.shape[1:])}; "
            "cut both to the points that they share"
        )
    x_mean, y_mean, n_x, n_y = x_runs.mean(0), y_runs.mean(0), len(x_runs), len(y_runs)
    difference = x_mean - y_mean
    if min(n_x, n_y) == 1:
        return _without_interval(difference)
    x_variance, y_variance = x_runs.var(0, ddof=1) / n_x, y_runs.var(0, ddof=1) / n_y
    total = x_variance + y_variance
    constant = total == 0  # neither side varies: any quantile is the difference itself
    share = np.where(constant, 0.5, x_variance / np.where(constant, 1, total))
    freedom = 1 / (share**2 / (n_x - 1) + (1 - share) ** 2 / (n_y - 1))
    bootstrap_share = share * (n_x - 1) / n_x + (1 - share) * (n_y - 1) / n_y  # of the true variance
    tail = ndtr(stdtrit(freedom, (1 - level) / 2) / np.sqrt(bootstrap_share))
    generator = np.random.default_rng(seed)
    x_deviations = _resampled_means(x_runs - x_mean, resamples, generator)
    y_deviations = _resampled_means(y_runs - y_mean, resamples, generator)
    low, high = _quantiles(x_deviations - y_deviations, tail)
    return _interval(difference, difference + low, difference + high)


def interquartile_mean(scores: Real[AnyArray, "runs tasks"]) -> np.float64:
    """The mean of the middle half of all runs of all tasks together.

    A quarter of the scores, rounded down, is cut at each end, as by `scipy.stats.trim_mean`. Raises
    ValueError for NaN or infinite scores, naming the runs. Source: Agarwal et al. 2021, section 4.3.
    """
    return np.float64(_middle_mean(_score_table("scores", scores).reshape(1, -1))[0])


def iqm_interval(
    scores: Real[AnyArray, "runs tasks"], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The interquartile mean with its stratified bootstrap percentile interval.

    Each task's runs are resampled by themselves. The percentiles are plain, as published, and too narrow
    where there are few runs of few tasks. One run gives NaN for both ends. Raises as `interquartile_mean`.
    Source: Agarwal et al. 2021, sections 4.1 and 4.3.
    """
    _check_resampling(level, resamples)
    table = _score_table("scores", scores)
    point, (num_runs, _) = np.float64(_middle_mean(table.reshape(1, -1))[0]), table.shape
    if num_runs == 1:
        return _without_interval(point)
    generator, draws = np.random.default_rng(seed), []
    chunk = max(1, _CHUNK // table.size)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        index = generator.integers(0, num_runs, (count, *table.shape))
        draws.append(_middle_mean(np.take_along_axis(table[None], index, axis=1).reshape(count, -1)))
    return _interval(point, *_quantiles(np.concatenate(draws), (1 - level) / 2))


def probability_of_improvement(
    x: Real[AnyArray, "runs_x tasks"],
    y: Real[AnyArray, "runs_y tasks"],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How likely a run of `x` beats a run of `y` on a task drawn at random, with its interval.

    The mean over tasks of P(x > y) + P(x = y)/2, the Mann-Whitney statistic over the number of pairs; the
    interval is the percentiles of a bootstrap stratified by task and by algorithm. One run on either
    side gives NaN for both ends. Raises ValueError for NaN or infinite scores, naming the runs, and for
    different numbers of tasks. Source: Agarwal et al. 2021, sections 4.1 and 4.3.
    """
    _check_resampling(level, resamples)
    x_table, y_table = _score_table("x", x), _score_table("y", y)
    (n_x, num_tasks), (n_y, y_tasks) = x_table.shape, y_table.shape
    if num_tasks != y_tasks:
        raise ValueError(f"x has {num_tasks} tasks and y has {y_tasks}; keep the tasks that both were run on")
    wins = (np.sign(x_table[:, None] - y_table[None]) + 1) / 2  # [runs_x, runs_y, tasks]
    point = wins.mean()
    if min(n_x, n_y) == 1:
        return _without_interval(point)
    generator, draws = np.random.default_rng(seed), np.zeros(resamples)
    for task in range(num_tasks):
        x_share, y_share = _shares(n_x, resamples, generator), _shares(n_y, resamples, generator)
        draws += (x_share @ wins[..., task] * y_share).sum(-1) / num_tasks
    return _interval(point, *_quantiles(draws, (1 - level) / 2))


def performance_profile(
    scores: Real[AnyArray, "runs tasks"],
    thresholds: Real[AnyArray, " thresholds"],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The share of runs that score above each threshold, averaged over tasks, with pointwise intervals.

    Returns arrays `[thresholds]`; "above" is strict. The interval is the percentiles of a bootstrap
    stratified by task. One run gives NaN for both ends. Raises ValueError for NaN or infinite scores,
    naming the runs. Source: Agarwal et al. 2021, sections 4.1 and 4.2 (run-score distributions).
    """
    _check_resampling(level, resamples)
    table, thresholds = _score_table("scores", scores), np.asarray(thresholds, np.float64)
    above = (table[..., None] > thresholds).astype(np.float64)  # [runs, tasks, thresholds]
    profile, (num_runs, num_tasks) = above.mean((0, 1)), table.shape
    if num_runs == 1:
        return _without_interval(profile)
    generator, draws = np.random.default_rng(seed), np.zeros((resamples, len(thresholds)))
    for task in range(num_tasks):
        draws += _shares(num_runs, resamples, generator) @ above[:, task] / num_tasks
    return _interval(profile, *_quantiles(draws, (1 - level) / 2))


def _shares(n: int, resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "resamples n"]:
    """How large a share each of n runs has in each resample; a row times the runs is a bootstrap mean.

    A product with these resamples a whole curve in one matrix product, faster than `scipy.stats.bootstrap`.
    """
    index = generator.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(index.ravel(), minlength=resamples * n).reshape(resamples, n) / n


def _resampled_means(runs: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Bootstrap means `[resamples, ...]`. Pass deviations from the mean: an offset would cost digits."""
    means = _shares(len(runs), resamples, generator) @ runs.reshape(len(runs), -1)
    return means.reshape(resamples, *runs.shape[1:])


def _quantiles(draws: np.ndarray, tail: Any) -> tuple[Result, Result]:
    """The `tail` and `1 − tail` quantiles over axis 0, interpolated; each entry may have its own tail.

    One sort of everything: `np.quantile` takes one tail for all entries, and is slower.
    """
    draws = np.sort(draws, axis=0)
    position = np.broadcast_to(tail, draws.shape[1:])[None] * (len(draws) - 1)
    index = np.floor(position).astype(np.int64)
    fraction = position - index

    def between(near: np.ndarray, far: np.ndarray) -> Result:
        start, end = (np.take_along_axis(draws, i, axis=0)[0] for i in (near, far))
        return start + fraction[0] * (end - start)

    last = len(draws) - 1
    return between(index, index + 1), between(last - index, last - index - 1)


def _middle_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half of each row."""
    total = scores.shape[-1]
    cut = total // 4
    return np.sort(scores, axis=-1)[:, cut : total - cut].mean(-1)


def _interval(mean: Any, low: Any, high: Any) -> Interval:
    return Interval(*(np.asarray(bound)[()] for bound in (mean, low, high)))


def _without_interval(mean: Any) -> Interval:
    nothing = np.full(np.shape(mean), np.nan)
    return _interval(mean, nothing, nothing)


def _check_resampling(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}; fewer than 100 leave the tails empty, 10000 is usual")


def _runs_first(name: str, values: Any, axis: int) -> np.ndarray:
    """`values` in float64 with the runs axis first, checked."""
    array = np.asarray(values, np.float64)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{name} is {list(array.shape)} and has no axis {axis}; name the axis of the runs")
    array = np.moveaxis(array, axis, 0)
    if not len(array):
        raise ValueError(f"{name} holds no runs (shape {list(np.shape(values))}); give at least one")
    finite = np.isfinite(array)
    if not finite.all():
        runs = np.flatnonzero(~finite.reshape(len(array), -1).all(-1)).tolist()
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name} has NaN or infinite entries in runs {runs} (first: {array[first]} in run {first[0]}, "
            f"at {list(first[1:])}); drop those runs, cut the curves, or give a failed run its score"
        )
    return array


def _score_table(name: str, scores: Any) -> np.ndarray:
    """`scores` in float64 as [runs, tasks], checked."""
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name} is {list(table.shape)}; make it [runs, tasks] (one task: scores[:, None])")
    return _runs_first(name, table, 0)
