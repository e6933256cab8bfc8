"""Proximal policy optimisation, on compiled twins or on the host; scored in the real Gymnasium environment.

Run:       jdl run ppo --env CartPole-v1 --seeds 10      (Acrobot-v1, Pendulum-v1, ...)
           jdl run ppo --env LunarLander-v3 --runner host --seeds 10
           jdl run ppo --env ale_py:ALE/Pong-v5 --runner host
Expected:  see experiments/README.md; CleanRL's PPO has 490 on CartPole-v1 and -86.4 on Acrobot-v1 at 500,000 steps
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

    rollout: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    trace: float | None = None
    entropy_weight: float | None = None
    shared: bool | None = None  # one torso for actor and critic
    normalise_observations: bool | None = None
    normalise_rewards: bool | None = None


COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "rollout": 128,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 2.5e-4,
    "discount": 0.99,
    "trace": 0.95,
    "entropy_weight": 0.01,
    "shared": False,
    "normalise_observations": False,
    "normalise_rewards": False,
}
TUNED = {
    "CartPole-v1": {"learning_rate": 1e-3, "discount": 0.98, "trace": 0.8, "entropy_weight": 0.0},
    "Acrobot-v1": {"learning_rate": 1e-3, "num_envs": 16},
    "LunarLander-v3": {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "rollout": 1024,
        "minibatches": 256,
        "learning_rate": 1e-3,
        "discount": 0.999,
        "trace": 0.98,
    },
    "ALE/Pong-v5": {  # as Huang et al. 2022; frames come stacked from the vector environment
        "total_steps": 1_000_000,
        "learning_rate": 2.5e-4,
        "shared": True,
    },
    "Pendulum-v1": {
        "num_envs": 4,
        "rollout": 1024,
        "epochs": 10,
        "minibatches": 64,
        "learning_rate": 1e-3,
        "discount": 0.9,
        "entropy_weight": 0.0,
    },
}
OPTIONS = (
    "rollout", "epochs", "minibatches", "discount", "trace", "entropy_weight", "shared", "normalise_observations",
)  # fmt: skip


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = rl.settings(config, COMMON, TUNED)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["rollout"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    options = {name: chosen[name] for name in OPTIONS}
    plain = rl.ppo(observation_space, action_space, optimizer=optimizer, **options)
    if not chosen["normalise_rewards"]:
        return plain
    return rl.scaled_rewards(plain, num_envs=chosen["num_envs"], discount=chosen["discount"])


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return rl.learner(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the device or on the host; evaluate the last agents in Gymnasium's own environment."""
    if config.separate(run):
        return jdl.separately(run)
    return rl.train(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED), run).scores
