"""TD3 and DDPG, on compiled twins or on the host; scored in Gymnasium.

Run:       jdl run td3 --seeds 10                      (Pendulum-v1)
           jdl run td3 --method ddpg --seeds 10
           jdl run td3 --env HalfCheetah-v5 --seeds 3
Result:    return -152.9 [-160, -145.8] (10 seeds, 107 min)
"""

import dataclasses
import functools
from typing import Any, Literal

import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    env: str = "Pendulum-v1"
    method: Literal["td3", "ddpg"] = "td3"
    num_steps: int | None = None  # steps of each environment between learning
    updates_per_rollout: int | None = None  # batches in each phase of learning; one for each step of all environments
    batch_size: int | None = None
    capacity: int | None = None
    learning_starts: int | None = None  # environment steps with random actions before
    learning_rate: float | None = None
    discount: float | None = None
    tau: float | None = None
    n_step: int | None = None
    noise: float | None = None  # standard deviation while exploring
    drifting: bool | None = None  # Ornstein-Uhlenbeck noise instead of independent noise
    normalize_observations: bool | None = None


SMOKE = {"total_steps": 160, "num_episodes": 2, "capacity": 1024, "learning_starts": 32, "batch_size": 16}
RECORDS = {
    "": jdl.Record(
        seeds=10, statistic="iqm", bars={"return": ">= -155"}, beside="RL Zoo -151.9 (one run, 750 episodes)"
    ),
    "ddpg": jdl.Record(
        {"method": "ddpg"}, seeds=10, statistic="iqm", bars={"return": ">= -160"}, beside="RL Zoo -152.1 (one run)"
    ),
    "half_cheetah": jdl.Record(
        {"env": "HalfCheetah-v5"},
        seeds=3,
        statistic="iqm",
        bars={"return": ">= 8000"},
        beside="RL Zoo 8488 (one run)",
    ),
}


COMMON = {
    "total_steps": 20_000,
    "num_envs": 1,
    "num_steps": 1,
    "batch_size": 256,
    "capacity": 1_000_000,
    "learning_starts": 1000,
    "learning_rate": 1e-3,
    "discount": 0.99,
    "tau": 0.005,
    "n_step": 1,
    "noise": 0.1,
    "drifting": False,
    "normalize_observations": False,
}
TUNED: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {"discount": 0.98, "capacity": 20_000},
    "MountainCarContinuous-v0": {"total_steps": 300_000, "noise": 0.5, "drifting": True},
    "HalfCheetah-v5": {"total_steps": 300_000, "capacity": 300_000, "learning_starts": 10_000},
}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """TD3 or DDPG with Adam."""
    chosen = settings(config)
    kind = rl.exploration.ornstein_uhlenbeck if chosen["drifting"] else rl.exploration.normal
    options = rl.options(rl.td3, chosen)
    options |= {"optimizer": optax.adam(chosen["learning_rate"]), "noise": kind(chosen["noise"])}
    return getattr(rl, config.method)(observation_space, action_space, **options)


learner, main = rl.experiment(algorithm, settings)
