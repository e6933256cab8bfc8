"""Checks of a Gymnasium environment."""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np

from rl.check.findings import (
    Checked,
    Findings,
    look_at_lengths,
    look_at_mask,
    look_at_numbers,
    look_at_observation,
    look_at_spaces,
)
from rl.spaces import choices

_REPEATED = 300  # steps that are played a second time with the same seed


class Played(NamedTuple):
    """What was seen while an environment was played.

    Attributes:
        observations: after each reset and step, copied.
        rewards: of each step.
        terminated: lengths of the episodes that terminated.
        truncated: lengths of the episodes that were cut off.
        seconds: for the steps alone.
    """

    observations: list[Any]
    rewards: list[float]
    terminated: list[int]
    truncated: list[int]
    seconds: float


def check_on_host(make: Callable[[], Any], name: str, steps: int, seed: int, one: bool = False) -> Checked:
    """Check a Gymnasium environment (`rl.check_env`).

    Args:
        make: makes it.
        name: its name.
        steps: how many to play.
        seed: of the first reset and of the actions.
        one: `make` returns the same environment each time.
    """
    findings = Findings()
    env = findings.attempt("making the environment", make)
    played = None
    if isinstance(env, gymnasium.Env):
        given = getattr(env, "observation_space", None), getattr(env, "action_space", None)
        if look_at_spaces(findings, *given):
            played = _play(findings, env, steps, seed)
            if played is not None:
                _look_at_play(findings, played, steps)
                _look_at_seeds(findings, env, played, seed)
        if "rgb_array" not in (env.metadata or {}).get("render_modes", []):
            findings.note("picture of it", "it renders no rgb_array: reports show no film of an episode")
        if not one and not findings.problems:
            _look_at_vector(findings, make, seed)
            env.close()
    elif env is not None:
        findings.wrong("type", f"it is a {type(env).__name__}, not a gymnasium.Env: derive its class from that")
    episodes = len(played.terminated) + len(played.truncated) if played else 0
    rate = len(played.rewards) / max(played.seconds, 1e-9) if played else 0.0
    return Checked(name, list(findings.problems.values()), list(findings.notes.values()), episodes, rate)


def _play(findings: Findings, env: gymnasium.Env, steps: int, seed: int) -> Played | None:
    """Play with random actions and look at everything; None where it cannot even be reset."""
    observation, info = _reset(findings, env, seed) or (None, None)
    if info is None:
        return None
    env.action_space.seed(seed)
    options = choices(env.action_space)
    played = Played([copy.deepcopy(observation)], [], [], [], 0.0)
    look_at_observation(findings, env.observation_space, observation, "reset()")
    length, seconds = 0, 0.0
    for number in range(steps):
        mask = _mask(observation, info)
        if mask is not None and options:
            look_at_mask(findings, env.action_space, mask, options)
        action = _action(env.action_space, mask)
        before, kept = observation, played.observations[-1]
        begin = time.perf_counter()
        result = findings.attempt(f"step({action!r})", lambda action=action: env.step(action))
        seconds += time.perf_counter() - begin
        if result is None or not _look_at_result(findings, result):
            break
        observation, reward, terminated, truncated, info = result
        if not _same(before, kept):
            findings.wrong(
                "aliasing",
                "step() changes the observation that was returned before: return a copy, or what is kept in a replay "
                "changes with it",
            )
        look_at_observation(findings, env.observation_space, observation, f"step {number + 1}")
        played.observations.append(copy.deepcopy(observation))
        played.rewards.append(float(reward))
        length += 1
        if terminated or truncated:
            (played.terminated if terminated else played.truncated).append(length)
            length = 0
            again = _reset(findings, env, None)
            if again is None:
                break
            observation, info = again
            look_at_observation(findings, env.observation_space, observation, "reset() after an episode")
            played.observations.append(copy.deepcopy(observation))
    return played._replace(seconds=seconds)


