"""SARSA on toy text environments, beside the optimum that value iteration finds.

Run:       jdl run sarsa --env FrozenLake-v1 --seeds 10      (CliffWalking-v1, Taxi-v4, ...)
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

    env: str = "FrozenLake-v1"
    learning_rate: float | None = None
    visits: float | None = None  # after as many visits of a state and action its learning rate has about halved
    epsilon: float | None = None  # the share of random actions at the start; it falls to zero over the run
    discount: float | None = None
    num_episodes: int = 1000  # of the final evaluation, a seed


COMMON = {
    "total_steps": 400_000,
    "num_envs": 8,
    "learning_rate": 0.2,
    "visits": 1e9,
    "epsilon": 1.0,
    "discount": 0.99,
}
TUNED: dict[str, dict[str, Any]] = {
    "FrozenLake-v1": {"learning_rate": 1.0, "visits": 10.0},
    # Who backs up what it does next keeps away from the cliff for as long as it explores: values that start at zero,
    # above all true ones, make it try everything once.
    "CliffWalking-v1": {"discount": 0.999, "epsilon": 0.0, "learning_rate": 0.05},
    "Taxi-v4": {"total_steps": 1_000_000},
}


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """SARSA, exploring less and less."""
    chosen = rl.settings(config, COMMON, TUNED)
    return rl.sarsa(
        observation_space,
        action_space,
        learning_rate=lambda visits: chosen["learning_rate"] / (1 + visits / chosen["visits"]) ** 0.7,
        epsilon=optax.linear_schedule(chosen["epsilon"], 0.0, int(0.9 * chosen["total_steps"])),
        discount=chosen["discount"],
    )


def learner(config: Config) -> jdl.Learner:
    """One run."""
    return rl.learner(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train; evaluate the last table in Gymnasium's own environment, and exactly."""
    if config.separate(run):
        return jdl.separately(run)
    trained = rl.train(functools.partial(algorithm, config), rl.settings(config, COMMON, TUNED), run)
    return {**trained.scores, **rl.exact_returns(trained.algorithm, trained.agents, config.env)}
