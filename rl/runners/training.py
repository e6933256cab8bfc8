"""The common part of experiments: train every seed, on the device or on the host, and score the agents in Gymnasium."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

import jdl
from jdl.runtime import processes
from rl import envs, figures
from rl.runners.evaluate import evaluate
from rl.runners.on_device import episodes, on_device
from rl.runners.on_host import learn_on_host, on_host
from rl.runners.vector import make_vec, spaces_of
from rl.spaces import has_image
from rl.types import Algorithm
from rl.video import video

# Environments are reset with seed, seed + 1, ...: evaluation begins far from the seeds that training uses.
EVALUATION_SEED = 10_000

type Runner = Literal["auto", "device", "host"]
type Make = Callable[[gymnasium.Space, gymnasium.Space], Algorithm]  # (observation space, action space) -> algorithm


@dataclasses.dataclass(frozen=True)
class Training:
    """The fields of every experiment's config; None means the value tuned for the environment, or else a common one."""

    env: str = "CartPole-v1"
    runner: Runner = "auto"
    """device: on the compiled twin; host: in Gymnasium, a process per seed; auto: device if a twin exists, else host"""
    vectorization: Literal["sync", "async", "vector_entry_point"] | None = None
    """on the host: how environments are vectorized, by default Gymnasium's choice"""
    ahead: bool = False
    """on the host: act while the agent learns, with its parameters from one update ago; faster if a core is free"""
    total_steps: int | None = None
    """environment steps, of all environments together; on the device rounded down by less than a hundredth"""
    num_envs: int | None = None
    devices: jdl.Mode = "auto"
    """on the device: how a seed's environments and learning use the devices; auto leaves CPU devices to the seeds"""
    mesh: str = ""
    """devices per seed: 4, or 2x2 if layers are split as well"""
    groups: int = 1
    """groups of devices, each training a part of the seeds; the mesh is that of one group"""
    num_episodes: int = 100
    """episodes of the final evaluation, per seed"""

    @property
    def on_host(self) -> bool:
        """Whether training runs in Gymnasium's environment instead of a compiled twin."""
        return self.runner == "host" or (self.runner == "auto" and not envs.is_compiled(self.env))

    @property
    def one_core(self) -> bool:
        """Whether a process that trains this is faster on a core of its own, which it is not with convolutions."""
        return self.on_host and not has_image(spaces_of(self.env, self.vectorization)[0])

    def separate(self, run: jdl.Run) -> bool:
        """Whether the seeds of a run should be trained in separate processes (`jdl.separately`).

        Args:
            run: the run.
        """
        return self.on_host and len(run.seeds) > 1


