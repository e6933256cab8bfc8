"""Checks of a compiled environment."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from rl.check.findings import (
    Checked,
    Findings,
    look_at_lengths,
    look_at_mask,
    look_at_numbers,
    look_at_observation,
    look_at_spaces,
)
from rl.envs.environment import Environment, Outcome, auto_reset
from rl.spaces import choices, zeros

_ENVS = 64
_SAMPLES = 1000  # actions and observations, of which others are repetitions or are looked at together


def check_compiled(env: Environment, steps: int, seed: int) -> Checked:
    """Check a compiled environment (`rl.check_env`).

    Args:
        env: the environment.
        steps: how many to play, of each of 64 environments.
        seed: of the resets and of the actions.
    """
    findings = Findings()
    ends, rate = ([], []), 0.0
    if look_at_spaces(findings, env.observation_space, env.action_space) and _look_at_types(findings, env, seed):
        played = findings.attempt("playing 64 of them under jax.vmap and jax.jit", lambda: _play(env, steps, seed))
        if played is not None:
            outcomes, rate = played
            ends = _look_at_outcomes(findings, env, outcomes, steps)
    problems, notes = list(findings.problems.values()), list(findings.notes.values())
    return Checked(env.name, problems, notes, len(ends[0]) + len(ends[1]), rate)


def _look_at_types(findings: Findings, env: Environment, seed: int) -> bool:
    """Look at structures, shapes and types, without a single step; return whether it can be played."""
    key, action = jax.random.key(seed), zeros(env.action_space)
    fresh = findings.attempt("reset(key)", lambda: jax.eval_shape(env.reset, key))
    if fresh is None:
        return False
    if not (isinstance(fresh, tuple) and len(fresh) == 2 and isinstance(fresh[1], Outcome)):
        findings.wrong("reset", "reset(key) returns something else than (state, rl.envs.Outcome)")
        return False
    after = findings.attempt(
        "step(state, action, key)", lambda: jax.eval_shape(env.step, fresh[0], jnp.asarray(action), key)
    )
    if after is None:
        return False
    if not (isinstance(after, tuple) and len(after) == 2 and isinstance(after[1], Outcome)):
        findings.wrong("step", "step(state, action, key) returns something else than (state, rl.envs.Outcome)")
        return False
    _look_at_difference(findings, "state", fresh[0], after[0])
    _look_at_difference(findings, "observation", fresh[1].observation, after[1].observation)
    if (fresh[1].action_mask is None) != (after[1].action_mask is None):
        findings.wrong("mask", "only one of reset and step gives an action_mask; give it in both, or in none")
    for when, outcome in (("reset", fresh[1]), ("step", after[1])):
        for name in ("terminated", "truncated", "reward"):
            shape, dtype = jnp.shape(getattr(outcome, name)), jnp.result_type(getattr(outcome, name))
            good = jnp.issubdtype(dtype, jnp.floating) if name == "reward" else dtype == jnp.bool_
            if shape != () or not good:
                kind = "float" if name == "reward" else "bool"
                findings.wrong(f"{when} {name}", f"{name} of {when} is a {dtype}{list(shape)}; it is one {kind}")
    return not findings.problems


def _look_at_difference(findings: Findings, what: str, one: Any, other: Any) -> None:
    """Look whether `reset` and `step` give the same structure, shapes and types, as a loop needs."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(one)
    others, other_structure = jax.tree_util.tree_flatten_with_path(other)
    if structure != other_structure:
        findings.wrong(
            what, f"the {what} of step has another structure than that of reset: {other_structure}, {structure}"
        )
        return
    for (path, before), (_, after) in zip(leaves, others, strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            place = jax.tree_util.keystr(path)
            findings.wrong(
                f"{what}{place}",
                f"the {what}{place} is {before.dtype}{list(before.shape)} after reset and "
                f"{after.dtype}{list(after.shape)} after step; give both the same shape and type",
            )


def _play(env: Environment, times: int, seed: int) -> tuple[Any, float]:
    """Outcomes [time, env] of random actions, and steps per second once it is compiled."""
    step = jax.vmap(auto_reset(env))
    env.action_space.seed(seed)
    some = jax.tree.map(lambda *parts: np.stack(parts), *[env.action_space.sample() for _ in range(_SAMPLES)])
    chosen = np.random.default_rng(seed).integers(0, _SAMPLES, (times, _ENVS))
    actions = jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), some)

    @jax.jit
    def play(key: Any) -> Any:
        states, first = jax.vmap(env.reset)(jax.random.split(jax.random.fold_in(key, 0), _ENVS))

        def one(now: Any, given: Any) -> Any:
            states, mask = now
            action, key = given
            if mask is not None and len(choices(env.action_space)) == 1:
                allowed = jnp.take_along_axis(mask, action[:, None].astype(int), 1)[:, 0]
                action = jnp.where(allowed, action, mask.argmax(-1))
            states, outcome, seen = step(states, action, jax.random.split(key, _ENVS))
            return (states, seen.action_mask), (outcome, seen)

        keys = jax.random.split(jax.random.fold_in(key, 1), times)
        return first, jax.lax.scan(one, (states, first.action_mask), (actions, keys))[1]

    result = jax.block_until_ready(play(jax.random.key(seed)))
    begin = time.perf_counter()
    jax.block_until_ready(play(jax.random.key(seed)))
    return jax.tree.map(np.asarray, result), times * _ENVS / (time.perf_counter() - begin)


