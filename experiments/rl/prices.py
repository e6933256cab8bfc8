"""Weights of 20 shares on real prices, after costs: trained on 1990 to 2015, scored on the seven years after.

Run:       jdl run prices --seeds 5
           jdl run prices --env PricesLeaked-v0 --seeds 5     (a probe: it is shown tomorrow's returns)
Result:    yearly return -0.04853 [-0.1221, 0.02815]; Sharpe ratio -0.088 [-0.4059, 0.237]; drawdown -0.5817 [-0.6437,
           -0.4654]; turnover 247.6 [228.1, 261.1]; difference to 1/N -1.104 [-1.422, -0.7792]; difference to 1/N
           (low) -1.674 [-2, -1.348]; difference to 1/N (high) -0.668 [-0.9934, -0.3464] (5 seeds, 197 s)

No claim is made: docs/prices.md says what these years can't tell.
"""

import dataclasses
import functools
from typing import Any

import jax
import matplotlib.figure
import numpy as np
import optax
from gymnasium import Space

import jdl
import rl
from rl import backtest
from rl.envs.portfolio import COST, PAST
from rl.envs.prices import SCORED_FROM


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is common."""

    env: str = "Prices-v0"
    num_episodes: int = 20  # years drawn from those of training
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None


SMOKE = {"total_steps": 8192, "num_episodes": 2}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        shown=(
            "yearly return",
            "Sharpe ratio",
            "drawdown",
            "turnover",
            "difference to 1/N",
            "difference to 1/N (low)",
            "difference to 1/N (high)",
        ),
        beside="1/N: 19.2% a year, Sharpe ratio 1.02 ± 0.38; no claim",
    ),
    "leaked": jdl.Record(
        {"env": "PricesLeaked-v0"},
        seeds=5,
        bars={"difference to 1/N (low)": ">= 1"},
        shown=("Sharpe ratio", "difference to 1/N", "difference to 1/N (low)"),
        beside="a probe that sees the returns of the next day",
    ),
}

COMMON = {
    "total_steps": 1_000_000,
    "num_envs": 64,
    "num_steps": 64,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 1e-3,
    "discount": 0.9,  # what is bought today need not be paid for tomorrow
    "gae_lambda": 0.9,
    "entropy_weight": 0.0,
    "normalize_observations": True,  # returns are a few percent
}
RULES = {
    "1/N": backtest.equal_weights,
    "buy and hold": backtest.buy_and_hold,
    "minimum variance": backtest.minimum_variance(),
}

settings = functools.partial(rl.settings, common=COMMON, tuned={})


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    return rl.ppo(observation_space, action_space, optimizer=optimizer, **rl.options(rl.ppo, chosen))


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    return rl.learner(functools.partial(algorithm, config), settings(config))


def rule(algorithm: rl.Algorithm, agent: Any, leaked: np.ndarray | None = None) -> backtest.Rule:
    """The greedy weights of an agent, which is shown what it saw in training; `leaked` are the returns of all days."""

    @jax.jit
    def act(observation: Any, first: Any) -> Any:
        seen = jax.tree.map(lambda leaf: leaf[None], observation)
        timestep = rl.TimeStep(seen, first[None], None)
        action, _, _ = algorithm.act(agent, algorithm.initial_carry(1), timestep, jax.random.key(0), True)
        return rl.envs.weights_of(action[0])

    def choose(past: np.ndarray, held: np.ndarray) -> np.ndarray:
        observation = {"returns": np.float32(past[-PAST:]), "weights": np.float32(held)}
        if leaked is not None:
            observation["tomorrow"] = np.float32(leaked[len(past)])
        weights = np.asarray(act(observation, np.bool_(not held.any())), float)
        return weights / weights.sum()

    return choose


def scored(track: backtest.Track, equal: backtest.Track) -> dict[str, float]:
    """What a track earned in the years after training, and its difference to that of 1/N."""
    difference = backtest.sharpe_difference(track.returns, equal.returns)
    ratio, error = backtest.sharpe(track.returns)
    return {
        "yearly return": backtest.yearly_return(track.returns),
        "Sharpe ratio": ratio,
        "Sharpe ratio (standard error)": error,
        "drawdown": backtest.drawdown(track.returns),
        "turnover": backtest.turnover(track.traded),
        "difference to 1/N": float(difference.mean),
        "difference to 1/N (low)": float(difference.low),
        "difference to 1/N (high)": float(difference.high),
    }


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on the years before 2016, and follow the final agents through the years after, beside simple rules."""
    if config.separate(run):
        return jdl.separately(run)
    trained = rl.train(functools.partial(algorithm, config), settings(config), run)
    quotes = rl.envs.share_returns()
    first = int(np.searchsorted(quotes.dates, SCORED_FROM))
    leaked = quotes.returns if config.env == "PricesLeaked-v0" else None
    follow = functools.partial(backtest.backtest, quotes.returns, first, cost=COST)
    simple = {name: follow(choose) for name, choose in RULES.items()}
    agents = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained.agents) for seed in range(len(run.seeds))]
    tracks = [follow(rule(trained.algorithm, agent, leaked)) for agent in agents]
    run.save_arrays("days", agents=np.stack([one.returns for one in tracks]), dates=quotes.dates[first:].astype(int))
    about = "Wealth after costs on the days that were not trained on; a line for each seed."
    run.save_figure("Wealth", picture(quotes.dates[first:], tracks, simple), about)
    each = [scored(track, simple["1/N"]) for track in tracks]
    training = {f"{name} (training years)": trained.scores[name] for name in ("return", "return (twin)")}
    return {name: np.array([one[name] for one in each]) for name in each[0]} | training


def picture(dates: np.ndarray, agents: list[backtest.Track], simple: dict[str, backtest.Track]) -> Any:
    """The wealth of the agents and of the rules, on a logarithmic scale."""
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, track in enumerate(agents):
        axes.plot(dates, np.cumprod(1 + track.returns), color="#8a94a3", lw=0.8, label=None if number else "agents")
    for (name, track), color in zip(simple.items(), ("#3b6fb6", "#d9622b", "#3c8d5a"), strict=True):
        axes.plot(dates, np.cumprod(1 + track.returns), color=color, lw=1.4, label=name)
    axes.set(yscale="log", ylabel="wealth")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure
