"""Deep Q-learning and its descendants, of the mean return or of its distribution; scored in Gymnasium.

Run:       jdl run dqn --env CartPole-v1 --seeds 10
           jdl run dqn --method c51 --seeds 10            (qr_dqn, iqn, rainbow)
           jdl run dqn --env LunarLander-v3 --seeds 10
           jdl run dqn --env pgx:minatar-breakout --seeds 5         (asterix, freeway, seaquest, space_invaders)
Result:    return 500 [500, 500] (10 seeds, 6 min)
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import optax
from gymnasium import Space

import jdl
import rl
from rl import value_heads
from rl.value_heads import ValueHead


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    method: Literal["dqn", "c51", "qr_dqn", "iqn", "rainbow"] = "dqn"
    num_steps: int | None = None  # steps of each environment between learning
    updates_per_rollout: int | None = None  # batches in each phase of learning
    batch_size: int | None = None
    capacity: int | None = None
    learning_starts: int | None = None
    target_every: int | None = None  # updates
    learning_rate: float | None = None  # decays to zero over the run
    exploration: float | None = None  # the share of the run over which random actions become few
    final_epsilon: float | None = None
    discount: float | None = None
    width: int | None = None  # of two hidden layers
    double: bool | None = None
    dueling: bool | None = None
    n_step: int | None = None
    prioritized: bool | None = None
    priority_exponent: float | None = None  # priorities are absolute TD errors to this power
    low: float | None = None  # c51 and rainbow: the lowest and the highest discounted return
    high: float | None = None
    atoms: int | None = None  # returns between them, or quantiles
    normalize_observations: bool | None = None
    masked: bool | None = None  # keep the action masks that the environment gives


YOUNG_AND_TIAN = {"breakout": 10, "asterix": 17, "freeway": 50, "space_invaders": 44}  # DQN's return, read off a plot
SMOKE = {"total_steps": 128, "num_episodes": 2, "capacity": 1024, "learning_starts": 32}
RECORDS = {
    "": jdl.Record(
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 475"},
        beside="CleanRL (JAX) 498.4 ± 2.3",
    ),
    "acrobot": jdl.Record(
        {"env": "Acrobot-v1"}, seeds=10, statistic="iqm", bars={"return": ">= -90"}, beside="CleanRL (JAX) -88.9 ± 1.6"
    ),
    "mountain_car": jdl.Record(
        {"env": "MountainCar-v0"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= -115"},
        beside="CleanRL (JAX) -189 ± 12",
    ),
    "lunar_lander": jdl.Record(
        {"env": "LunarLander-v3"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 150"},
        beside="RL Zoo 154 ± 79 (one run, 100,000 steps)",
    ),
    "c51": jdl.Record(
        {"method": "c51"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 491"},
        beside="CleanRL (JAX) 491 ± 10",
    ),
    "qr_dqn": jdl.Record(
        {"method": "qr_dqn"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 491"},
        beside="RL Zoo 500 (one run, 50,000 steps)",
    ),
    "iqn": jdl.Record({"method": "iqn"}, seeds=10, statistic="iqm", bars={"return": ">= 491"}),
    "rainbow": jdl.Record({"method": "rainbow"}, seeds=10, statistic="iqm", bars={"return": ">= 491"}),
    **{
        f"minatar_{game}": jdl.Record(
            {"env": f"pgx:minatar-{game}"},
            seeds=5,
            statistic="iqm",
            bars={"return": f">= {score}"},
            beside=f"Young and Tian, 30 runs: {score}",
        )
        for game, score in YOUNG_AND_TIAN.items()
    },
    "minatar_seaquest": jdl.Record(
        {"env": "pgx:minatar-seaquest"},
        seeds=5,
        statistic="iqm",
        beside="Young and Tian, 30 runs: 20, with observations of another version",
    ),
}


RENAMED = {  # since version 0.1
    "rollout": "num_steps",
    "updates": "updates_per_rollout",
    "warm_up": "learning_starts",
    "n_steps": "n_step",
    "prioritised": "prioritized",
    "normalise_observations": "normalize_observations",
}
COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "num_steps": 4,
    "updates_per_rollout": 8,
    "batch_size": 64,
    "capacity": 100_000,
    "learning_starts": 1000,
    "target_every": 200,
    "learning_rate": 5e-4,
    "exploration": 0.2,
    "final_epsilon": 0.05,
    "discount": 0.99,
    "width": 128,
    "double": True,
    "dueling": False,
    "n_step": 3,
    "prioritized": False,
    "priority_exponent": 0.6,
    "normalize_observations": True,
    "masked": False,
    "low": -100.0,
    "high": 100.0,
    "atoms": 51,
}
MINATAR = {  # Young and Tian learn from 32 transitions at each frame, Dopamine from 8, here from 4
    "total_steps": 5_000_000,
    "num_envs": 16,
    "updates_per_rollout": 4,
    "target_every": 250,
    "exploration": 0.1,
    "normalize_observations": False,
}
RAINBOW = {"dueling": True, "prioritized": True, "priority_exponent": 0.5}  # Rainbow, table 1
TUNED: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "num_steps": 8,
        "updates_per_rollout": 4,
        "batch_size": 128,
        "capacity": 500_000,
        "target_every": 50,
        "learning_rate": 1e-3,
        "discount": 0.98,
        "atoms": 101,
    },
    "LunarLander-v3": {"n_step": 1},
    "MountainCar-v0": {"total_steps": 300_000, "target_every": 500, "learning_rate": 1e-3},
    **{f"minatar-{game}": MINATAR for game in (*YOUNG_AND_TIAN, "seaquest")},
}


def settings(config: Config) -> dict[str, Any]:
    """The config with what is tuned for its environment, and what belongs to its method."""
    return rl.settings(config, {**COMMON, **(RAINBOW if config.method == "rainbow" else {})}, TUNED)


def head(config: Config) -> ValueHead:
    """What the method learns about returns."""
    chosen = settings(config)
    if config.method in ("c51", "rainbow"):
        return value_heads.categorical(chosen["low"], chosen["high"], chosen["atoms"])
    if config.method == "dqn":
        return value_heads.mean()
    return (value_heads.quantiles if config.method == "qr_dqn" else value_heads.implicit)(chosen["atoms"])


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """DQN with Adam, its learning rate decaying to zero, exploring less and less, or by noisy layers."""
    chosen = settings(config)
    total, noisy = chosen["total_steps"], config.method == "rainbow"
    count = rl.updates(total, chosen["num_envs"], chosen["num_steps"]) * chosen["updates_per_rollout"]
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count)
    exploring = optax.linear_schedule(1.0, chosen["final_epsilon"], int(total * chosen["exploration"]))
    return rl.dqn(
        observation_space,
        action_space,
        rl.networks.torso(observation_space, (chosen["width"],) * 2, nn.relu, noisy),
        optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)),
        epsilon=0.0 if noisy else exploring,
        importance=optax.linear_schedule(0.4, 1.0, total),
        head=head(config),
        noisy=noisy,
        **rl.options(rl.dqn, chosen),
    )


learner, main = rl.experiment(algorithm, settings)
