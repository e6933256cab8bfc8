"""Reinforcement learning, built on the learners, transforms and runs of `jdl`."""

from rl import (
    algorithms,
    backtest,
    distributions,
    envs,
    exploration,
    games,
    memory,
    networks,
    normalize,
    offline,
    returns,
    search,
    sensors,
    spaces,
    value_heads,
)
from rl.algorithms import (
    a2c,
    alphazero,
    crossq,
    ddpg,
    dqn,
    expected_sarsa,
    muzero,
    ppo,
    q_learning,
    rainbow,
    reinforce,
    sac,
    sarsa,
    td3,
    tqc,
)
from rl.check import check_env
from rl.exact import exact_returns, greedy_policies
from rl.load import load
from rl.reward_scale import scaled_rewards
from rl.runners.evaluate import Scores, evaluate
from rl.runners.on_device import episodes, on_device
from rl.runners.on_host import on_host
from rl.runners.training import Training, experiment, learner, options, settings, train, updates
from rl.runners.vector import make_vec
from rl.types import Algorithm, Experience, TimeStep
from rl.video import video

__all__ = [
    "Algorithm",
    "Experience",
    "Scores",
    "TimeStep",
    "Training",
    "a2c",
    "algorithms",
    "alphazero",
    "backtest",
    "check_env",
    "crossq",
    "ddpg",
    "distributions",
    "dqn",
    "envs",
    "episodes",
    "evaluate",
    "exact_returns",
    "expected_sarsa",
    "experiment",
    "exploration",
    "games",
    "greedy_policies",
    "learner",
    "load",
    "make_vec",
    "memory",
    "muzero",
    "networks",
    "normalize",
    "offline",
    "on_device",
    "on_host",
    "options",
    "ppo",
    "q_learning",
    "rainbow",
    "reinforce",
    "returns",
    "sac",
    "sarsa",
    "scaled_rewards",
    "search",
    "sensors",
    "settings",
    "spaces",
    "td3",
    "tqc",
    "train",
    "updates",
    "value_heads",
    "video",
]
