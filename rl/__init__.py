"""Reinforcement learning on the learners, transforms and runs of `jdl`."""

from rl import algorithms, distributions, envs, networks, normalize, returns, spaces
from rl.algorithms import a2c, expected_sarsa, ppo, q_learning, reinforce, sarsa
from rl.evaluate import Scores, evaluate
from rl.load import load
from rl.on_device import episodes, on_device
from rl.tabular import greedy_policies
from rl.training import settings, train, updates
from rl.types import Algorithm, Experience, TimeStep

__all__ = [
    "Algorithm",
    "Experience",
    "Scores",
    "TimeStep",
    "a2c",
    "algorithms",
    "distributions",
    "envs",
    "episodes",
    "evaluate",
    "expected_sarsa",
    "greedy_policies",
    "load",
    "networks",
    "normalize",
    "on_device",
    "ppo",
    "q_learning",
    "reinforce",
    "returns",
    "sarsa",
    "settings",
    "spaces",
    "train",
    "updates",
]
