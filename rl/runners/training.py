"""The shell of an experiment: train every seed, on the device or on the host, and score the agents in Gymnasium."""

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
from rl import envs
from rl.runners.evaluate import evaluate
from rl.runners.on_device import episodes, on_device
from rl.runners.on_host import learn_on_host, on_host
from rl.runners.vector import make_vec, spaces_of
from rl.spaces import is_image
from rl.types import Algorithm
from rl.video import video

type Runner = Literal["auto", "device", "host"]
type Make = Callable[[gymnasium.Space, gymnasium.Space], Algorithm]  # of observation space and action space


@dataclasses.dataclass(frozen=True)
class Training:
    """What every experiment's config has; what is None is tuned for the environment, or else common."""

    env: str = "CartPole-v1"
    runner: Runner = "auto"
    """device: on the environment's compiled twin; host: in Gymnasium, each seed in a process of its own; auto: on the
    device where there is a twin"""
    vectorization: Literal["sync", "async", "vector_entry_point"] | None = None
    """on the host, by default as Gymnasium chooses"""
    ahead: bool = False
    """on the host: act while the agent learns, as it was one update before; gains where a core is left over"""
    total_steps: int | None = None
    """of all environments together"""
    num_envs: int | None = None
    devices: jdl.Mode = "auto"
    """on the device: how a seed's environments and learning use the devices; "auto" leaves a CPU's to the seeds"""
    mesh: str = ""
    """of how many devices for a seed: 4, or 2x2 where layers are shared out as well"""
    groups: int = 1
    """of devices, each with a part of the seeds; the mesh is of one group"""
    num_episodes: int = 100
    """of the final evaluation, a seed"""

    @property
    def on_host(self) -> bool:
        """Whether Gymnasium's own environment is trained in."""
        return self.runner == "host" or (self.runner == "auto" and self.env not in envs.TWINS)

    @property
    def one_core(self) -> bool:
        """Whether a process that trains this is faster on a core of its own: not where there are convolutions."""
        return self.on_host and not is_image(spaces_of(self.env, self.vectorization)[0])

    def separate(self, run: jdl.Run) -> bool:
        """Whether the run's seeds are to be trained in processes of their own (`jdl.separately`)."""
        return self.on_host and len(run.seeds) > 1


def settings(config: Training, common: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a config that were given (not None), else those tuned for `config.env`, else common ones.

    "runner" is then "device" or "host".
    """
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    name = config.env.rpartition(":")[2]  # without the module that registers it
    return {**common, **tuned.get(name, {}), **given, "runner": "host" if config.on_host else "device"}


def options(algorithm: Callable[..., Algorithm], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are arguments of an algorithm, as `rl.ppo(..., **rl.options(rl.ppo, chosen))`."""
    return {name: chosen[name] for name in inspect.signature(algorithm).parameters if name in chosen}


def experiment(
    algorithm: Callable[[Any, gymnasium.Space, gymnasium.Space], Algorithm],
    settings: Callable[[Any], dict[str, Any]],
    *,
    also: Callable[[Algorithm, Any, str], Mapping[str, Any]] | None = None,
) -> tuple[Callable[[Any], jdl.Learner], Callable[[Any, jdl.Run], dict[str, Any]]]:
    """The `learner(config)` and `main(config, run)` of an experiment.

    Args:
        algorithm: `(config, observation space, action space) -> Algorithm`.
        settings: `(config) -> dict`, the fields of `Training` among them (`rl.settings`).
        also: `(algorithm, agents, env) -> dict`, more final metrics, one value per seed.
    """

    def learner_of(config: Any) -> jdl.Learner:
        """One run."""
        return learner(functools.partial(algorithm, config), settings(config))

    def main(config: Any, run: jdl.Run) -> dict[str, Any]:
        """Train on the device or on the host; evaluate the last agents in Gymnasium's own environment."""
        if config.runner == "auto" and config.on_host:
            print(f"{config.env} has no compiled twin: training on the host", file=sys.stderr)
        if config.separate(run):
            return jdl.separately(run)
        trained = train(functools.partial(algorithm, config), settings(config), run)
        return trained.scores | dict(also(trained.algorithm, trained.agents, config.env) if also else {})

    return learner_of, main


def updates(total_steps: int, num_envs: int, num_steps: int) -> int:
    """How many updates a number of environment steps makes; raises ValueError where it makes none."""
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
    """The learner of one run, as `train` trains it."""
    if chosen["runner"] == "host":
        spaces = spaces_of(chosen["env"], chosen.get("vectorization"))
        return learn_on_host(make(*spaces), spaces[1])
    twin = envs.make(chosen["env"])
    return on_device(make(twin.observation_space, twin.action_space), twin, chosen["num_envs"])


class Trained(NamedTuple):
    """What training leaves."""

    algorithm: Algorithm
    agents: Any  # with a leading axis of seeds
    scores: dict[str, Any]  # by name, one a seed


def train(make: Make, chosen: Mapping[str, Any], run: jdl.Run) -> Trained:
    """Train the run's seeds, and score the last agents.

    chosen: the fields of `Training`, as `settings` chose them. "return" and "length": means over episodes of the
    Gymnasium environment, greedy actions; "return (twin)": the same in the compiled one.
    """
    evaluated = episodes(chosen["num_episodes"])  # before anything is trained: a wrong number is an error
    trained = _on_host(make, chosen, run) if chosen["runner"] == "host" else _on_device(make, chosen, run, evaluated)
    trained = trained._replace(agents=processes.local(trained.agents))
    scores = evaluate(
        trained.algorithm,
        trained.agents,
        chosen["env"],
        episodes=chosen["num_episodes"],
        runs=len(run.seeds),
        seed=10_000,
    )
    run.save_arrays("scores", returns=scores.returns, lengths=scores.lengths)
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), jax.device_get(trained.agents))
    video(trained.algorithm, first, chosen["env"], run.path / "video.gif", seed=10_000)
    means = {"return": scores.returns.mean(-1), "length": scores.lengths.mean(-1)}
    return trained._replace(scores={**means, **trained.scores})


def _spread(chosen: Mapping[str, Any], run: jdl.Run) -> bool | int:
    """How seeds use the devices: all of them, or as many groups, or none where one seed is to have them.

    Raises ValueError for groups that would not be.
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
    per_call = max(1, count // 100)
    one = jdl.distribute(on_device(algorithm, twin, chosen["num_envs"]), chosen["devices"], chosen["mesh"])
    training = jdl.jit(jdl.seeds(jdl.scan(one, per_call), run.seeds, spread=_spread(chosen, run)))
    state = jdl.fit(training, None, steps=count // per_call * per_call, log_every=per_call, run=run).state
    return Trained(algorithm, state.agent, {"return (twin)": jdl.evaluate(training, state, evaluated)["return"]})


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
        state = jdl.fit(training, source, steps=count, run=run).state
    finally:
        source.close()
    return Trained(algorithm, state.agent, {})
