"""A car with a camera and instruments: what each sensor alone can do, both together, and both with failures.

Run:       jdl run driving --seeds 5                      (both sensors)
           jdl run driving --sensors camera --seeds 5     (state: the instruments alone)
           jdl run driving --failures 0.5 --seeds 5       (sensors fail while it trains; also scored without each)
Result:    return 45.83 [44.7, 46.32]; return (without camera) 0.1304 [-0.02849, 0.4352]; return (without state) 4.696
           [4.131, 5.009] (5 seeds, 17 min)
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import optax
from gymnasium import Space, spaces

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is common."""

    env: str = "Driving-v0"
    sensors: Literal["both", "camera", "state"] = "both"
    failures: float = 0.0  # probability that a sensor fails for an episode of training
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None


SMOKE = {"total_steps": 4096, "num_episodes": 2}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        bars={"return": ">= 42"},  # above the camera's interval
        shown=("return", "return (without camera)", "return (without state)"),
        beside="20 m/s all the time: 60",
    ),
    "camera": jdl.Record({"sensors": "camera"}, seeds=5, shown=("return",)),
    "state": jdl.Record({"sensors": "state"}, seeds=5, shown=("return",)),
    "failures": jdl.Record(
        {"failures": 0.5, "total_steps": 800_000},
        seeds=5,
        bars={"return (without state)": ">= 35", "return (without camera)": ">= 0"},
        shown=("return", "return (without camera)", "return (without state)"),
        beside="bars: about what the other sensor earns alone",
    ),
}

COMMON = {
    "total_steps": 400_000,
    "num_envs": 32,
    "num_steps": 64,
    "epochs": 4,
    "minibatches": 8,
    "learning_rate": 1e-3,
    "discount": 0.98,
    "gae_lambda": 0.95,
    "entropy_weight": 0.0,
    "shared": True,
}
CONVOLUTIONS = ((8, 4, 4), (16, 3, 2))  # features, size, stride: small, since they take most of the time

settings = functools.partial(rl.settings, common=COMMON, tuned={})


def ppo(config: Config, action_space: Space, observation_space: spaces.Dict) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    network = rl.networks.torso(observation_space, (64, 64), nn.tanh, convolutions=CONVOLUTIONS)
    return rl.ppo(observation_space, action_space, network, optimizer=optimizer, **rl.options(rl.ppo, chosen))


def algorithm(
    config: Config, observation_space: Space, action_space: Space, dropped: tuple[str, ...] = ()
) -> rl.Algorithm:
    """PPO with the config's sensors; with both, `dropped` switches some of them off."""
    make = functools.partial(ppo, config, action_space)
    if config.sensors == "both":
        return rl.sensors.failing(make, observation_space, config.failures, dropped=dropped)
    return rl.sensors.only(make, observation_space, (config.sensors,))


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    return rl.learner(functools.partial(algorithm, config), settings(config))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train, and evaluate the final agents with their sensors, and if they have both also without each of them."""
    if config.separate(run):
        return jdl.separately(run)
    trained = rl.train(functools.partial(algorithm, config), settings(config), run)
    twin = rl.envs.make(config.env)
    without = {}
    for sensor in rl.sensors.names(twin.observation_space) if config.sensors == "both" else ():
        blind = algorithm(config, twin.observation_space, twin.action_space, (sensor,))
        scores = rl.evaluate(
            blind, trained.agents, config.env, episodes=config.num_episodes, runs=len(run.seeds), seed=10_000
        )
        without[f"return (without {sensor})"] = scores.returns.mean(-1)
    return trained.scores | without