def settings(config: Training, common: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a config: fields that are not None, else values tuned for `config.env`, else common values.

    "auto" as "runner" becomes "device" or "host".

    Args:
        config: the config of an experiment.
        common: values for all environments, by field.
        tuned: values by environment id, then by field.
    """
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    name = config.env.rpartition(":")[2]  # without the module that registers it
    return {**common, **tuned.get(name, {}), **given, "runner": "host" if config.on_host else "device"}


def options(algorithm: Callable[..., Algorithm], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are arguments of an algorithm: `rl.ppo(..., **rl.options(rl.ppo, chosen))`.

    Args:
        algorithm: a function such as `rl.ppo`.
        chosen: the result of `settings`.
    """
    return {name: chosen[name] for name in inspect.signature(algorithm).parameters if name in chosen}


def experiment(
    algorithm: Callable[[Any, gymnasium.Space, gymnasium.Space], Algorithm],
    settings: Callable[[Any], dict[str, Any]],
    *,
    also: Callable[[Algorithm, Any, str], Mapping[str, Any]] | None = None,
) -> tuple[Callable[[Any], jdl.Learner], Callable[[Any, jdl.Run], dict[str, Any]]]:
    """The functions `learner(config)` and `main(config, run)` of an experiment.

    Args:
        algorithm: `(config, observation space, action space) -> Algorithm`.
        settings: `(config) -> dict`, which includes the fields of `Training` (`rl.settings`).
        also: `(algorithm, agents, env) -> dict`, further final metrics, with one value per seed.
    """

    def learner_of(config: Any) -> jdl.Learner:
        """The learner of one run."""
        return learner(functools.partial(algorithm, config), settings(config))

    def main(config: Any, run: jdl.Run) -> dict[str, Any]:
        """Train on the device or on the host, and evaluate the final agents in Gymnasium's environment."""
        if config.runner == "auto" and config.on_host:
            print(f"{config.env} has no compiled twin: training on the host", file=sys.stderr)
        scored = envs.gymnasium_id(config.env)
        if scored != config.env and envs.is_compiled(config.env):
            there = scored.partition("/")[0] == config.env.partition(":")[0]
            where = "there, too, stepped by the host" if there else f"in {scored}"
            print(f"{config.env} is compiled; its agents are scored {where}", file=sys.stderr)
        if config.separate(run):
            return jdl.separately(run)
        trained = train(functools.partial(algorithm, config), settings(config), run)
        return trained.scores | dict(also(trained.algorithm, trained.agents, config.env) if also else {})

    return learner_of, main


def updates(total_steps: int, num_envs: int, num_steps: int) -> int:
    """The number of updates in a number of environment steps.

    Args:
        total_steps: steps of all environments together.
        num_envs: number of environments.
        num_steps: steps of each environment per rollout.

    Raises:
        ValueError: for fewer steps than one rollout, and for `num_envs` or `num_steps` below 1.
    """
    if num_envs < 1 or num_steps < 1:
        raise ValueError(f"num_envs={num_envs}, num_steps={num_steps}: at least 1 of each")
    count = total_steps // (num_envs * num_steps)
    if count < 1:
        raise ValueError(
            f"total_steps={total_steps} is less than one rollout ({num_envs} environments x {num_steps} steps); "
            "give more"
        )
    return count


def learner(make: Make, chosen: Mapping[str, Any]) -> jdl.Learner:
    """The learner of one run, the one that `train` trains.

    Args:
        make: `(observation space, action space) -> algorithm`.
        chosen: the result of `settings`.
    """
    if chosen["runner"] == "host":
        spaces = spaces_of(chosen["env"], chosen.get("vectorization"))
        return learn_on_host(make(*spaces), spaces[1])
    twin = envs.make(chosen["env"])
    return on_device(make(twin.observation_space, twin.action_space), twin, chosen["num_envs"])


class Trained(NamedTuple):
    """The result of training.

    Attributes:
        algorithm: the algorithm.
        agents: leaves [seed, ...].
        scores: final metrics by name, each [seed].
    """

    algorithm: Algorithm
    agents: Any
    scores: dict[str, Any]


def train(make: Make, chosen: Mapping[str, Any], run: jdl.Run) -> Trained:
    """Train the seeds of a run, and score the final agents.

    The scores are "return" and "length", means over episodes in Gymnasium (`rl.envs.gymnasium_id`) with greedy actions,
    and after training on the device "return (twin)", the mean return in the compiled environment.

    Args:
        make: `(observation space, action space) -> algorithm`.
        chosen: the result of `settings`.
        run: the run; the scores of each episode, a video of the first agent and figures (`rl.figures`) are saved in its
            directory.
    """
    evaluated = episodes(chosen["num_episodes"])  # raises for a wrong number before anything is trained
    trained = _on_host(make, chosen, run) if chosen["runner"] == "host" else _on_device(make, chosen, run, evaluated)
    trained = trained._replace(agents=processes.local(trained.agents))
    counted = figures.Actions(spaces_of(chosen["env"])[1], len(run.seeds))
    scores = evaluate(
        trained.algorithm,
        trained.agents,
        chosen["env"],
        episodes=chosen["num_episodes"],
        runs=len(run.seeds),
        seed=EVALUATION_SEED,
        watch=counted,
    )
    run.save_arrays("scores", **scores._asdict())
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), jax.device_get(trained.agents))
    video(trained.algorithm, first, chosen["env"], run.path / "video.gif", seed=EVALUATION_SEED)
    figures.save(trained.algorithm, first, chosen["env"], run, scores.returns, counted, seed=EVALUATION_SEED)
    means = {"return": scores.returns.mean(-1), "length": scores.lengths.mean(-1)}
    return trained._replace(scores={**means, **trained.scores})