def _look_at_outcomes(findings: Findings, env: Environment, played: Any, steps: int) -> tuple[list[int], list[int]]:
    """Look at everything that was seen; return the lengths of the episodes that terminated and were cut off."""
    first, (outcome, seen) = played
    space = env.observation_space
    one_of = lambda tree, *at: jax.tree.map(lambda leaf: _plain(leaf[at]), tree)  # noqa: E731
    for i in range(_ENVS):
        look_at_observation(findings, space, one_of(first.observation, i), "reset")
    for t, i in _places(space, outcome.observation):
        look_at_observation(findings, space, one_of(outcome.observation, t, i), f"step {t + 1}")
    if not np.isfinite(outcome.reward).all():
        findings.wrong("reward", f"a reward is {outcome.reward[~np.isfinite(outcome.reward)][0]}; it must be finite")
    if (outcome.terminated & outcome.truncated).any():
        findings.wrong("ends", "an episode is terminated and truncated at once; a termination is not truncated")
    if seen.action_mask is not None and (options := choices(env.action_space)):
        masks = np.concatenate([first.action_mask, seen.action_mask.reshape(-1, seen.action_mask.shape[-1])])
        for mask in np.unique(masks, axis=0):
            look_at_mask(findings, env.action_space, mask, options)
    starts = [leaf.reshape(_ENVS, -1) for leaf in jax.tree.leaves(first.observation)]
    if all((leaf == leaf[:1]).all() for leaf in starts):
        findings.note("start", "every episode began with the same observation, whatever its key")
    terminated, truncated = [], []
    for i in range(_ENVS):
        begin = -1
        for t in np.flatnonzero(outcome.terminated[:, i] | outcome.truncated[:, i]):
            (terminated if outcome.terminated[t, i] else truncated).append(int(t) - begin)
            begin = int(t)
    look_at_lengths(findings, terminated, truncated, steps)
    flat = outcome.observation.reshape(steps * _ENVS, -1) if isinstance(outcome.observation, np.ndarray) else None
    look_at_numbers(findings, flat, outcome.reward.ravel().tolist())
    return terminated, truncated


def _places(space: Any, observation: Any) -> list[tuple[int, int]]:
    """Steps and environments whose observations are looked at: some, and of a Box the first beyond its bounds."""
    times = len(jax.tree.leaves(observation)[0])
    places = [(t, i) for t in range(min(times, max(1, _SAMPLES // _ENVS))) for i in range(_ENVS)]
    if isinstance(space, spaces.Box):
        beyond = ~((observation >= space.low) & (observation <= space.high))  # also where it is not a number
        places += [tuple(place[:2]) for place in np.argwhere(beyond)[:1].tolist()]
    return places


def _plain(leaf: np.ndarray) -> Any:
    """A number of a Discrete space is no array there."""
    return leaf if leaf.ndim else leaf[()]
