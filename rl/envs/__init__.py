"""JAX environments: compiled twins of Gymnasium's, wrappers, and adapters for the environments of other libraries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium

from rl.envs.adapters import from_brax, from_functional, from_gymnax, from_pgx
from rl.envs.as_gymnasium import AsGymnasium
from rl.envs.car_racing import CarRacingSensors
from rl.envs.car_racing import register as register_car_racing
from rl.envs.classic_control import acrobot, cartpole, mountain_car, mountain_car_continuous, pendulum
from rl.envs.driving import driving
from rl.envs.driving import register as register_driving
from rl.envs.environment import Environment, Outcome, auto_reset, time_limit
from rl.envs.highway import HighwaySensors
from rl.envs.highway import register as register_highway
from rl.envs.icu_sepsis import clinicians, icu_sepsis, icu_sepsis_table
from rl.envs.libraries import LIBRARIES, gymnasium_id, is_of_a_library, of_a_library
from rl.envs.market import best_growth, market, market_leaked
from rl.envs.market import register as register_markets
from rl.envs.partly_observed import (
    DECKS,
    LENGTHS,
    cartpole_without_velocities,
    hidden,
    memory_chain,
    pendulum_without_velocity,
    register,
    repeat_first,
)
from rl.envs.portfolio import portfolio, weights_of
from rl.envs.prices import Quotes, index_returns, prices, share_returns
from rl.envs.prices import register as register_prices
from rl.envs.shared_policy import ENTRY, SharedPolicy, agents_of
from rl.envs.spread import SPREADS, Spread
from rl.envs.toy_text import expected_return, from_table, greedy, optimal_values, table, toy_text

register()
gymnasium.register("ICUSepsis-v0", "rl.envs.icu_sepsis:ICUSepsis", max_episode_steps=500)
for count in SPREADS:
    gymnasium.register(
        f"Spread{count}-v0", vector_entry_point=ENTRY, kwargs={"make": Spread, "count": count}, disable_env_checker=True
    )
register_driving()
register_markets()
register_prices()
register_highway()
register_car_racing()

TWINS: dict[str, Callable[..., Environment]] = {
    "CartPole-v1": cartpole,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car_continuous,
    "Acrobot-v1": acrobot,
    "Pendulum-v1": pendulum,
    "Driving-v0": driving,
    "Market-v0": market,
    "MarketLeaked-v0": market_leaked,
    "Prices-v0": prices,
    "PricesLeaked-v0": partial(prices, leaked=True),
    "CartPoleNoVel-v1": cartpole_without_velocities,
    "PendulumNoVel-v1": pendulum_without_velocity,
    "ICUSepsis-v0": icu_sepsis,
    **{f"MemoryChain{length}-v0": partial(memory_chain, length) for length in LENGTHS},
    **{name: partial(repeat_first, decks) for name, decks in DECKS.items()},
    **{
        name: partial(toy_text, name)
        for name in ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4")
    },
}


def is_compiled(name: str) -> bool:
    """Whether `make` has an environment.

    Args:
        name: as in `make`.
    """
    return name in TWINS or is_of_a_library(name)


def make(name: str, **options: Any) -> Environment:
    """The compiled twin of a Gymnasium environment, or an environment of another library.

    Args:
        name: its Gymnasium id; or the library, a colon and the library's own name (`pgx:2048`, `brax:ant`,
            `gymnax:Breakout-MinAtar`).
        **options: arguments of the twin's function in `TWINS`, or of the library's adapter.

    Raises:
        LookupError: for an environment without a twin, where the message lists those with one, and for a library that
            is not installed or does not have it.
    """
    if is_of_a_library(name):
        return of_a_library(name, **options)
    if name in ("tic_tac_toe", "connect_four"):
        raise LookupError(
            f"{name} is a game for two players: jdl run alphazero --game {name}, or for one player "
            "rl.games.against(game, opponent)"
        )
    if name not in TWINS:
        known = ", ".join(name for name in TWINS if not name.startswith("MemoryChain"))
        raise LookupError(
            f"there is no JAX environment {name!r}; there are {known}, MemoryChain1-v0 and so on, and those of "
            f"{', '.join(f'{library}:NAME' for library in LIBRARIES)} (others train with runner host)"
        )
    return TWINS[name](**options)


__all__ = [
    "DECKS",
    "LENGTHS",
    "LIBRARIES",
    "SPREADS",
    "TWINS",
    "AsGymnasium",
    "CarRacingSensors",
    "Environment",
    "HighwaySensors",
    "Outcome",
    "Quotes",
    "SharedPolicy",
    "Spread",
    "acrobot",
    "agents_of",
    "auto_reset",
    "best_growth",
    "cartpole",
    "cartpole_without_velocities",
    "clinicians",
    "driving",
    "expected_return",
    "from_brax",
    "from_functional",
    "from_gymnax",
    "from_pgx",
    "from_table",
    "greedy",
    "gymnasium_id",
    "hidden",
    "icu_sepsis",
    "icu_sepsis_table",
    "index_returns",
    "is_compiled",
    "make",
    "market",
    "market_leaked",
    "memory_chain",
    "mountain_car",
    "mountain_car_continuous",
    "optimal_values",
    "pendulum",
    "pendulum_without_velocity",
    "portfolio",
    "prices",
    "repeat_first",
    "share_returns",
    "table",
    "time_limit",
    "toy_text",
    "weights_of",
]
