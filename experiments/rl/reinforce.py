"""REINFORCE, with a learnt baseline or with none, on environments with a compiled twin; scored in the real one.

Run:       jdl run reinforce --env CartPole-v1 --seeds 10      (--no-baseline)
Result:    return 500 [486.8, 500] (10 seeds, 25 s)
"""

import dataclasses
import functools
from typing import Any

import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    baseline: bool = True
    num_steps: int | None = None  # longer than an episode
    learning_rate: float | None = None  # of Adam, decays to zero over the run
    discount: float | None = None
    entropy_weight: float | None = None


SMOKE = {"total_steps": 256, "num_episodes": 2, "num_steps": 64}
RECORDS = {
    "": jdl.Record(
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 475"},
    ),
}


RENAMED = {"rollout": "num_steps"}  # since version 0.1
COMMON = {
    "total_steps": 500_000,
    "num_envs": 2,
    "num_steps": 1024,
    "learning_rate": 5e-3,  # at twice this, 1 seed in 5 falls and, as the rate decays, stays down
    "discount": 0.99,
    "entropy_weight": 0.0,
}
TUNED: dict[str, dict[str, Any]] = {}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """REINFORCE with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    optimizer = optax.adam(optax.linear_schedule(chosen["learning_rate"], 0.0, count))
    return rl.reinforce(observation_space, action_space, optimizer=optimizer, **rl.options(rl.reinforce, chosen))


learner, main = rl.experiment(algorithm, settings)
