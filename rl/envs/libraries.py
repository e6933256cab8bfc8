"""Environments of other libraries by name, such as `pgx:2048`, and where their agents are scored."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium

from rl.envs.adapters import from_brax, from_gymnax, from_pgx
from rl.envs.environment import Environment


def _pgx(name: str, **options: Any) -> Environment:
    pgx = imported("pgx")
    return from_pgx(pgx.make(among(pgx.available_envs(), name, "pgx")), **options)


def _gymnax(name: str, **options: Any) -> Environment:
    gymnax = imported("gymnax")
    env, params = gymnax.make(among(gymnax.registered_envs, name, "gymnax"))
    return from_gymnax(env, **{"params": params, **options})


def _brax(name: str, **options: Any) -> Environment:
    try:
        env = imported("brax.envs").get_environment(name)
    except KeyError as error:
        raise LookupError(f"brax has no environment {name!r}") from error
    return from_brax(env, f"brax/{name}", **options)


# The original of MinAtar has no time limit, and an agent without randomness may play Breakout forever.
_MINATAR, _MINATAR_STEPS = "minatar-", 10_000

# highway-env registers its environments when it is asked to: these, with all that follows the hyphen.
_HIGHWAY = tuple(
    f"{road}-"
    for road in ("exit", "highway", "intersection", "lane-keeping", "merge", "parking", "racetrack", "roundabout",
                 "two-way", "u-turn")
)  # fmt: skip

# By a part of the name of the module that an environment is in.
_EXTRAS = {"envs.mujoco": "mujoco", "envs.box2d": "box2d", "rl.envs.car_racing": "box2d"}

LIBRARIES: dict[str, Callable[..., Environment]] = {"pgx": _pgx, "gymnax": _gymnax, "brax": _brax}


def is_of_a_library(name: str) -> bool:
    """Whether a name begins with one of `LIBRARIES` and a colon.

    Args:
        name: of an environment.
    """
    return name.partition(":")[0] in LIBRARIES and ":" in name


def of_a_library(name: str, **options: Any) -> Environment:
    """An environment of another library: `pgx:2048`, `gymnax:Breakout-MinAtar`, `brax:ant`.

    Args:
        name: the library, a colon, and the library's own name.
        **options: of the adapter, such as `max_steps`.

    Raises:
        LookupError: for a library that is not installed, and for an environment that it does not have.
        ValueError: for games of several players.
    """
    library, _, own = name.partition(":")
    return LIBRARIES[library](own, **options)


def gymnasium_id(name: str) -> str:
    """The id of the Gymnasium environment in which the agents of an environment are scored.

    It is the name itself, except for those of a library. What gymnax copied from Gymnasium and pgx from MinAtar is
    scored in the original; anything else in the library's own environment, stepped by the host (`AsGymnasium`, or
    `SharedPolicy` for PettingZoo's).

    MinAtar's environments are registered here, with a limit of 10,000 steps, and so are those of highway-env.

    Args:
        name: as in `make`, or any id that Gymnasium has.

    Raises:
        LookupError: for what cannot be a name, and for those of minatar and highway-env where these are not installed.
    """
    if name.startswith("MinAtar/"):
        _register_minatar()
    if name.startswith(_HIGHWAY) and name not in gymnasium.registry:
        imported("highway_env", "'jdl[highway]'")._register_highway_envs()
    library, _, own = name.partition(":")
    if not is_of_a_library(name) and library != "pettingzoo":
        return name
    if library == "gymnax" and own in gymnasium.registry:
        return own
    if library == "pgx" and own.startswith(_MINATAR):
        _register_minatar()
        return f"MinAtar/{own.removeprefix(_MINATAR).title().replace('_', '')}-v1"  # as minatar names its games
    known = f"{library}/{own.replace('/', '.')}"
    if known not in gymnasium.registry:
        entry: dict[str, Any] = {"entry_point": "rl.envs.as_gymnasium:AsGymnasium", "kwargs": {"env": name}}
        if library == "pettingzoo":
            entry = {"vector_entry_point": "rl.envs.shared_policy:SharedPolicy", "kwargs": {"make": own}}
        try:
            gymnasium.register(known, **entry, disable_env_checker=True)
        except gymnasium.error.Error as error:
            raise LookupError(f"{name!r} names no environment: give {library}'s own name after the colon") from error
    return known


def _register_minatar() -> None:
    if "MinAtar/Breakout-v1" not in gymnasium.registry:
        imported("minatar.gym", "'jdl[minatar]'").register_envs()
    for spec in gymnasium.registry.values():
        if spec.namespace == "MinAtar" and spec.max_episode_steps is None:
            spec.max_episode_steps = _MINATAR_STEPS


def extra_of(env: str) -> str | None:
    """The extra of jdl with the packages that an environment of Gymnasium's, or one built on it, needs; None for none.

    Args:
        env: id of the Gymnasium environment.
    """
    spec = gymnasium.registry.get(env)
    where = "" if spec is None else str(spec.entry_point)
    return next((extra for part, extra in _EXTRAS.items() if part in where), None)


def imported(module: str, extra: str | None = None) -> ModuleType:
    """A library, or a module of it.

    Args:
        module: its dotted name.
        extra: what to install; by default the package itself.

    Raises:
        LookupError: if it is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LookupError(f"{package} is not installed ({error}): pip install {extra or package}") from error


def among(known: Any, name: str, library: str) -> str:
    """The name, if the library has it.

    Args:
        known: the names that the library has.
        name: the one that is asked for.
        library: the library's name, for the message.

    Raises:
        LookupError: if it does not have it; the message lists what it has.
    """
    if name not in known:
        raise LookupError(f"{library} has no environment {name!r}; it has {', '.join(sorted(known))}")
    return name
