"""CarRacing from a camera and the car's instruments, without the strip that shows them; on the host.

Run:       jdl run car_racing --seeds 2
           jdl run car_racing --sensors camera --seeds 2     (state: the instruments alone)
Result:    not measured yet
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import optax
from gymnasium import Space, spaces

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is common."""

    env: str = "CarRacingSensors-v0"
    sensors: Literal["both", "camera", "state"] = "both"
    num_episodes: int = 20
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None


SMOKE = {"total_steps": 512, "num_envs": 2, "num_episodes": 1}
RECORDS = {
    "": jdl.Record(
        seeds=2,
        bars={"return": ">= 400"},
        beside="RL Zoo at 4,000,000 steps, from pictures: PPO 154 ± 74, with an LSTM 862 ± 97 (one run each)",
    ),
}
COMMON = {
    "total_steps": 125_000,  # 500,000 frames
    "num_envs": 8,
    "num_steps": 128,
    "epochs": 6,
    "minibatches": 8,
    "learning_rate": 5e-4,
    "discount": 0.98,
    "gae_lambda": 0.95,
    "entropy_weight": 0.0,
    "shared": True,
}
CONVOLUTIONS = ((16, 5, 2), (32, 3, 2), (32, 3, 2))  # features, size, stride

settings = functools.partial(rl.settings, common=COMMON, tuned={})


def ppo(config: Config, action_space: Space, observation_space: spaces.Dict) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero, on rewards of about unit scale."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    network = rl.networks.torso(observation_space, (128, 128), nn.relu, convolutions=CONVOLUTIONS)
    plain = rl.ppo(observation_space, action_space, network, optimizer=optimizer, **rl.options(rl.ppo, chosen))
    return rl.scaled_rewards(plain, num_envs=chosen["num_envs"], discount=chosen["discount"])


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with the config's sensors."""
    make = functools.partial(ppo, config, action_space)
    chosen = rl.sensors.names(observation_space) if config.sensors == "both" else (config.sensors,)
    return rl.sensors.only(make, observation_space, chosen)


learner, main = rl.experiment(algorithm, settings)
