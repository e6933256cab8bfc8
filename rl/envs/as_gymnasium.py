"""A compiled environment behind Gymnasium's interface, for evaluation and for tools that know no other."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

from rl.envs.environment import Environment, Outcome
from rl.envs.libraries import of_a_library


class AsGymnasium(gymnasium.Env):
    """A compiled environment as Gymnasium's, stepped by the host. Its resets follow the seed; masks are in the info.

    Args:
        env: the environment, or the name of one of a library (`pgx:2048`), or a function that makes one. What is
            compiled is shared by all that have the same name or function.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Environment | str | Callable[[], Environment], render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._reset, self._step, compiled = _functions(env) if isinstance(env, Environment) else _shared(env)
        self.observation_space, self.action_space = compiled.observation_space, compiled.action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Begin an episode.

        Args:
            seed: of this episode and those after it; None goes on from the last seed.
            options: not used.
        """
        super().reset(seed=seed)
        self._key = jax.random.key(int(self.np_random.integers(2**31)))
        self._steps = 0
        self._state, outcome = self._reset(self._key)
        return self._seen(outcome)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Take an action.

        Args:
            action: as the environment takes it.
        """
        self._steps += 1
        self._state, outcome = self._step(self._state, action, self._key, self._steps)
        observation, info = self._seen(outcome)
        return observation, float(outcome.reward), bool(outcome.terminated), bool(outcome.truncated), info

    def _seen(self, outcome: Outcome) -> tuple[Any, dict]:
        mask = outcome.action_mask
        observation = jax.tree.map(np.asarray, outcome.observation)
        if isinstance(self.observation_space, gymnasium.spaces.Discrete):
            observation = int(observation)
        return observation, {} if mask is None else {"action_mask": np.asarray(mask)}


@functools.lru_cache(maxsize=16)  # the copies of an environment in a vector share what is compiled
def _shared(env: str | Callable[[], Environment]) -> tuple[Callable, Callable, Environment]:
    return _functions(of_a_library(env) if isinstance(env, str) else env())


def _functions(env: Environment) -> tuple[Callable, Callable, Environment]:
    def step(state: Any, action: Any, key: Any, time: int) -> tuple[Any, Outcome]:
        return env.step(state, action, jax.random.fold_in(key, time))

    return jax.jit(env.reset), jax.jit(step), env
