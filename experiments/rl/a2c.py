"""Advantage actor-critic on environments with a compiled twin; scored in the real Gymnasium environment.

Run:       jdl run a2c --env CartPole-v1 --seeds 10
Result:    return 500 [500, 500] (10 seeds, 42 s)
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

    num_steps: int | None = None
    learning_rate: float | None = None  # of Adam, decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None
    normalize_advantages: bool | None = None
    normalize_observations: bool | None = None


SMOKE = {"total_steps": 256, "num_episodes": 2}
RECORDS = {
    "": jdl.Record(
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 475"},
        beside="RL Zoo 500 (one run)",
    ),
}


RENAMED = {  # since version 0.1
    "rollout": "num_steps",
    "trace": "gae_lambda",
    "normalise_advantages": "normalize_advantages",
    "normalise_observations": "normalize_observations",
}
COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "num_steps": 16,
    "learning_rate": 2e-3,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "entropy_weight": 0.0,
    "normalize_advantages": True,
    "normalize_observations": False,
}
TUNED: dict[str, dict[str, Any]] = {"CartPole-v1": {"discount": 0.98}}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """A2C with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    return rl.a2c(observation_space, action_space, optimizer=optimizer, **rl.options(rl.a2c, chosen))


learner, main = rl.experiment(algorithm, settings)
