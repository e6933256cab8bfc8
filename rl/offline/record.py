"""Record experience: an agent that plays, random actions, or what an agent has kept in its replay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import jdl
from jdl.core import ring
from jdl.experiment.config import decode
from jdl.experiment.execute import load_copy
from rl.offline.dataset import Dataset, Episode, from_episodes
from rl.runners.vector import make_vec, mask_of, spaces_of
from rl.spaces import legal
from rl.types import Agent, Algorithm, TimeStep

_AT_ONCE = 100  # copies of an environment that are played side by side


def record(
    algorithm: Algorithm,
    agent: Agent,
    env: str,
    *,
    episodes: int = 100,
    greedy: bool = False,
    seed: int = 0,
    max_steps: int = 100_000,
) -> Dataset:
    """Record episodes that an agent plays in a registered environment.

    Args:
        algorithm: the algorithm that trained the agent.
        agent: one agent, without an axis of runs.
        env: id of the Gymnasium environment, or a name of a library's (`pgx:2048`).
        episodes: how many.
        greedy: take the best action instead of exploring.
        seed: of the environments' resets and of the agent.
        max_steps: steps after which an episode is cut off.

    Raises:
        ValueError: for fewer than 1 episode.
    """

    @jax.jit
    def act(carry: Any, timestep: TimeStep, key: Any) -> tuple[Any, Any]:
        action, carry, _ = algorithm.act(agent, carry, timestep, key, greedy)
        return as_taken(action), carry

    as_taken = legal(spaces_of(env)[1])
    agent = jax.device_put(jax.device_get(agent))
    return _record(env, episodes, seed, max_steps, algorithm.initial_carry, act)


def record_random(env: str, *, episodes: int = 100, seed: int = 0, max_steps: int = 100_000) -> Dataset:
    """Record episodes of actions that are drawn from the action space; masked actions are left out.

    Args:
        env: id of the Gymnasium environment, or a name of a library's.
        episodes: how many.
        seed: of the environments' resets and of the actions.
        max_steps: steps after which an episode is cut off.

    Raises:
        ValueError: for fewer than 1 episode, and for masks of actions that are not Discrete.
    """
    space = spaces_of(env)[1]
    space.seed(seed)

    def act(carry: Any, timestep: TimeStep, key: Any) -> tuple[Any, Any]:
        masks = timestep.action_mask
        if masks is None:
            return np.stack([space.sample() for _ in timestep.first]), carry
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(f"record_random({env!r}): masks of {space}; it draws masked actions for Discrete alone")
        return np.stack([space.sample(mask.astype(np.int8)) for mask in masks]), carry

    return _record(env, episodes, seed, max_steps, lambda count: (), act)


def record_run(
    path: str | Path, *, episodes: int = 100, index: int = 0, greedy: bool = False, seed: int = 0
) -> Dataset:
    """Record episodes that the trained agent of a run plays, in the environment of the run.

    Args:
        path: the run directory of an experiment that defines `algorithm`, as those of ./experiments/rl do.
        episodes: how many.
        index: position of the agent's seed among those of the run, counted from 0.
        greedy: take the best action instead of exploring.
        seed: of the environments' resets and of the agent.

    Raises:
        LookupError: for a run of another experiment.
        ValueError: for a seed that the run does not have, and for fewer than 1 episode.
    """
    algorithm, agent, env = _of_run(path, index)
    return record(algorithm, agent, env, episodes=episodes, greedy=greedy, seed=seed)


def replay_of_run(path: str | Path, *, index: int = 0) -> Dataset:
    """What the agent of a run kept in its replay: the experience of its training, as much as its capacity held.

    Args:
        path: the run directory of an algorithm with a replay.
        index: position of the agent's seed among those of the run, counted from 0.

    Raises:
        LookupError: for a run of another experiment.
        ValueError: for a seed that the run does not have, and for an agent without a replay.
    """
    _, agent, env = _of_run(path, index)
    return replay_of(agent, env)


def replay_of(agent: Agent, env: str) -> Dataset:
    """The experience in an agent's replay, as episodes.

    A replay does not keep the observation after a termination, which has no value to learn: the one before stands in
    its place. The episode under way is cut off.

    Args:
        agent: one agent, without an axis of runs.
        env: the environment in which it was trained.

    Raises:
        ValueError: for an agent without a replay, and for a replay of single frames.
    """
    observation_space, action_space = spaces_of(env)
    if not hasattr(agent, "replay"):
        raise ValueError("the agent has no replay; record episodes that it plays (rl.offline.record)")
    kept: ring.Ring = jax.device_get(agent.replay.ring)
    episodes = []
    for lane, written in enumerate(np.asarray(kept.written)):
        numbers = np.arange(max(0, written - kept.capacity), written) % kept.capacity
        rows = jax.tree.map(lambda leaf: np.asarray(leaf[lane])[numbers], kept.rows)  # noqa: B023
        episodes += _episodes_of_lane(rows, action_space)
    return from_episodes(episodes, observation_space, action_space, env)


def _episodes_of_lane(rows: dict[str, Any], action_space: gymnasium.Space) -> list[Episode]:
    """The episodes whose beginning is kept, from the rows of one environment in the order of time."""
    taken, valid = np.asarray(legal(action_space)(rows["action"])), rows["valid"]
    begins = np.flatnonzero(valid & rows["first"])
    episodes = []
    for start, following in zip(begins, [*begins[1:], len(valid)], strict=True):
        steps = start + np.flatnonzero(valid[start:following])
        terminated, after = bool(rows["terminated"][steps[-1]]), steps[-1] + 1
        if after == following:  # no row has the observation that the last action led to
            steps, after = (steps, steps[-1]) if terminated else (steps[:-1], steps[-1])
        if len(steps):
            observation = jax.tree.map(lambda leaf: leaf[[*steps, after]], rows["observation"])  # noqa: B023
            episodes.append(Episode(observation, taken[steps], rows["reward"][steps], terminated))
    return episodes


def _record(
    env: str,
    episodes: int,
    seed: int,
    max_steps: int,
    initial_carry: Callable[[int], Any],
    act: Callable[[Any, TimeStep, Any], tuple[Any, Any]],
) -> Dataset:
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: record at least 1")
    count = min(episodes, _AT_ONCE)
    environments = make_vec(env, count)
    spaces = environments.single_observation_space, environments.single_action_space
    found: list[Episode] = []
    try:
        while len(found) < episodes:
            found += _first_episodes(environments, seed + len(found), max_steps, initial_carry(count), act)
    finally:
        environments.close()
    return from_episodes(found[:episodes], *spaces, env)


def _first_episodes(
    environments: gymnasium.vector.VectorEnv, seed: int, max_steps: int, carry: Any, act: Callable[..., Any]
) -> list[Episode]:
    """The first episode of each copy of an environment."""
    count, key = environments.num_envs, jax.random.key(seed)
    observation, info = environments.reset(seed=seed)
    seen, taken, rewards = [_copied(observation)], [], []
    running, terminated = np.ones(count, bool), np.zeros(count, bool)
    lengths, first = np.zeros(count, int), np.ones(count, bool)
    while running.any() and len(taken) < max_steps:
        reward = rewards[-1] if rewards else np.zeros(count, np.float32)
        timestep = TimeStep(observation, first, mask_of(observation, info), reward)
        action, carry = act(carry, timestep, jax.random.fold_in(key, len(taken)))
        observation, reward, died, cut, info = environments.step(np.asarray(action))
        seen.append(_reached(observation, info))
        taken.append(np.array(action))
        rewards.append(np.array(reward, np.float32))
        lengths += running
        terminated |= running & died
        running &= ~(died | cut)
        first = np.zeros(count, bool)
    observations = jax.tree.map(lambda *leaves: np.stack(leaves), *seen)
    actions, rewarded = np.stack(taken), np.stack(rewards)
    return [
        Episode(
            jax.tree.map(lambda leaf: leaf[: length + 1, i], observations),  # noqa: B023
            actions[:length, i],
            rewarded[:length, i],
            bool(terminated[i]),
        )
        for i, length in enumerate(lengths)
    ]


def _copied(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def _reached(observation: Any, info: dict[str, Any]) -> Any:
    """The observations that actions led to, also where the environment has been reset in the same step."""
    reached = _copied(observation)
    for i in np.flatnonzero(info.get("_final_obs", ())):
        jax.tree.map(lambda leaf, one, i=i: leaf.__setitem__(i, one), reached, info["final_obs"][i])
    return reached


def _of_run(path: str | Path, index: int) -> tuple[Algorithm, Agent, str]:
    """The algorithm of a run, one of its agents, and the environment."""
    run = jdl.load(path)
    if not 0 <= index < len(run.seeds):
        raise ValueError(f"record(index={index}): {run.path} has {len(run.seeds)} seed(s), counted from 0")
    module = load_copy(run)
    if not hasattr(module, "algorithm") or "env" not in run.config:
        raise LookupError(
            f"the experiment of {run.path} has no algorithm(config, observation_space, action_space) of an env; record "
            "with rl.offline.record(algorithm, agent, env)"
        )
    config: Any = decode(module.Config, run.config)
    own = run.path / f"seed-{run.seeds[index]}"  # exists if the seeds were trained in separate processes
    state, place = (jdl.load(own).state, 0) if own.is_dir() else (run.state, index)
    agent = jax.tree.map(lambda leaf: jnp.asarray(leaf)[place], state.agent)
    return module.algorithm(config, *spaces_of(config.env, config.vectorization)), agent, config.env