def _reset(findings: Findings, env: gymnasium.Env, seed: int | None) -> tuple[Any, dict] | None:
    result = findings.attempt(f"reset(seed={seed})", lambda: env.reset(seed=seed))
    if result is None:
        return None
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        findings.wrong(
            "reset", f"reset() returns a {type(result).__name__}; it is a pair of observation and info, a dict"
        )
        return None
    return result


def _look_at_result(findings: Findings, result: Any) -> bool:
    """Look at what `step` returns; return whether it can be used."""
    if not isinstance(result, tuple) or len(result) != 5:
        count = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        findings.wrong(
            "step", f"step() returns {count}; it is observation, reward, terminated, truncated, info (Gymnasium 0.26)"
        )
        return False
    _, reward, terminated, truncated, info = result
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            findings.wrong(name, f"{name} is {flag!r}, a {type(flag).__name__}; return a bool")
    if np.ndim(reward) != 0 or not np.issubdtype(np.asarray(reward).dtype, np.number):
        findings.wrong("reward", f"the reward is {reward!r}; return one number")
        return False
    if not np.isfinite(reward):
        findings.wrong("reward", f"a reward is {reward}; it must be finite")
    if not isinstance(info, dict):
        findings.wrong("info", f"info is a {type(info).__name__}; return a dict")
        return False
    return True


def _look_at_play(findings: Findings, played: Played, steps: int) -> None:
    look_at_lengths(findings, played.terminated, played.truncated, steps)
    plain = all(isinstance(one, np.ndarray) for one in played.observations)
    shapes = {one.shape for one in played.observations} if plain else set()
    seen = np.stack(played.observations).reshape(len(played.observations), -1) if len(shapes) == 1 else None
    look_at_numbers(findings, seen, played.rewards)


def _look_at_seeds(findings: Findings, env: gymnasium.Env, played: Played, seed: int) -> None:
    """Play again with the same seed, and look whether other seeds and later episodes differ."""
    count = min(_REPEATED, len(played.rewards))
    again = _play(Findings(), env, count, seed)
    if again is not None and not (
        len(again.observations) <= len(played.observations)
        and all(_same(one, other) for one, other in zip(again.observations, played.observations, strict=False))
        and again.rewards == played.rewards[:count]
    ):
        findings.wrong(
            "seed",
            f"with the same seed and the same actions, {count} steps differ: draw every random number from "
            "self.np_random, and call super().reset(seed=seed) in reset()",
        )
        return
    starts = [result[0] for value in (seed, seed + 1, seed + 2) if (result := _reset(Findings(), env, value))]
    # A reset without a seed goes on with the random numbers; one that seeds itself anew repeats a single episode.
    _reset(Findings(), env, seed)
    later = [result[0] for _ in range(3) if (result := _reset(Findings(), env, None))]
    if len(starts) == 3 and len(later) == 3 and not _all_same(starts) and _all_same(later):
        findings.wrong(
            "reseeded",
            "episodes begin all the same where reset() is called without a seed: it seeds itself anew with a constant",
        )


def _look_at_vector(findings: Findings, make: Callable[[], Any], seed: int) -> None:
    """Two of them side by side, as the host runner has them."""

    def attempt() -> None:
        envs = gymnasium.vector.SyncVectorEnv([make, make])
        envs.reset(seed=seed)
        envs.step(envs.action_space.sample())
        envs.close()

    findings.attempt("two of them in a gymnasium.vector.SyncVectorEnv", attempt)


def _mask(observation: Any, info: dict) -> Any:
    own = observation.get("action_mask") if isinstance(observation, dict) else None
    return info.get("action_mask") if own is None else own


def _action(space: gymnasium.Space, mask: Any) -> Any:
    if mask is None or not isinstance(space, gymnasium.spaces.Discrete) or np.shape(mask) != (int(space.n),):
        return space.sample()
    return space.sample(np.asarray(mask, np.int8)) if np.any(mask) else space.sample()


def _same(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(
        np.array_equal(a, b, equal_nan=np.issubdtype(np.asarray(a).dtype, np.floating))
        for a, b in zip(leaves, others, strict=True)
    )


def _all_same(observations: list[Any]) -> bool:
    return all(_same(observations[0], one) for one in observations[1:])
