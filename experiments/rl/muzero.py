"""MuZero with Gumbel search in a model that it learns, on compiled twins or on the host; scored in Gymnasium.

Run:       jdl run muzero --seeds 5                    (CartPole-v1)
"""

import dataclasses
import functools
from typing import Any

import optax
from gymnasium import Space

import jdl
import rl
from rl.runners.training import EVALUATION_SEED
from rl.runners.vector import spaces_of


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    num_steps: int | None = None  # steps of each environment between learning
    simulations: int | None = None
    considered: int | None = None  # actions that a search tries at first
    minibatches: int | None = None  # updates per rollout
    batch_size: int | None = None
    window: int | None = None  # rollouts that examples are drawn from
    unroll_steps: int | None = None
    n_step: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    width: int | None = None  # of the model's states, and of two hidden layers before them
    value_limit: float | None = None
    bins: int | None = None
    value_weight: float | None = None
    least_range: float | None = None  # differences of values below it are not stretched; in standard deviations
    normalize_observations: bool | None = None


SMOKE = {
    "total_steps": 128,
    "num_envs": 4,
    "num_steps": 8,
    "simulations": 2,
    "minibatches": 2,
    "batch_size": 16,
    "num_episodes": 2,
}
RECORDS = {
    "": jdl.Record(seeds=5, statistic="iqm", bars={"return": ">= 475"}, shown=("return", "return (network alone)")),
}

COMMON = {
    "total_steps": 300_000,
    "num_envs": 32,
    "num_steps": 32,
    "simulations": 8,
    "considered": 16,
    "minibatches": 16,
    "batch_size": 256,
    "window": 128,
    "unroll_steps": 5,
    "n_step": 20,
    "learning_rate": 2e-3,
    "discount": 0.99,
    "width": 64,
    "value_limit": 1000.0,
    "bins": 51,
    "value_weight": 0.25,
    "least_range": 0.3,
    "normalize_observations": True,
}
TUNED: dict[str, dict[str, Any]] = {}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space, **other: Any) -> rl.Algorithm:
    """MuZero with AdamW, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"]) * chosen["minibatches"]
    schedule = optax.cosine_decay_schedule(chosen["learning_rate"], count)
    options = rl.options(rl.muzero, chosen) | other
    options["optimizer"] = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=1e-4))
    network = rl.networks.torso(observation_space, (chosen["width"],) * 2)
    return rl.muzero(observation_space, action_space, network, **options)


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    return rl.learner(functools.partial(algorithm, config), settings(config))


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train, and evaluate the final agents with their search, and by their policy alone."""
    if config.separate(run):
        return jdl.separately(run)
    trained = rl.train(functools.partial(algorithm, config), settings(config), run)
    alone = algorithm(config, *spaces_of(config.env), simulations=0)
    scores = rl.evaluate(
        alone, trained.agents, config.env, episodes=config.num_episodes, runs=len(run.seeds), seed=EVALUATION_SEED
    )
    return trained.scores | {"return (network alone)": scores.returns.mean(-1)}
