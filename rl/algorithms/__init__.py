"""Algorithms, one per file; each function returns an `rl.Algorithm`, a named tuple of pure functions."""

from rl.algorithms.a2c import a2c
from rl.algorithms.alphazero import alphazero
from rl.algorithms.crossq import crossq
from rl.algorithms.dqn import dqn, rainbow
from rl.algorithms.expected_sarsa import expected_sarsa
from rl.algorithms.muzero import muzero
from rl.algorithms.ppo import ppo
from rl.algorithms.q_learning import q_learning
from rl.algorithms.reinforce import reinforce
from rl.algorithms.sac import sac
from rl.algorithms.sarsa import sarsa
from rl.algorithms.td3 import ddpg, td3
from rl.algorithms.tqc import tqc

__all__ = [
    "a2c",
    "alphazero",
    "crossq",
    "ddpg",
    "dqn",
    "expected_sarsa",
    "muzero",
    "ppo",
    "q_learning",
    "rainbow",
    "reinforce",
    "sac",
    "sarsa",
    "td3",
    "tqc",
]
