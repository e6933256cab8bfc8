"""How long can a policy remember? PPO with and without a memory on each of bsuite's 23 memory chains.

A bit is shown, and asked for `length` steps later. By bsuite's rule a length is solved if the regret of the episodes of
training, 1 minus their mean return, is less than 0.75; a guess has 1. At length 1 the bit is still shown when it is
asked for, so that nothing needs to be remembered. Lengths are a population: a few of them, with all seeds, are one
program, in which the shorter ones rest until the longest is over.

Run:       jdl run memory_lengths --seeds 5
Result:    not measured yet
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jdl
import rl
from rl.runners.training import EVALUATION_SEED

SOLVED = 0.75  # regret, as a share of that of a guess
EASY = 30  # up to this length, all are to be solved
LIMITS = 10, 25, 50, 100  # up to these, lengths are trained together


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters, the same for all lengths; each rollout is one episode of every environment."""

    cells: tuple[str, ...] = ("gru", "lstm", "none")
    lengths: tuple[int, ...] = rl.envs.LENGTHS
    episodes: int = 10_000  # for each length
    num_envs: int = 40
    width: int = 32
    gate_bias: float = 4.0
    epochs: int = 2
    minibatches: int = 4
    learning_rate: float = 3e-3  # decays to zero over the run
    num_episodes: int = 200  # of the final evaluation, per seed and length


class Measured(NamedTuple):
    """Results of one cell on one length, [seed] each."""

    regret: np.ndarray  # 1 minus the mean return of training
    right: np.ndarray  # share of right answers of the final agent


SMOKE = {"cells": ("gru", "none"), "lengths": (1, 3), "episodes": 800, "num_episodes": 5}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        bars={
            **{f"lengths solved ({cell})": ">= 18" for cell in ("gru", "lstm")},
            **{f"accuracy up to length {EASY} ({cell})": ">= 0.99" for cell in ("gru", "lstm")},
        },
        beside="23 lengths, from 1 to 100; without memory a guess, 0.5",
    ),
}


def groups(config: Config) -> list[tuple[int, ...]]:
    """The lengths, in groups that are trained in one program each, as long as the longest of them."""
    limits = sorted({*LIMITS, max(config.lengths)})
    each = [tuple(n for n in config.lengths if low < n <= high) for low, high in itertools.pairwise((0, *limits))]
    return [group for group in each if group]


def resting(env: rl.envs.Environment, steps: int) -> rl.envs.Environment:
    """The environment, which rests at the end of an episode until it had so many steps: they show and earn nothing."""

    def reset(key: Any) -> tuple[Any, rl.envs.Outcome]:
        state, outcome = env.reset(key)
        return (state, jnp.zeros((), jnp.int32), jnp.zeros((), bool)), outcome

    def step(now: Any, action: Any, key: Any) -> tuple[Any, rl.envs.Outcome]:
        state, time, rests = now
        state, outcome = env.step(state, action, key)
        over = rests | outcome.terminated
        seen = jnp.where(over, 0, outcome.observation)
        reward = jnp.where(rests, 0, outcome.reward)
        ended = outcome._replace(observation=seen, reward=reward, terminated=time + 1 == steps)
        return (state, time + 1, over), ended

    return env._replace(reset=reset, step=step)


def algorithm(config: Config, cell: str, steps: int) -> rl.Algorithm:
    """PPO whose rollout is one episode of so many steps."""
    env = rl.envs.memory_chain(1)
    count = config.episodes // config.num_envs * config.epochs * config.minibatches
    network = None
    if cell != "none":
        layers = (config.width,)
        network = rl.memory.memory(env.observation_space, config.width, cell, layers, config.gate_bias)  # type: ignore[arg-type]
    schedule = optax.linear_schedule(config.learning_rate, 0.0, count)
    return rl.ppo(
        env.observation_space,
        env.action_space,
        network,
        optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5)),
        shared=True,
        num_steps=steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=1.0,
        gae_lambda=1.0,
        entropy_weight=0.0,
    )


