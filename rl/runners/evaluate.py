"""Evaluation of agents in Gymnasium environments: fresh environments, the first episode of each, nothing else."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Float

from rl.runners.vector import make_vec, mask_of
from rl.spaces import legal
from rl.types import Agent, Algorithm, TimeStep


class Scores(NamedTuple):
    """Undiscounted returns and lengths of episodes."""

    returns: Float[np.ndarray, "*runs episodes"]
    lengths: Float[np.ndarray, "*runs episodes"]


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
) -> Scores:
    """Play episodes of a registered environment, each in an environment of its own.

    Taking the first episodes to end instead would favor short ones. runs: the agent's leaves have a leading axis of
    runs (`jdl.seeds`), and each run plays as many episodes. greedy: the likeliest action, else sampled ones. options:
    keywords for `gymnasium.make`. Raises ValueError for an agent that was trained on other spaces, and for an episode
    longer than `max_steps`.
    """
    if episodes < 1:
        raise ValueError(f"evaluate(episodes={episodes}): at least 1 episode")
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
    agent = jax.device_put(jax.device_get(agent))  # runs may lie on several devices, and observations come to one
    carry = algorithm.initial_carry(episodes)
    if runs is not None:
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (runs, *leaf.shape)), carry)
    key = jax.random.key(seed)
    try:
        observation, info = environments.reset(seed=seed)
        running, first = np.ones(count, bool), np.ones(count, bool)
        seen = TimeStep(observation, first, mask_of(observation, info))
        _check_fit(lambda: act(agent, carry, seen, key, 0), env, environments)
        returns, lengths = np.zeros(count), np.zeros(count)
        for time in range(max_steps):
            action, carry = act(agent, carry, TimeStep(observation, first, mask_of(observation, info)), key, time)
            observation, reward, terminated, truncated, info = environments.step(np.asarray(action))
            returns[running] += np.asarray(reward, float)[running]
            lengths += running
            running &= ~(terminated | truncated)  # what follows is another episode, or a step that an auto-reset faked
            if not running.any():
                return Scores(returns.reshape(shape), lengths.reshape(shape))
            first = np.zeros(count, bool)
    finally:
        environments.close()
    raise ValueError(f"an episode of {env} was not over after max_steps={max_steps} steps; give it a time limit")


def _check_fit(acting: Callable[[], Any], env: str, environments: gymnasium.vector.VectorEnv) -> None:
    """Raises ValueError where an agent cannot act on what the environments show."""
    try:
        jax.eval_shape(acting)
    except (FlaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"the agent does not fit {env}, whose observations are {environments.single_observation_space} and whose "
            f"actions are {environments.single_action_space}; evaluate it where it was trained, or where these are the "
            f"same ({str(error).splitlines()[0]})"
        ) from error
