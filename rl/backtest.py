"""What a rule for the weights of shares would have earned after costs, and how little a few years of that tell.

A rule is a function `(past, held) -> weights`: past [days, shares] are all returns before the day, and held [shares]
the weights at yesterday's close. It is given nothing else, so it cannot look ahead. Everything is a loop over days in
float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jdl.core.statistics import Interval

YEAR = 252  # trading days

type Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Track(NamedTuple):
    """What a rule earned and traded.

    Attributes:
        returns: [days], simple returns of the wealth after costs.
        traded: [days], what was bought and what was sold, as a share of the wealth.
    """

    returns: Float[np.ndarray, " days"]
    traded: Float[np.ndarray, " days"]


def backtest(returns: Float[np.ndarray, "days shares"], first: int, choose: Rule, cost: float = 0.001) -> Track:
    """Follow a rule day by day, beginning with cash.

    Each day: the rule chooses weights from what was known at yesterday's close, they are bought there, and the day's
    returns move wealth and weights.

        growth = (1 − cost · Σ |weights − held|) · (1 + Σ weights · returns)

    Args:
        returns: simple returns; those before `first` are only known to the rule.
        first: index of the first day.
        choose: the rule; its weights are not negative and sum to 1.
        cost: the share of each amount bought or sold that is lost.

    Raises:
        ValueError: for a `first` outside the days, and for weights that are negative or do not sum to 1.
    """
    if not 0 <= first < len(returns):
        raise ValueError(f"backtest(first={first}): the index of one of the {len(returns)} days")
    held, track = np.zeros(returns.shape[1]), []
    for day in range(first, len(returns)):
        weights = np.asarray(choose(returns[:day], held), float)
        if not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-4:
            raise ValueError(
                f"backtest(choose): on day {day} its weights are {weights.min():.3g} and more and sum to "
                f"{weights.sum():.6g}; weights are not negative and sum to 1"
            )
        traded, moved = np.abs(weights - held).sum(), weights @ returns[day]
        track.append(((1 - cost * traded) * (1 + moved) - 1, traded))
        held = weights * (1 + returns[day]) / (1 + moved)
    return Track(*np.array(track).T)


def equal_weights(past: Float[np.ndarray, "days shares"], held: Float[np.ndarray, " shares"]) -> np.ndarray:
    """The rule 1/N: the same weights every day, hard to beat (DeMiguel, Garlappi and Uppal 2009).

    Args:
        past: returns before the day.
        held: weights held.
    """
    return np.full(len(held), 1 / len(held))


def buy_and_hold(past: Float[np.ndarray, "days shares"], held: Float[np.ndarray, " shares"]) -> np.ndarray:
    """The rule that buys equal weights once and never trades again.

    Args:
        past: returns before the day.
        held: weights held.
    """
    return held if held.any() else equal_weights(past, held)


def minimum_variance(window: int = 504, every: int = 21) -> Rule:
    """A rule: the weights, none negative, whose variance is least by a shrunk covariance of the last days.

    Args:
        window: days that the covariance is estimated from.
        every: days between two trades.

    Source: Ledoit and Wolf 2004, "Honey, I shrunk the sample covariance matrix".
    """
    from scipy.optimize import nnls  # seconds of import, for this rule alone
    from sklearn.covariance import LedoitWolf

    def choose(past: np.ndarray, held: np.ndarray) -> np.ndarray:
        if held.any() and len(past) % every:
            return held
        root = np.linalg.cholesky(LedoitWolf().fit(past[-window:]).covariance_).T
        # min |root w|² + s² (Σw − 1)², w ≥ 0: for any s it is the wanted solution but for its sum.
        scale = np.sqrt((root**2).sum())
        weights, _ = nnls(np.vstack([root, np.full((1, len(root)), scale)]), np.append(np.zeros(len(root)), scale))
        return weights / weights.sum()

    return choose


def yearly_return(returns: Float[np.ndarray, " days"]) -> float:
    """The constant growth of a year that ends in the same wealth.

    Args:
        returns: simple returns of each day.
    """
    return float(np.exp(np.log1p(returns).mean() * YEAR) - 1)


def sharpe(returns: Float[np.ndarray, " days"]) -> tuple[float, float]:
    """The Sharpe ratio of a year and its standard error; nothing is subtracted for what cash would earn.

    Args:
        returns: simple returns of each day.

    Source: Lo 2002, "The statistics of Sharpe ratios", equation 9, for independent returns.
    """
    daily = returns.mean() / returns.std(ddof=1)
    return float(daily * YEAR**0.5), float(np.sqrt((1 + daily**2 / 2) / len(returns) * YEAR))


def drawdown(returns: Float[np.ndarray, " days"]) -> float:
    """The largest loss from the highest wealth before, the first wealth included; it is not above 0.

    Args:
        returns: simple returns of each day.
    """
    wealth = np.cumprod(np.append(1, 1 + returns))
    return float((wealth / np.maximum.accumulate(wealth)).min() - 1)


def turnover(traded: Float[np.ndarray, " days"]) -> float:
    """What is bought and sold in a year, as a multiple of the wealth.

    Args:
        traded: of each day.
    """
    return float(traded.mean() * YEAR)


def sharpe_difference(
    returns: Float[np.ndarray, " days"],
    others: Float[np.ndarray, " days"],
    block: int = 21,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The Sharpe ratio of a year less that of another track on the same days, with a block-bootstrap interval.

    Blocks of days are drawn, for both tracks the same: days that follow each other are alike, and so are the two tracks
    on a day. The ends are percentiles over series of the same length.

    Args:
        returns: simple returns.
        others: simple returns of the other track.
        block: days in a block; the last day is followed by the first.
        level: of the interval.
        resamples: series that are drawn.
        seed: of the draws.

    Raises:
        ValueError: for tracks of different lengths, and for a block that is longer than they are.

    Source: Ledoit and Wolf 2008, "Robust performance hypothesis testing with the Sharpe ratio", section 3.2, with plain
    percentiles; the circular blocks of Politis and Romano 1992.
    """
    days = len(returns)
    if len(others) != days or not 1 <= block <= days:
        raise ValueError(
            f"sharpe_difference of {days} and {len(others)} days, block={block}: tracks are of the same days, and a "
            "block has from 1 to as many"
        )
    both = np.stack([returns, others])
    around = np.concatenate([both, both[:, : block - 1]], 1)
    upto = [np.concatenate([np.zeros((2, 1)), np.cumsum(power, 1)], 1) for power in (around, around**2)]
    lengths = np.diff(np.append(np.arange(0, days, block), days))  # the last block may be shorter
    start = np.random.default_rng(seed).integers(0, days, (resamples, len(lengths)))
    mean, square = ((sums[:, start + lengths] - sums[:, start]).sum(-1) / days for sums in upto)
    ratio = mean / np.sqrt((square - mean**2) * days / (days - 1)) * YEAR**0.5
    tail = (1 - level) / 2
    low, high = np.quantile(ratio[0] - ratio[1], (tail, 1 - tail))
    return Interval(np.float64(sharpe(returns)[0] - sharpe(others)[0]), low, high)
