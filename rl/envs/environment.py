"""A JAX environment: pure functions of one environment; `jax.vmap` makes it many, wrappers change what it does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

EnvState = Any  # a pytree of arrays


class Outcome(NamedTuple):
    """What an environment answers to an action, or to a reset (whose reward is zero)."""

    observation: Any  # of the state that was reached, before any reset
    reward: Any
    terminated: Any  # nothing comes after
    truncated: Any  # something would come after, and is not played
    action_mask: Any = None  # true for the actions allowed next; None where all always are


class Environment(NamedTuple):
    """Pure functions and Gymnasium spaces; no axis of environments.

    `step` does not reset: what it returns is the true outcome. Who wants episodes to follow each other says so
    (`auto_reset`).
    """

    name: str  # the id of the Gymnasium environment that it is the twin of
    reset: Callable[[Array], tuple[EnvState, Outcome]]  # (key) -> state, outcome
    step: Callable[[EnvState, Any, Array], tuple[EnvState, Outcome]]  # (state, action, key) -> state, outcome
    observation_space: gymnasium.Space
    action_space: gymnasium.Space


class Timed(NamedTuple):
    """The state of an environment with a time limit."""

    state: EnvState
    elapsed: Array


def time_limit(env: Environment, max_steps: int) -> Environment:
    """Truncate episodes after a number of steps; one that terminates at that very step has terminated."""
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
    """`(state, action, key) -> state, outcome, now`: a step, then a reset where the episode ended.

    `outcome` is what the action led to, `now` what the agent sees next: the first outcome of a new episode where one
    begins, else `outcome` itself.
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
