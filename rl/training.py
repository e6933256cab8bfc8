"""What experiments on compiled environments share: train every seed in one program, score each in both worlds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jdl
from rl.envs import Environment
from rl.evaluate import evaluate
from rl.on_device import episodes, on_device
from rl.types import Algorithm


def settings(config: Any, common: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a config that were given (not None), else those tuned for `config.env`, else common ones."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return {**common, **tuned.get(config.env, {}), **given}


def updates(total_steps: int, num_envs: int, rollout: int) -> int:
    """How many updates a number of environment steps makes; raises ValueError where it makes none."""
    count = total_steps // (num_envs * rollout)
    if count < 1:
        raise ValueError(
            f"total_steps={total_steps} is less than one rollout ({num_envs} environments x {rollout} steps); give more"
        )
    return count


class Trained(NamedTuple):
    """What training leaves."""

    agents: Any  # with a leading axis of seeds
    scores: dict[str, Any]  # by name, one a seed


def train(
    algorithm: Algorithm, env: Environment, run: jdl.Run, *, num_envs: int, total_steps: int, num_episodes: int = 100
) -> Trained:
    """Train the run's seeds on the compiled environment, and score the last agents.

    "return" and "length": means over episodes of the Gymnasium environment of the same name, greedy actions;
    "return (twin)": the same in the compiled one.
    """
    evaluated = episodes(num_episodes)  # before anything is trained: a wrong number is an error
    count = updates(total_steps, num_envs, algorithm.rollout)
    per_call = max(1, count // 100)
    training = jdl.jit(jdl.seeds(jdl.scan(on_device(algorithm, env, num_envs), per_call), run.seeds))
    fitted = jdl.fit(training, None, steps=count // per_call * per_call, log_every=per_call, run=run)
    twin = jdl.evaluate(training, fitted.state, evaluated)
    agents = fitted.state.agent
    scores = evaluate(algorithm, agents, env.name, episodes=num_episodes, runs=len(run.seeds), seed=10_000)
    means = {"return": scores.returns.mean(-1), "length": scores.lengths.mean(-1), "return (twin)": twin["return"]}
    return Trained(agents, means)
