"""How much to hold, in a market with a planted signal, beside the best that anyone could do who knows how good it is.

Run:       jdl run portfolio --seeds 5                          (the signal is tomorrow's return, leaked: a probe)
           jdl run portfolio --env Market-v0 --seeds 5          (the signal is right 65 times in 100)
Result:    share of the oracle 1 [1, 1] (5 seeds, 211 s)
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is common."""

    env: str = "MarketLeaked-v0"
    num_episodes: int = 400
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None


SMOKE = {"total_steps": 8192, "num_episodes": 4}
RECORDS = {
    "": jdl.Record(seeds=5, bars={"share of the oracle": ">= 0.95"}, beside="the oracle's log growth, Kelly 1956: 1"),
    "planted": jdl.Record(
        {"env": "Market-v0"}, seeds=5, bars={"share of the oracle": ">= 0.95"}, beside="the oracle: 1"
    ),
}
RELIABILITY = {"MarketLeaked-v0": 1.0, "Market-v0": 0.65}

COMMON = {
    "total_steps": 1_000_000,
    "num_envs": 64,
    "num_steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 3e-3,
    "discount": 0.0,  # what is held now does not move later prices
    "gae_lambda": 0.0,
    "entropy_weight": 0.0,
}

settings = functools.partial(rl.settings, common=COMMON, tuned={})


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    return rl.ppo(observation_space, action_space, optimizer=optimizer, **rl.options(rl.ppo, chosen))


def growth(algorithm: rl.Algorithm, agents: Any, env: str) -> dict[str, Any]:
    """The exact log growth of each seed's agent, over all that it can see, as a share of the oracle's."""
    seen = np.array([(*past, signal) for *past, signal in itertools.product(*[(-0.5, 0.5)] * 4, (-1, 1))], np.float32)
    timestep = rl.TimeStep(seen, np.ones(len(seen), bool))

    def held(agent: Any) -> Any:
        return algorithm.act(agent, algorithm.initial_carry(len(seen)), timestep, jax.random.key(0), True)[0][:, 0]

    ahead = 0.5 * np.clip(jax.vmap(held)(agents), -1, 1) * seen[:, -1]  # the return if the signal is right
    right = RELIABILITY[env]
    mean = (right * np.log1p(ahead) + (1 - right) * np.log1p(-ahead)).mean(1)
    return {"share of the oracle": mean / rl.envs.best_growth(right)[1]}


learner, main = rl.experiment(algorithm, settings, also=growth)
