"""Soft actor-critic, truncated quantile critics and CrossQ, on compiled twins or on the host; scored in Gymnasium.

Run:       jdl run sac --seeds 10                      (Pendulum-v1)
           jdl run sac --method tqc --seeds 10         (crossq)
           jdl run sac --env HalfCheetah-v5 --seeds 5  (Hopper-v5, LunarLanderContinuous-v3)
Result:    return -145.7 [-150, -141.3] (10 seeds, 11 min)
"""

import dataclasses
from typing import Any, Literal

import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    env: str = "Pendulum-v1"
    method: Literal["sac", "tqc", "crossq"] = "sac"
    num_steps: int | None = None  # steps of each environment between learning
    updates_per_rollout: int | None = None  # batches in each phase of learning; one for each step of all environments
    batch_size: int | None = None
    capacity: int | None = None
    learning_starts: int | None = None  # environment steps with random actions before
    learning_rate: float | None = None
    discount: float | None = None
    tau: float | None = None
    temperature: float | None = None  # of the entropy; learned by default
    critics: int | None = None
    policy_delay: int | None = None  # updates of the critics for each one of the actor
    n_step: int | None = None
    width: int | None = None  # of CrossQ's critics
    noise: float | None = None  # standard deviation of Ornstein-Uhlenbeck noise; 0 for none
    state_dependent: int | None = None  # steps that a function from states to noise is kept for (gSDE); 0 for none
    normalize_observations: bool | None = None


SMOKE = {"total_steps": 160, "num_episodes": 2, "capacity": 1024, "learning_starts": 32, "batch_size": 16}
RECORDS = {
    "": jdl.Record(
        seeds=10, statistic="iqm", bars={"return": ">= -157"}, beside="RL Zoo -157.0 ± 88.7 (one run, 750 episodes)"
    ),
    "tqc": jdl.Record(
        {"method": "tqc"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= -155"},
        beside="RL Zoo -151.3 (one run)",
    ),
    "crossq": jdl.Record(
        {"method": "crossq"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= -157"},
        beside="SAC of RL Zoo -157.0 ± 88.7 (one run, 750 episodes)",
    ),
    "mountain_car": jdl.Record(
        {"env": "MountainCarContinuous-v0"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 93"},
        beside="RL Zoo, with state-dependent exploration, 94.7 ± 1.1 (one run)",
    ),
    "half_cheetah": jdl.Record(
        {"env": "HalfCheetah-v5"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 4960"},
        beside="RL Zoo 4961 (one run); Dopamine 5470 ± 548, 5 runs",
    ),
    "half_cheetah_long": jdl.Record(
        {"env": "HalfCheetah-v5", "total_steps": 300_000},
        seeds=3,
        statistic="iqm",
        bars={"return": ">= 7200"},
        beside="RL Zoo 7197 (one run); Dopamine 8820 ± 431, 5 runs",
    ),
    "hopper": jdl.Record(
        {"env": "Hopper-v5"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 2500"},
        beside="RL Zoo 3052 (one run, v3); Dopamine 3035 ± 508, 5 runs (v2)",
    ),
    "tqc_hopper": jdl.Record(
        {"env": "Hopper-v5", "method": "tqc"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 2500"},
        beside="RL Zoo 3400 (one run, v3)",
    ),
    "lunar_lander": jdl.Record(
        {"env": "LunarLanderContinuous-v3"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 200"},
        beside="RL Zoo 260 ± 65 (one run, 500,000 steps)",
    ),
}


COMMON = {
    "total_steps": 20_000,
    "num_envs": 1,
    "num_steps": 1,
    "batch_size": 256,
    "capacity": 1_000_000,
    "learning_starts": 100,
    "learning_rate": 3e-4,
    "discount": 0.99,
    "tau": 0.005,
    "critics": 2,
    "policy_delay": 1,
    "n_step": 1,
    "noise": 0.0,
    "state_dependent": 0,
    "width": 256,
    "normalize_observations": False,
}
CROSSQ = {"policy_delay": 3, "learning_rate": 1e-3}  # Bhatt et al. 2024, table 2, with narrower critics
TUNED: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {"learning_rate": 1e-3, "capacity": 20_000},
    "MountainCarContinuous-v0": {"total_steps": 50_000, "capacity": 50_000, "noise": 0.5},
    "HalfCheetah-v5": {
        "total_steps": 100_000,
        "capacity": 300_000,
        "learning_starts": 5000,
        "learning_rate": 1e-3,
    },
    "Hopper-v5": {"total_steps": 200_000, "capacity": 200_000, "learning_starts": 5000},
    "LunarLanderContinuous-v3": {"total_steps": 200_000, "capacity": 200_000, "learning_starts": 5000},
}


def settings(config: Config) -> dict[str, Any]:
    """The config with what belongs to its method, and what is tuned for its environment."""
    return rl.settings(config, {**COMMON, **(CROSSQ if config.method == "crossq" else {})}, TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """SAC, TQC or CrossQ with Adam."""
    chosen = settings(config)
    noise = rl.exploration.ornstein_uhlenbeck(chosen["noise"]) if chosen["noise"] else None
    if chosen["state_dependent"]:
        noise = rl.exploration.state_dependent(chosen["state_dependent"])
    method = getattr(rl, config.method)
    # Momentum of the gradients counts for less in CrossQ, whose goals move at each update.
    optimizer = optax.adam(chosen["learning_rate"], b1=0.5 if config.method == "crossq" else 0.9)
    accepted = rl.options(rl.sac if config.method == "tqc" else method, chosen)
    return method(observation_space, action_space, **accepted | {"optimizer": optimizer, "noise": noise})


learner, main = rl.experiment(algorithm, settings)
