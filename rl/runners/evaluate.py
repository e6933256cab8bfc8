"""Evaluation of agents in Gymnasium: only the first episode of each of many fresh environments counts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Bool, Float

from rl.envs.shared_policy import agents_of
from rl.runners.vector import make_vec, mask_of
from rl.spaces import legal
from rl.types import Agent, Algorithm, TimeStep


class Scores(NamedTuple):
    """Results of evaluation episodes.

    Attributes:
        returns: undiscounted sum of the rewards of each episode.
        lengths: number of steps of each episode.
        terminated: whether each episode ended by itself, and not by a limit of time.
    """

    returns: Float[np.ndarray, "*runs episodes"]
    lengths: Float[np.ndarray, "*runs episodes"]
    terminated: Bool[np.ndarray, "*runs episodes"]


def evaluate(
    algorithm: Algorithm,
    agent: Agent,
    env: str,
    *,
    episodes: int = 100,
    runs: int | None = None,
    seed: int = 0,
    greedy: bool = True,
    max_steps: int = 100_000,
    options: Mapping[str, Any] | None = None,
    watch: Callable[[np.ndarray, np.ndarray], Any] | None = None,
) -> Scores:
    """Play episodes of a registered environment, each in a separate copy of the environment.

    Counting the first episodes to end in fewer copies instead would favor short episodes.

    Args:
        algorithm: the algorithm that trained the agent.
        agent: the agent; with `runs`, leaves [runs, ...].
        env: id of the Gymnasium environment, or a name of a library's (`pgx:2048`).
        episodes: episodes to play, per run. Where an environment has several agents, each has an episode of its own,
            and there may be some more, so that all agents are counted.
        runs: size of the leading axis of the agent's leaves (`jdl.seeds`); None for a single agent.
        seed: of the environments' resets and of the agent.
        greedy: take the most likely action instead of sampling.
        max_steps: limit on the length of an episode.
        options: keywords for `gymnasium.make`.
        watch: called at each step with the actions [env, ...], as the environments take them, and with which of the
            episodes go on, [env]; of several runs, those of the first come first.

    Raises:
        ValueError: for an agent that was trained on other spaces, for an episode longer than `max_steps`, and for
            `episodes` below 1.
    """
    if episodes < 1:
        raise ValueError(f"evaluate(episodes={episodes}): at least 1 episode")
    episodes += -episodes % agents_of(env)
    shape = (episodes,) if runs is None else (runs, episodes)
    count = episodes * (runs or 1)
    environments = make_vec(env, count, **dict(options or {}))
    as_taken = legal(environments.single_action_space)

    def act_once(agent: Agent, carry: Any, timestep: TimeStep, key: Any) -> tuple[Any, Any]:
        action, carry, _ = algorithm.act(agent, carry, timestep, key, greedy)
        return as_taken(action), carry

    def act_all(agent: Agent, carry: Any, timestep: TimeStep, key: Any, time: int) -> tuple[Any, Any]:
        key = jax.random.fold_in(key, time)
        timestep = jax.tree.map(lambda leaf: jnp.reshape(leaf, (*shape, *leaf.shape[1:])), timestep)
        one = act_once if runs is None else jax.vmap(act_once, (0, 0, 0, None))
        action, carry = one(agent, carry, timestep, key)
        return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[len(shape) :]), action), carry

    act = jax.jit(act_all)
    agent = jax.device_put(jax.device_get(agent))  # runs may be on several devices, observations arrive on one
    carry = algorithm.initial_carry(episodes)
    if runs is not None:
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (runs, *leaf.shape)), carry)
    key = jax.random.key(seed)
    try:
        observation, info = environments.reset(seed=seed)
        running, first = np.ones(count, bool), np.ones(count, bool)
        reward = np.zeros(count, np.float32)
        seen = TimeStep(observation, first, mask_of(observation, info), reward)
        _check_fit(lambda: act(agent, carry, seen, key, 0), env, environments)
        returns, lengths, by_itself = np.zeros(count), np.zeros(count), np.zeros(count, bool)
        for time in range(max_steps):
            seen = TimeStep(observation, first, mask_of(observation, info), np.asarray(reward, np.float32))
            action, carry = act(agent, carry, seen, key, time)
            action = np.asarray(action)
            if watch is not None:
                watch(action, running)
            observation, reward, terminated, truncated, info = environments.step(action)
            returns[running] += np.asarray(reward, float)[running]
            lengths += running
            by_itself |= running & terminated
            running &= ~(terminated | truncated)  # later steps are of another episode, or only reset
            if not running.any():
                return Scores(*(one.reshape(shape) for one in (returns, lengths, by_itself)))
            first = np.zeros(count, bool)
    finally:
        environments.close()
    raise ValueError(f"an episode of {env} was not over after max_steps={max_steps} steps; give it a time limit")


def _check_fit(acting: Callable[[], Any], env: str, environments: gymnasium.vector.VectorEnv) -> None:
    """Raises ValueError if the agent cannot act on the observations of the environments."""
    try:
        jax.eval_shape(acting)
    except (FlaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"the agent does not fit {env}, whose observations are {environments.single_observation_space} and whose "
            f"actions are {environments.single_action_space}; evaluate it where it was trained, or where these are the "
            f"same ({str(error).splitlines()[0]})"
        ) from error
