"""Daily prices of 20 American shares, 1990 to 2022, as the package skfolio ships them; and an environment of them.

They are adjusted for dividends and splits, so their returns are total returns. The index beside them is a price index,
without dividends. The 20 are companies that were large late in these years: whoever holds any of them before that knows
something of the future. `pip install 'jdl[finance]'`; skfolio itself, which is large, is not imported.
"""

import csv
import functools
import gzip
import importlib.util
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

from rl.envs.environment import Environment, time_limit
from rl.envs.portfolio import MAX_STEPS, untimed

SCORED_FROM = np.datetime64("2016-01-01")  # agents train on the days before


class Quotes(NamedTuple):
    """Daily returns of shares, or of an index.

    Attributes:
        names: [shares], their symbols.
        dates: [days], datetime64 of each return: from the close of the trading day before to that of this one.
        returns: [days, shares], float64.
    """

    names: tuple[str, ...]
    dates: np.ndarray
    returns: np.ndarray


@functools.cache
def share_returns() -> Quotes:
    """Total returns of 20 shares, from January 3rd, 1990 to December 28th, 2022.

    Raises:
        LookupError: if skfolio is not installed.
    """
    return _read("sp500_dataset.csv.gz")


@functools.cache
def index_returns() -> Quotes:
    """Returns of the S&P 500 on the same days, without dividends, which are about two percent a year.

    Raises:
        LookupError: if skfolio is not installed.
    """
    return _read("sp500_index.csv.gz")


def prices(max_steps: int = MAX_STEPS, leaked: bool = False) -> Environment:
    """`rl.envs.portfolio` of the 20 shares on the days before 2016, which agents train on.

    Args:
        max_steps: days after which an episode is truncated.
        leaked: the observation has the returns that come.

    Raises:
        LookupError: if skfolio is not installed.
    """
    return time_limit(_untimed(max_steps, leaked), max_steps)


def _untimed(max_steps: int, leaked: bool) -> Environment:
    quotes = share_returns()
    before = quotes.returns[quotes.dates < SCORED_FROM]
    return untimed(before, max_steps=max_steps, leaked=leaked, name="PricesLeaked-v0" if leaked else "Prices-v0")


def _honest() -> Environment:
    return _untimed(MAX_STEPS, False)


def _leaked() -> Environment:
    return _untimed(MAX_STEPS, True)


def _read(file: str) -> Quotes:
    found = importlib.util.find_spec("skfolio")
    if found is None or found.origin is None:
        raise LookupError("the prices are those of the package skfolio: pip install 'jdl[finance]'")
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / file, "rt", encoding="utf-8") as lines:
        head, *rows = csv.reader(lines)
    price = np.array([row[1:] for row in rows], float)
    dates = np.array([row[0] for row in rows], "datetime64[D]")
    return Quotes(tuple(head[1:]), dates[1:], price[1:] / price[:-1] - 1)


def register() -> None:
    """Register the Gymnasium environments of this file."""
    for name, make in (("Prices-v0", _honest), ("PricesLeaked-v0", _leaked)):
        entry = "rl.envs.as_gymnasium:AsGymnasium"
        gymnasium.register(name, entry, kwargs={"env": make}, max_episode_steps=MAX_STEPS)
