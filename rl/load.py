"""Trained agents, from their run directories."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import jdl
from jdl.experiment import LoadedRun


class LoadedAgent:
    """An agent of a run, to act greedily with: `agent.act(observation)`."""

    def __init__(self, run: LoadedRun, index: int) -> None:
        if not 0 <= index < len(run.seeds):
            raise ValueError(f"load(index={index}): {run.path} has {len(run.seeds)} seed(s), counted from 0")
        self.run = run
        self.index = index

    def act(self, observation: Any) -> np.ndarray:
        """The action for one observation, as the environment gives and takes them."""
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation)
        return np.asarray(self.run.predict(batch))[self.index, 0]


def load(path: str | Path, index: int = 0) -> LoadedAgent:
    """The agent that an experiment on the device left in a run directory; index: which of the run's seeds.

    The experiment needs a `learner(config)`, which those in ./experiments have; `agent.run` is what `jdl.load` gives.
    """
    return LoadedAgent(jdl.load(path), index)
