"""A JAX environment: pure functions of a single environment. `jax.vmap` runs many; wrappers change its behavior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

EnvState = Any  # a pytree of arrays


class Outcome(NamedTuple):
    """The response of an environment to an action, or to a reset.

    Attributes:
        observation: the observation of the state that was reached, before any reset.
        reward: scalar float32; zero for a reset.
        terminated: scalar bool; the episode has ended.
        truncated: scalar bool; the episode was cut off and would have continued.
        action_mask: [actions], bool; True for the actions that are allowed next. None if all always are.
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    action_mask: Any = None


class Environment(NamedTuple):
    """An environment as pure functions and Gymnasium spaces, without an axis of environments.

    `step` never resets: it returns the true outcome of the action. `auto_reset` starts a new episode after each one.

    Attributes:
        name: id of the Gymnasium environment that this is a twin of.
        reset: `(key) -> (state, outcome)`.
        step: `(state, action, key) -> (state, outcome)`.
        observation_space: space of `Outcome.observation`.
        action_space: space of the actions that `step` takes.
    """

    name: str
    reset: Callable[[Array], tuple[EnvState, Outcome]]
    step: Callable[[EnvState, Any, Array], tuple[EnvState, Outcome]]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space


class Timed(NamedTuple):
    """The state of an environment with a time limit.

    Attributes:
        state: state of the environment itself.
        elapsed: scalar int32; steps since the reset.
    """

    state: EnvState
    elapsed: Array


def time_limit(env: Environment, max_steps: int) -> Environment:
    """The environment with a time limit; an episode that terminates at the limit is not truncated.

    Args:
        env: the environment to wrap.
        max_steps: steps after which an episode is truncated.

    Raises:
        ValueError: for `max_steps` below 1.
    """
    if max_steps < 1:
        raise ValueError(f"time_limit(max_steps={max_steps}): an episode has at least 1 step")

    def reset(key: Array) -> tuple[Timed, Outcome]:
        state, outcome = env.reset(key)
        return Timed(state, jnp.zeros((), jnp.int32)), outcome

    def step(timed: Timed, action: Any, key: Array) -> tuple[Timed, Outcome]:
        state, outcome = env.step(timed.state, action, key)
        elapsed = timed.elapsed + 1
        truncated = (outcome.truncated | (elapsed >= max_steps)) & ~outcome.terminated
        return Timed(state, elapsed), outcome._replace(truncated=truncated)

    return env._replace(reset=reset, step=step)


def auto_reset(env: Environment) -> Callable[[EnvState, Any, Array], tuple[EnvState, Outcome, Outcome]]:
    """A step function that starts a new episode when one ends.

    Args:
        env: the environment.

    Returns:
        `(state, action, key) -> (state, outcome, now)`. `outcome` is that of the action. `now` is the outcome that the
        agent acts on next: that of the reset where a new episode begins, else `outcome`.
    """

    def step(state: EnvState, action: Any, key: Array) -> tuple[EnvState, Outcome, Outcome]:
        step_key, reset_key = jax.random.split(key)
        stepped, outcome = env.step(state, action, step_key)
        fresh, first = env.reset(reset_key)
        ended = outcome.terminated | outcome.truncated
        return _where(ended, fresh, stepped), outcome, _where(ended, first, outcome)

    return step


def _where(condition: Any, one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
