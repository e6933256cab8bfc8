"""Acting as compiled programs."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp

from jdl.learner import Batch, State
from rl.spaces import legal
from rl.types import Algorithm, TimeStep


def predictor(algorithm: Algorithm, action_space: gymnasium.Space) -> Callable[[State, Batch], Any]:
    """A learner's `predict`: greedy actions, as the environment takes them, for observations [batch, ...]."""
    as_taken = legal(action_space)

    def predict(state: State, batch: Batch) -> Any:
        observation = batch["input"] if isinstance(batch, dict) and "input" in batch else batch
        size = len(jax.tree.leaves(observation)[0])
        mask = observation.get("action_mask") if isinstance(observation, Mapping) else None
        timestep = TimeStep(observation, jnp.ones(size, bool), mask)
        action, _, _ = algorithm.act(state.agent, algorithm.initial_carry(size), timestep, state.key, True)
        return as_taken(action)

    return predict
