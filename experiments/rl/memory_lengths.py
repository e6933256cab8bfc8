"""How long can a policy remember? PPO with and without a memory on each of bsuite's 23 memory chains.

A bit is shown, and asked for `length` steps later. By bsuite's rule a length is solved if the regret of the episodes of
training, 1 minus their mean return, is less than 0.75; a guess has 1. At length 1 the bit is still shown when it is
asked for, so that nothing needs to be remembered.

Run:       jdl run memory_lengths --seeds 5
Result:    not measured yet
"""

import dataclasses
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

import jdl
import rl

SOLVED = 0.75  # regret, as a share of that of a guess
EASY = 30  # up to this length, all are to be solved


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters; they are the same for all lengths, and each rollout is one episode."""

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


def updates(config: Config) -> int:
    """Updates for each length: in each, every environment plays one episode."""
    return config.episodes // config.num_envs


def algorithm(config: Config, cell: str, length: int) -> rl.Algorithm:
    """PPO whose rollout is one episode of this length."""
    env = rl.envs.memory_chain(length)
    count = updates(config) * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, count)
    network = None
    if cell != "none":
        layers = (config.width,)
        network = rl.memory.memory(env.observation_space, config.width, cell, layers, config.gate_bias)  # type: ignore[arg-type]
    return rl.ppo(
        env.observation_space,
        env.action_space,
        network,
        optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5)),
        shared=True,
        num_steps=length + 1,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=1.0,
        gae_lambda=1.0,
        entropy_weight=0.0,
    )


def learner(config: Config) -> jdl.Learner:
    """One run of the first cell, on the first length."""
    return one(config, config.cells[0], config.lengths[0])


def one(config: Config, cell: str, length: int) -> jdl.Learner:
    """One run."""
    env = rl.envs.memory_chain(length)
    return rl.on_device(algorithm(config, cell, length), env, config.num_envs)


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train each cell on each length, all seeds together, and score the final agents in Gymnasium."""
    count = updates(config)
    per_call = max(1, count // 25)
    scores: dict[str, Any] = {}
    for cell in config.cells:
        solved, right = {}, {}
        for length in config.lengths:
            training = jdl.jit(jdl.seeds(jdl.scan(one(config, cell, length), per_call), run.seeds))
            steps = count // per_call * per_call
            part = run.part(f"{cell}-{length}")
            fitted = jdl.fit(training, None, steps=steps, log_every=per_call, run=part)
            solved[length] = 1 - np.mean([row["train/return"] for row in fitted.rows], 0) < SOLVED
            played = rl.evaluate(
                algorithm(config, cell, length),
                fitted.state.agent,
                f"MemoryChain{length}-v0",
                episodes=config.num_episodes,
                runs=len(run.seeds),
            )
            right[length] = (1 + played.returns.mean(-1)) / 2
        scores[f"lengths solved ({cell})"] = sum(solved.values())
        easy = [right[length] for length in config.lengths if length <= EASY]
        scores[f"accuracy up to length {EASY} ({cell})"] = np.min(easy, 0)  # of the worst of them
        scores |= {f"share right ({cell})/length {length}": share for length, share in right.items()}
    note = f"Greedy agents after {config.episodes} episodes; mean and 95% interval over {len(run.seeds)} seeds."
    run.save_figure("Share of right answers by length", picture(config, scores), note)
    return scores


def picture(config: Config, scores: dict[str, Any]) -> Figure:
    """The share of right answers of each cell over the lengths."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis = figure.subplots()
    names = {"gru": "GRU", "lstm": "LSTM", "none": "no memory"}
    for cell, color, shift in zip(config.cells, ("#3b6fb6", "#d9622b", "#8a94a3"), (-0.12, 0.12, 0.0), strict=False):
        shares = [np.asarray(scores[f"share right ({cell})/length {length}"]) for length in config.lengths]
        between = [jdl.statistics.mean_interval(share) for share in shares]
        mean = np.array([one.mean for one in between])
        ends = np.array([(one.low, one.high) for one in between]).T
        errors = np.nan_to_num(np.abs(ends - mean))
        places = np.arange(len(shares)) + shift
        axis.errorbar(places, mean, errors, label=names.get(cell, cell), color=color, marker="o", markersize=4)
    axis.axhline(0.5, color="#8a94a3", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(config.lengths)), [str(length) for length in config.lengths], fontsize=8)
    axis.set_ylim(0.4, 1.03)
    axis.set_xlabel("steps between the bit and the question")
    axis.set_ylabel("share right")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
