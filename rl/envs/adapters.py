"""Adapters from other libraries' JAX environments to `Environment`.

They import none of these libraries: the caller has imported the one that made the environment. All bypass the library's
own auto-reset, which would replace the last observation of an episode.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from rl.envs.environment import Environment, Outcome, time_limit


def from_functional(env: Any, name: str, max_steps: int | None = None, params: Any = None) -> Environment:
    """A functional environment from Gymnasium.

    Args:
        env: a `gymnasium.experimental.functional.FuncEnv`.
        name: id of the Gymnasium environment in which agents are evaluated.
        max_steps: steps after which an episode is truncated; None for no limit.
        params: parameters of the environment; None for its defaults.
    """
    extra = {} if params is None else {"params": params}

    def seen(state: Any, key: Array) -> Any:
        return env.observation(state, key, **extra)

    def reset(key: Array) -> tuple[Any, Outcome]:
        state = env.initial(key, **extra)
        return state, _first(seen(state, key))

    def step(state: Any, action: Any, key: Array) -> tuple[Any, Outcome]:
        keys = jax.random.split(key, 3)
        after = env.transition(state, action, keys[0], **extra)
        reward = jnp.asarray(env.reward(state, action, after, keys[1], **extra), jnp.float32).reshape(())
        terminated = jnp.asarray(env.terminal(after, keys[1], **extra), bool).reshape(())
        return after, Outcome(seen(after, keys[2]), reward, terminated, np.False_)

    adapted = Environment(name, reset, step, env.observation_space, env.action_space)
    return adapted if max_steps is None else time_limit(adapted, max_steps)


def from_gymnax(env: Any, params: Any = None) -> Environment:
    """An environment from gymnax 1.0 or later: `from_gymnax(*gymnax.make("Breakout-MinAtar"))`.

    Args:
        env: the gymnax environment.
        params: its parameters; None for its defaults.

    Raises:
        ValueError: for an environment from an earlier gymnax, and for spaces that are neither Discrete nor Box.
    """
    if not hasattr(env, "is_truncated"):
        raise ValueError(f"{env} does not tell truncation from termination; use gymnax 1.0 or later")
    params = env.default_params if params is None else params

    def reset(key: Array) -> tuple[Any, Outcome]:
        observation, state = env.reset_env(key, params)
        return state, _first(observation)

    def step(state: Any, action: Any, key: Array) -> tuple[Any, Outcome]:
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(env.is_truncated(state, params), bool) & ~terminated
        return state, Outcome(observation, jnp.asarray(reward, jnp.float32), terminated, truncated)

    return Environment(env.name, reset, step, _space(env.observation_space(params)), _space(env.action_space(params)))


def from_brax(env: Any, name: str = "brax", max_steps: int = 1000) -> Environment:
    """An environment from Brax: `from_brax(brax.envs.get_environment("ant"))`.

    Args:
        env: the Brax environment, without Brax's wrappers.
        name: name of the environment.
        max_steps: steps after which an episode is truncated.
    """

    def reset(key: Array) -> tuple[Any, Outcome]:
        state = env.reset(key)
        return state, _first(state.obs)

    def step(state: Any, action: Any, key: Array) -> tuple[Any, Outcome]:
        after = env.step(state, action)
        return after, Outcome(after.obs, after.reward.astype(jnp.float32), after.done > 0, np.False_)

    seen = spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32)
    adapted = Environment(name, reset, step, seen, spaces.Box(-1, 1, (env.action_size,), np.float32))
    return time_limit(adapted, max_steps)


def from_pgx(env: Any, max_steps: int | None = None) -> Environment:
    """A single-player game from pgx: `from_pgx(pgx.make("2048"))`. Legal actions become the action mask.

    MinAtar's games have no mask: there every action is always allowed.

    Args:
        env: the pgx game.
        max_steps: steps after which an episode is truncated; None for no limit. Some games never end by themselves.

    Raises:
        ValueError: for games with more players.
    """
    if env.num_players != 1:
        raise ValueError(
            f"from_pgx: {env.id} is for {env.num_players} players; one agent needs a game for one "
            "(rl.alphazero plays those for two: rl.games.from_pgx)"
        )

    seen = jax.eval_shape(lambda key: env.init(key).observation, jax.random.key(0))
    truths, masked = seen.dtype == np.bool_, not env.id.startswith("minatar-")

    def outcome(state: Any) -> Outcome:
        rewards = state.rewards[0].astype(jnp.float32)
        truncated = state.truncated & ~state.terminated
        observation = state.observation if truths else state.observation.astype(jnp.float32)
        mask = state.legal_action_mask if masked else None
        return Outcome(observation, rewards, state.terminated, truncated, mask)

    def reset(key: Array) -> tuple[Any, Outcome]:
        state = env.init(key)
        return state, outcome(state)

    def step(state: Any, action: Any, key: Array) -> tuple[Any, Outcome]:
        state = env.step(state, action, key)
        return state, outcome(state)

    low, high, dtype = (0, 1, np.bool_) if truths else (-np.inf, np.inf, np.float32)
    space = spaces.Box(low, high, seen.shape, dtype)  # type: ignore[arg-type]  # Gymnasium's types leave out booleans
    adapted = Environment(f"pgx/{env.id}", reset, step, space, spaces.Discrete(env.num_actions))
    return adapted if max_steps is None else time_limit(adapted, max_steps)


def _first(observation: Any) -> Outcome:
    return Outcome(observation, jnp.float32(0), np.False_, np.False_)


def _space(space: Any) -> spaces.Space:
    """The Gymnasium space for a gymnax space."""
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    if hasattr(space, "low") and hasattr(space, "shape"):
        low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32)
    raise ValueError(f"from_gymnax: the space {space} is neither Discrete nor Box")
