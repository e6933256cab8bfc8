"""Advantage actor-critic on environments with a compiled twin; scored in the real Gymnasium environment.

Run:       jdl run a2c --env CartPole-v1 --seeds 10
Expected:  see experiments/README.md; RL Zoo's single run has 500 on CartPole-v1 at 500,000 steps
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
    learning_rate: float | None = None  # of Adam, decays to zero over the run
    discount: float | None = None
    trace: float | None = None
    entropy_weight: float | None = None
    normalize_advantages: bool | None = None
    normalize_observations: bool | None = None


COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "rollout": 16,
    "learning_rate": 2e-3,
    "discount": 0.99,
    "trace": 0.95,
    "entropy_weight": 0.0,
    "normalize_advantages": True,
    "normalize_observations": False,
}
TUNED: dict[str, dict[str, Any]] = {"CartPole-v1": {"discount": 0.98}}
OPTIONS = "rollout", "discount", "trace", "entropy_weight", "normalize_advantages", "normalize_observations"


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """A2C with Adam, its learning rate decaying to zero."""
    chosen = rl.settings(config, COMMON, TUNED)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["rollout"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    options = {name: chosen[name] for name in OPTIONS}
    return rl.a2c(observation_space, action_space, optimizer=optimizer, **options)


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return rl.learner(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the device or on the host; evaluate the last agents in Gymnasium's own environment."""
    if config.separate(run):
        return jdl.separately(run)
    return rl.train(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED), run).scores
