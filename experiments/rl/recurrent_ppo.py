"""PPO with a recurrent memory, where one observation does not tell the state; scored in Gymnasium.

Run:       jdl run recurrent_ppo --seeds 10                         (CartPoleNoVel-v1: no velocities)
           jdl run recurrent_ppo --env PendulumNoVel-v1 --seeds 10
           jdl run recurrent_ppo --env MemoryChain20-v0 --seeds 5   (lengths 1 to 10, 12, 14, 17, 20, 25, 30, ... 100)
           jdl run recurrent_ppo --env RepeatFirstEasy-v0 --seeds 5
Result:    return 500 [500, 500] (10 seeds, 6 min)
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

    env: str = "CartPoleNoVel-v1"
    cell: Literal["gru", "lstm", "none"] = "gru"
    width: int | None = None  # numbers that are remembered
    num_steps: int | None = None  # also how far back gradients reach
    epochs: int | None = None
    minibatches: int | None = None  # at most the number of environments
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None
    shared: bool | None = None  # one torso and memory for actor and critic
    normalize_observations: bool | None = None
    normalize_rewards: bool | None = None  # divide them by the running standard deviation of returns


SMOKE = {"total_steps": 2048, "num_episodes": 2}
RECORDS = {
    "": jdl.Record(seeds=10, statistic="iqm", bars={"return": ">= 475"}, beside="RL Zoo, with an LSTM, 500 (one run)"),
    "lstm": jdl.Record({"cell": "lstm"}, seeds=10, statistic="iqm", bars={"return": ">= 475"}),
    "none": jdl.Record({"cell": "none"}, seeds=10, statistic="iqm"),
    "pendulum": jdl.Record(
        {"env": "PendulumNoVel-v1"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= -218"},
        beside="RL Zoo, with an LSTM, -217.9 ± 140 (one run)",
    ),
    "repeat_first": jdl.Record(
        {"env": "RepeatFirstEasy-v0"}, seeds=5, statistic="iqm", bars={"return": ">= 0.95"}, beside="at best 1"
    ),
    "repeat_first-none": jdl.Record({"env": "RepeatFirstEasy-v0", "cell": "none"}, seeds=5, statistic="iqm"),
}


COMMON = {
    "total_steps": 100_000,
    "num_envs": 8,
    "num_steps": 128,
    "width": 64,
    "epochs": 10,
    "minibatches": 8,
    "learning_rate": 1e-3,
    "discount": 0.98,
    "gae_lambda": 0.8,
    "entropy_weight": 0.0,
    "shared": False,
    "normalize_observations": True,
    "normalize_rewards": False,
}
RECALL = {"num_envs": 32, "epochs": 4, "minibatches": 4, "gae_lambda": 0.95, "discount": 0.99}
TUNED: dict[str, dict[str, Any]] = {
    "CartPoleNoVel-v1": {"num_envs": 4, "num_steps": 256, "minibatches": 4, "normalize_rewards": True},
    "RepeatFirstEasy-v0": {**RECALL, "total_steps": 1_000_000},
    "PendulumNoVel-v1": {
        "num_envs": 4,
        "num_steps": 512,
        "minibatches": 4,
        "discount": 0.9,
        "gae_lambda": 0.95,
        "normalize_rewards": True,
    },
    **{f"MemoryChain{length}-v0": {**RECALL, "total_steps": 10_000 * (length + 1)} for length in rl.envs.LENGTHS},
}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    network = None
    if config.cell != "none":
        network = rl.memory.memory(observation_space, chosen["width"], config.cell)
    plain = rl.ppo(observation_space, action_space, network, optimizer=optimizer, **rl.options(rl.ppo, chosen))
    if not chosen["normalize_rewards"]:
        return plain
    return rl.scaled_rewards(plain, num_envs=chosen["num_envs"], discount=chosen["discount"])


learner, main = rl.experiment(algorithm, settings)
