"""Load trained agents from their run directories."""

from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

import jdl
from jdl.experiment.load import LoadedRun
from rl.envs.libraries import gymnasium_id
from rl.runners.vector import spaces_of
from rl.spaces import zeros


class LoadedAgent:
    """A trained agent that acts greedily: `agent.act(observation)`, `agent.act(observation, info["action_mask"])`.

    An agent with a memory remembers what it was shown; call `reset` where an episode begins.

    Args:
        run: the loaded run.
        index: position of the agent's seed among those of the run.
        space: the observation space that observations are checked against; None for no check.
    """

    def __init__(self, run: LoadedRun, index: int, space: gymnasium.Space | None) -> None:
        self.run, self.index, self.space = run, index, space
        self._carry: Any = None

    def reset(self) -> None:
        """Forget what was remembered: a new episode begins."""
        self._carry = None

    def act(self, observation: Any, action_mask: Any = None, reward: float = 0.0) -> np.ndarray:
        """The greedy action for one observation.

        Args:
            observation: as the environment returns it, without a batch axis.
            action_mask: [actions]; the actions that are allowed, if the environment gives a mask beside the
                observation (in its info), as Taxi does. By default all, or those of the observation's own mask.
            reward: of the step before, for agents that use it (`rl.offline.decision_transformer`).

        Returns:
            The action, as the environment takes it.

        Raises:
            ValueError: for an observation of another shape than those of the run's environment.
        """
        if self.space is not None:
            _check(observation, self.space, self.run)
        batch = {"input": observation, "reward": np.float32(reward)}
        batch |= {} if action_mask is None else {"action_mask": np.asarray(action_mask) > 0}
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
        assert self.run.learner.predict is not None  # learners of `rl` have one
        result = self.run.learner.predict(self.run.state, {**batch, "carry": self._carry})
        carry = jax.tree.map(lambda leaf: np.asarray(leaf)[self.index], result["carry"])
        self._carry = carry if jax.tree.leaves(carry) else None
        return np.asarray(result["action"])[self.index, 0]


def load(path: str | Path, index: int = 0) -> LoadedAgent:
    """Load the agent that an experiment saved in a run directory.

    The experiment must define `learner(config)`, as those in ./experiments do. `agent.run` is the result of `jdl.load`.

    Args:
        path: the run directory.
        index: position of the agent's seed among those of the run, counted from 0.

    Raises:
        ValueError: for a seed that the run does not have.
    """
    run = jdl.load(path)
    if not 0 <= index < len(run.seeds):
        raise ValueError(f"load(index={index}): {run.path} has {len(run.seeds)} seed(s), counted from 0")
    own = run.path / f"seed-{run.seeds[index]}"  # exists if the seeds were trained in separate processes
    name = run.config.get("env")
    space = (
        spaces_of(name, run.config.get("vectorization"))[0]
        if name and gymnasium_id(name).rpartition(":")[2] in gymnasium.registry
        else None
    )
    return LoadedAgent(jdl.load(own), 0, space) if own.is_dir() else LoadedAgent(run, index, space)


def _check(observation: Any, space: gymnasium.Space, run: LoadedRun) -> None:
    given, wanted = (jax.tree.map(np.shape, tree) for tree in (observation, zeros(space)))
    if given != wanted:
        raise ValueError(
            f"the agent of {run.path} was trained on {run.config['env']}, whose observations have the shape {wanted}; "
            f"it was given {given}"
        )
