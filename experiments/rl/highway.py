"""Deep Q-learning on a highway with two sensors, the others' motion and a map; in highway-env, on the host.

Run:       jdl run highway --seeds 5
           jdl run highway --env highway-fast-v0 --seeds 5      (the package's own observation: the others' motion)
Result:    not measured yet
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
    """Hyper-parameters; what is None is common."""

    env: str = "HighwaySensors-v0"
    num_episodes: int = 50
    num_steps: int | None = None  # steps of each environment between learning
    updates_per_rollout: int | None = None
    batch_size: int | None = None
    capacity: int | None = None
    learning_starts: int | None = None
    target_every: int | None = None  # updates
    learning_rate: float | None = None
    exploration: float | None = None  # the share of the run over which random actions become few
    final_epsilon: float | None = None
    discount: float | None = None
    width: int | None = None  # of two layers: of each sensor, and of both


SMOKE = {"total_steps": 64, "num_episodes": 2, "learning_starts": 16}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        bars={"return": ">= 20"},
        shown=("return", "crash rate"),
        beside="highway-env's example with the others' motion alone, 5 seeds: 18 to 20 in training, read off a plot",
    ),
    "motion": jdl.Record({"env": "highway-fast-v0"}, seeds=5, shown=("return", "crash rate")),
}
# As the package's own example, which learns from a batch at every step.
COMMON = {
    "total_steps": 20_000,
    "num_envs": 4,
    "num_steps": 4,
    "updates_per_rollout": 16,
    "batch_size": 32,
    "capacity": 15_000,
    "learning_starts": 200,
    "target_every": 50,
    "learning_rate": 5e-4,
    "exploration": 0.1,
    "final_epsilon": 0.05,
    "discount": 0.8,  # of a second, in which a crash is seen coming
    "width": 256,
    "double": False,
    "n_step": 1,
}

settings = functools.partial(rl.settings, common=COMMON, tuned={})


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """DQN with Adam, whose network has a torso for each sensor."""
    chosen = settings(config)
    exploring = optax.linear_schedule(1.0, chosen["final_epsilon"], int(chosen["total_steps"] * chosen["exploration"]))
    return rl.dqn(
        observation_space,
        action_space,
        rl.networks.torso(observation_space, (chosen["width"],) * 2, nn.relu),
        optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(chosen["learning_rate"])),
        epsilon=exploring,
        **rl.options(rl.dqn, chosen),
    )


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    return rl.learner(functools.partial(algorithm, config), settings(config))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the host, and evaluate the final agents; an episode that terminates is one that crashed."""
    if config.separate(run):
        return jdl.separately(run)
    trained = rl.train(functools.partial(algorithm, config), settings(config), run)
    scores = run.load_arrays("scores")
    assert scores is not None
    return trained.scores | {"crash rate": scores["terminated"].mean(-1)}
