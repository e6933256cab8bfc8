"""PPO with one policy for all agents of an environment; random moves and the best that a team can do beside.

Run:       jdl run shared_ppo --seeds 5                  (Spread3-v0: three agents cover three landmarks)
           jdl run shared_ppo --env pettingzoo:butterfly/knights_archers_zombies_v11 --total-steps 1000000
Result:    return -1.64 [-1.653, -1.628]; return (optimum) -1.475 [-1.475, -1.475]; return (random) -22.57 [-22.57,
           -22.57] (5 seeds, 7 min)
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import optax
from gymnasium import Space

import jdl
import rl
from rl.runners.training import EVALUATION_SEED


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    env: str = "Spread3-v0"
    width: int | None = None  # of two layers
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None
    shared: bool | None = None  # one torso for actor and critic
    normalize_observations: bool | None = None
    num_episodes: int = 1500  # of the final evaluation, each agent's counted


SMOKE = {"total_steps": 6144, "num_episodes": 6}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        bars={"return": ">= -1.69"},
        shown=("return", "return (optimum)", "return (random)"),
        beside="optimum: the best pairs of agents and landmarks; bar: 99% of the way there from random moves",
    ),
}


COMMON = {
    "total_steps": 1_500_000,
    "num_envs": 48,  # agents: a multiple of those in one copy of the environment
    "width": 128,
    "num_steps": 64,
    "epochs": 4,
    "minibatches": 8,
    "learning_rate": 2e-3,
    "discount": 0.9,
    "gae_lambda": 0.9,
    "entropy_weight": 0.0,
    "shared": False,
    "normalize_observations": False,
}
TUNED: dict[str, dict[str, Any]] = {
    "butterfly/knights_archers_zombies_v11": {
        "num_envs": 16, "num_steps": 128, "discount": 0.99, "entropy_weight": 0.01, "learning_rate": 1e-3,
    },
}  # fmt: skip

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    network = rl.networks.torso(observation_space, (chosen["width"],) * 2)
    return rl.ppo(observation_space, action_space, network, optimizer=optimizer, **rl.options(rl.ppo, chosen))


def beside(config: Config, seed: int = EVALUATION_SEED) -> dict[str, float]:
    """Mean returns of random moves, and the highest that are possible, from where the agents of a seed are scored."""
    agents = rl.envs.agents_of(config.env)
    envs = rl.make_vec(config.env, agents * -(-config.num_episodes // agents))
    _, info = envs.reset(seed=seed)
    found = {}
    if all(hasattr(world, "best_return") for world in envs.worlds):  # type: ignore[attr-defined]
        found["return (optimum)"] = float(np.mean([world.best_return() for world in envs.worlds]))  # type: ignore[attr-defined]
    random, returns, running = np.random.default_rng(seed), np.zeros(envs.num_envs), np.ones(envs.num_envs, bool)
    masks = info.get("action_mask", np.ones((envs.num_envs, envs.single_action_space.n)))  # type: ignore[attr-defined]
    while running.any():
        chosen = np.where(masks, random.random(masks.shape), -1).argmax(-1)
        _, reward, terminated, truncated, info = envs.step(chosen)
        returns += reward * running
        running &= ~(terminated | truncated)
        masks = info.get("action_mask", masks)
    envs.close()
    return found | {"return (random)": float(returns.mean())}


learner, train = rl.experiment(algorithm, settings)


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train the agents of each seed, and score them beside random moves and the optimum."""
    scores = train(config, run)
    if config.separate(run):  # the parts have scored it
        return scores
    return scores | {name: [value] * len(run.seeds) for name, value in beside(config).items()}