def one(config: Config, cell: str, steps: int, length: Any) -> jdl.Learner:
    """One run; the length may be traced."""
    return rl.on_device(algorithm(config, cell, steps), resting(rl.envs.memory_chain(length), steps), config.num_envs)


def learner(config: Config) -> jdl.Learner:
    """One run of the first cell, on the first length."""
    return one(config, config.cells[0], config.lengths[0] + 1, config.lengths[0])


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train each cell on each length, and score the final agents in Gymnasium."""
    scores: dict[str, Any] = {}
    measured = {}
    for cell in config.cells:
        found = {}
        for group in groups(config):
            found |= trained(config, cell, group, run)
        measured[cell] = found
        scores[f"lengths solved ({cell})"] = sum(each.regret < SOLVED for each in found.values())
        easy = [found[length].right for length in config.lengths if length <= EASY]
        if easy:
            scores[f"accuracy up to length {EASY} ({cell})"] = np.min(easy, 0)  # of the worst of them
        scores |= {f"share right ({cell})/length {length}": each.right for length, each in found.items()}
    note = (
        f"Left, greedy agents after {config.episodes} episodes; right, 1 minus the mean return of these episodes, "
        f"below {SOLVED} if a length is solved. Mean and 95% interval over {len(run.seeds)} seed(s)."
    )
    run.save_figure("Share of right answers by length", picture(config, measured), note)
    return scores


def trained(config: Config, cell: str, group: tuple[int, ...], run: jdl.Run) -> dict[int, Measured]:
    """The results of a group of lengths."""
    count, steps, seeds = config.episodes // config.num_envs, max(group) + 1, len(run.seeds)
    per_call = max(1, count // 25)
    lengths = jdl.population(lambda length: jdl.scan(one(config, cell, steps, length), per_call), jnp.array(group))
    training = jdl.jit(jdl.seeds(lengths, run.seeds))
    part = run.part(f"{cell}-{group[0]}-to-{group[-1]}", seeds=range(seeds * len(group)))
    fitted = jdl.fit(training, None, steps=count // per_call * per_call, log_every=per_call, run=part)
    regret = 1 - np.mean([row["train/return"] for row in fitted.rows], 0).reshape(seeds, len(group))
    found = {}
    for place, length in enumerate(group):
        agents = jax.tree.map(
            lambda leaf, place=place: leaf.reshape(seeds, len(group), *leaf.shape[1:])[:, place], fitted.state.agent
        )
        played = rl.evaluate(
            algorithm(config, cell, steps),
            agents,
            f"MemoryChain{length}-v0",
            episodes=config.num_episodes,
            runs=seeds,
            seed=EVALUATION_SEED * length,
        )
        found[length] = Measured(regret[:, place], (1 + played.returns.mean(-1)) / 2)
    return found


def picture(config: Config, measured: dict[str, dict[int, Measured]]) -> Figure:
    """The share of right answers and the regret of each cell over the lengths."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names = {"gru": "GRU", "lstm": "LSTM", "none": "no memory"}
    shown = (("right", "share right", 0.5), ("regret", "regret in training", SOLVED))
    for axis, (what, label, line) in zip(figure.subplots(1, 2), shown, strict=True):
        for cell, color, shift in zip(
            config.cells, ("#3b6fb6", "#d9622b", "#8a94a3"), (-0.12, 0.12, 0.0), strict=False
        ):
            between = [jdl.statistics.mean_interval(getattr(each, what)) for each in measured[cell].values()]
            mean = np.array([one.mean for one in between])
            ends = np.array([(one.low, one.high) for one in between]).T
            errors = np.nan_to_num(np.abs(ends - mean))
            places = np.arange(len(mean)) + shift
            axis.errorbar(places, mean, errors, label=names.get(cell, cell), color=color, marker="o", markersize=4)
        axis.axhline(line, color="#8a94a3", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(config.lengths)), [str(length) for length in config.lengths], fontsize=7)
        axis.set_ylim(-0.03, 1.1)
        axis.set_xlabel("steps between the bit and the question")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure
