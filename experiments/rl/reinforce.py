"""REINFORCE, with a learnt baseline or with none, on environments with a compiled twin; scored in the real one.

Run:       jdl run reinforce --env CartPole-v1 --seeds 10      (--no-baseline)
Expected:  see experiments/README.md
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

    baseline: bool = True
    rollout: int | None = None  # longer than an episode
    learning_rate: float | None = None  # of Adam, decays to zero over the run
    discount: float | None = None
    entropy_weight: float | None = None


COMMON = {
    "total_steps": 500_000,
    "num_envs": 2,
    "rollout": 1024,
    "learning_rate": 1e-2,
    "discount": 0.99,
    "entropy_weight": 0.0,
}
TUNED: dict[str, dict[str, Any]] = {}
OPTIONS = "rollout", "discount", "entropy_weight"


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """REINFORCE with Adam, its learning rate decaying to zero."""
    chosen = rl.settings(config, COMMON, TUNED)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["rollout"])
    optimizer = optax.adam(optax.linear_schedule(chosen["learning_rate"], 0.0, count))
    options = {name: chosen[name] for name in OPTIONS}
    return rl.reinforce(observation_space, action_space, optimizer=optimizer, baseline=config.baseline, **options)


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return rl.learner(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the device or on the host; evaluate the last agents in Gymnasium's own environment."""
    if config.separate(run):
        return jdl.separately(run)
    return rl.train(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED), run).scores
