"""REINFORCE, with a learnt baseline or with none, on environments with a compiled twin; scored in the real one.

Run:       jdl run reinforce --env CartPole-v1 --seeds 10      (--no-baseline)
Expected:  see experiments/README.md
"""

import dataclasses
from typing import Any

import optax

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    env: str = "CartPole-v1"
    baseline: bool = True
    total_steps: int | None = None  # of all environments together
    num_envs: int | None = None
    rollout: int | None = None  # longer than an episode
    learning_rate: float | None = None  # of Adam, decays to zero over the run
    discount: float | None = None
    entropy_weight: float | None = None
    num_episodes: int = 100  # of the final evaluation, a seed


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


def algorithm(config: Config, env: rl.envs.Environment) -> rl.Algorithm:
    """REINFORCE with Adam, its learning rate decaying to zero."""
    chosen = rl.settings(config, COMMON, TUNED)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["rollout"])
    optimizer = optax.adam(optax.linear_schedule(chosen["learning_rate"], 0.0, count))
    options = {name: chosen[name] for name in OPTIONS}
    spaces = env.observation_space, env.action_space
    return rl.reinforce(*spaces, optimizer=optimizer, baseline=config.baseline, **options)


def learner(config: Config) -> jdl.Learner:
    """One run."""
    env = rl.envs.make(config.env)
    return rl.on_device(algorithm(config, env), env, rl.settings(config, COMMON, TUNED)["num_envs"])


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the compiled twin; evaluate the last agent there and in Gymnasium's own environment."""
    env, chosen = rl.envs.make(config.env), rl.settings(config, COMMON, TUNED)
    sizes = {name: chosen[name] for name in ("num_envs", "total_steps")}
    return rl.train(algorithm(config, env), env, run, **sizes, num_episodes=config.num_episodes).scores