def _spread(chosen: Mapping[str, Any], run: jdl.Run) -> bool | int:
    """How `jdl.seeds` spreads the seeds: over all devices (True), over groups of devices (a number), or not at all.

    A single group, or False, leaves all devices to each seed. Raises ValueError for groups below 1, and for several
    groups whose seeds would not use the devices.
    """
    devices, groups = chosen["devices"], chosen["groups"]
    alone = devices in ("auto", "single")
    if groups < 1 or (alone and groups > 1):
        raise ValueError(
            f"groups={groups}, devices={devices!r}: groups of devices are at least 1; for more say how a seed uses the "
            "devices of its group (devices=data, mesh=4)"
        )
    return len(run.seeds) > 1 if alone else groups


def _on_device(make: Make, chosen: Mapping[str, Any], run: jdl.Run, evaluated: Mapping[str, Any]) -> Trained:
    if chosen["ahead"]:
        raise ValueError("ahead=True: on the device acting is a part of the step; it is for runner='host'")
    twin = envs.make(chosen["env"])
    algorithm = make(twin.observation_space, twin.action_space)
    count = updates(chosen["total_steps"], chosen["num_envs"], algorithm.num_steps)
    per_call = max(1, count // 100)  # the last few updates, less than a hundredth, make no whole call
    one = jdl.distribute(on_device(algorithm, twin, chosen["num_envs"]), chosen["devices"], chosen["mesh"])
    training = jdl.jit(jdl.seeds(jdl.scan(one, per_call), run.seeds, spread=_spread(chosen, run)))
    fitted = jdl.fit(training, None, steps=count // per_call * per_call, log_every=per_call, run=run)
    _tell_what_is_narrow(fitted.rows)
    scores = {"return (twin)": jdl.evaluate(training, fitted.state, evaluated)["return"]}
    return Trained(algorithm, fitted.state.agent, scores)


def _on_host(make: Make, chosen: Mapping[str, Any], run: jdl.Run) -> Trained:
    each, rest = divmod(chosen["num_envs"], processes.count())
    if rest:
        raise ValueError(
            f"num_envs={chosen['num_envs']}: {processes.count()} processes have as many each; give a multiple of that"
        )
    vectors = [make_vec(chosen["env"], each, chosen.get("vectorization")) for _ in run.seeds]
    algorithm = make(vectors[0].single_observation_space, vectors[0].single_action_space)
    count = updates(chosen["total_steps"], chosen["num_envs"], algorithm.num_steps)
    one, source = on_host(algorithm, vectors, seed=run.seeds, ahead=chosen["ahead"])
    one = jdl.distribute(one, chosen["devices"], chosen["mesh"])
    try:
        training = jdl.jit(jdl.seeds(one, run.seeds, each=True, spread=_spread(chosen, run)))
        fitted = jdl.fit(training, source, steps=count, run=run)
    finally:
        source.close()
    _tell_what_is_narrow(fitted.rows)
    return Trained(algorithm, fitted.state.agent, {})


# Metrics of returns that an agent cannot represent, and what to widen.
_NARROW = {
    "beyond_support": "low and high (of rl.value_heads.categorical)",
    "beyond_limit": "value_limit (of rl.muzero)",
}


def _tell_what_is_narrow(rows: list[dict[str, Any]]) -> None:
    """Returns beyond the ends count as the ends: in the end more than a hundredth of them is no accident."""
    last = rows[-1] if rows else {}
    for name, remedy in _NARROW.items():
        shares = [share for share in last.get(f"train/{name}", []) if share is not None and share > 0.01]
        if shares:
            told = f"{name} is {max(shares):.2f}: that share of the returns counts as the nearest one that fits"
            print(f"{told}; widen {remedy}", file=sys.stderr)
