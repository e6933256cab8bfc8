"""Deep Q-learning, with double, dueling, n-step and prioritized replay as options; scored in Gymnasium.

Run:       jdl run dqn --env CartPole-v1 --seeds 10
           jdl run dqn --env LunarLander-v3 --runner host --seeds 10
Expected:  see experiments/README.md; CleanRL's DQN in JAX has 498 on CartPole-v1, -88.9 on Acrobot-v1 and -189 on
           MountainCar-v0 at 500,000 steps
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    rollout: int | None = None  # steps of each environment between learning
    updates: int | None = None  # and as many batches then
    batch_size: int | None = None
    capacity: int | None = None
    warm_up: int | None = None
    target_every: int | None = None  # updates
    learning_rate: float | None = None  # decays to zero over the run
    exploration: float | None = None  # the share of the run over which random actions become few
    final_epsilon: float | None = None
    discount: float | None = None
    width: int | None = None  # of two hidden layers
    double: bool | None = None
    dueling: bool | None = None
    n_steps: int | None = None
    prioritized: bool | None = None
    normalize_observations: bool | None = None


COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "rollout": 4,
    "updates": 8,
    "batch_size": 64,
    "capacity": 100_000,
    "warm_up": 1000,
    "target_every": 200,
    "learning_rate": 5e-4,
    "exploration": 0.2,
    "final_epsilon": 0.05,
    "discount": 0.99,
    "width": 128,
    "double": True,
    "dueling": False,
    "n_steps": 3,
    "prioritized": False,
    "normalize_observations": True,
}
TUNED: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "rollout": 8,
        "updates": 4,
        "batch_size": 128,
        "capacity": 500_000,
        "target_every": 50,
        "learning_rate": 1e-3,
        "discount": 0.98,
    },
    "LunarLander-v3": {"n_steps": 1},
    "MountainCar-v0": {"total_steps": 300_000, "target_every": 500, "learning_rate": 1e-3},
}
OPTIONS = (
    "num_envs", "rollout", "updates", "batch_size", "capacity", "warm_up", "target_every", "discount", "double",
    "dueling", "prioritized", "normalize_observations",
)  # fmt: skip


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """DQN with Adam, its learning rate decaying to zero, exploring less and less."""
    chosen = rl.settings(config, COMMON, TUNED)
    total = chosen["total_steps"]
    count = rl.updates(total, chosen["num_envs"], chosen["rollout"]) * chosen["updates"]
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count)
    return rl.dqn(
        observation_space,
        action_space,
        rl.networks.torso(observation_space, (chosen["width"],) * 2, nn.relu),
        optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)),
        epsilon=optax.linear_schedule(1.0, chosen["final_epsilon"], int(total * chosen["exploration"])),
        importance=optax.linear_schedule(0.4, 1.0, total),
        steps=chosen["n_steps"],
        **{name: chosen[name] for name in OPTIONS},
    )


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return rl.learner(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the device or on the host; evaluate the last agents in Gymnasium's own environment."""
    if config.separate(run):
        return jdl.separately(run)
    return rl.train(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED), run).scores
