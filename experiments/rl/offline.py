"""Learning from recorded experience alone: behavior cloning and five algorithms that do better than the recordings.

Run:       jdl run offline --data medium --method iql --seeds 5          (data: random, medium, replay, mixed)
           jdl run offline --data pendulum/mine-v0                       (a local Minari set)
Result:    not measured yet
"""

import dataclasses
import sys
from typing import Any, Literal

import flax.linen as nn
import gymnasium
import jax
import numpy as np
import optax

import jdl
import rl
from rl import offline


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    env: str = "Pendulum-v1"
    data: str = "medium"
    """random, medium, replay or mixed: recorded here, from soft actor-critic; else the id of a local Minari set"""
    method: Literal["bc", "td3_bc", "iql", "cql", "decision_transformer"] = "iql"
    updates: int | None = None
    batch_size: int | None = None
    medium_steps: int | None = None  # steps of training of the agent that plays the medium set
    expert_steps: int | None = None  # of the agent of the mixed set, whose replay is the set of that name
    episodes: int | None = None  # of each own set
    widths: tuple[int, ...] | None = None  # features of the layers of the networks
    learning_rate: float | None = None
    discount: float | None = None
    alpha: float | None = None  # of TD3+BC, and of CQL
    expectile: float | None = None  # of IQL
    beta: float | None = None  # of IQL
    context: int | None = None  # of the decision transformer
    num_episodes: int = 100
    """episodes of the final evaluation, per seed"""


SMOKE = {"updates": 8, "medium_steps": 200, "expert_steps": 400, "episodes": 2, "num_episodes": 2}


def bars(method: str, data: str) -> dict[str, str]:
    """No worse than the data; a clone of one agent within 5% of it, and of several agents held to nothing."""
    if method == "bc":
        return {"gain over the data": ">= -50"} if data == "medium" else {}
    return {"gain over the data": ">= 0"}


METHODS = ("bc", "td3_bc", "iql", "cql", "decision_transformer")
RECORDS = {
    f"{method}-{data}": jdl.Record(
        {"method": method, "data": data},
        seeds=5,
        statistic="iqm",
        bars=bars(method, data),
        shown=("return", "return of the data", "gain over the data"),
        beside="the mean return of the recorded episodes",
    )
    for data in ("medium", "replay", "mixed")
    for method in METHODS
}

COMMON = {
    "updates": 20_000,
    "batch_size": 256,
    "episodes": 100,
    "widths": (256, 256),
    "learning_rate": 3e-4,
    "discount": 0.99,
    "medium_steps": 2_000,
    "expert_steps": 5_000,
    "context": 20,
}
TUNED: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {"behavior_rate": 1e-3, "widths": (64, 64), "learning_rate": 1e-3},
    "HalfCheetah-v5": {"updates": 100_000, "medium_steps": 30_000, "expert_steps": 100_000},
}
OPTIONS = {"td3_bc": ("alpha", "discount"), "cql": ("alpha", "discount"), "iql": ("expectile", "beta", "discount")}
BEHAVIOR_SEED = 1


def settings(config: Config) -> dict[str, Any]:
    """The settings of a config."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return {**COMMON, **TUNED.get(config.env, {}), **given}


def algorithm(
    config: Config, observation_space: Any, action_space: Any, data: offline.Dataset | None = None
) -> rl.Algorithm:
    """The method. Without data, it is the same but for what is measured in them, which an agent keeps."""
    chosen = settings(config)
    options = {name: chosen[name] for name in OPTIONS.get(config.method, ()) if name in chosen}
    if data is not None:
        options["moments"] = data.moments()
    else:
        one = rl.spaces.zeros(observation_space)
        options["moments"] = rl.normalize.initial(one, rl.spaces.real_valued(observation_space))
    if config.method == "decision_transformer":
        returns = np.zeros(1) if data is None else data.returns
        scale = max(1.0, float(np.abs(returns).max()))
        limit = gymnasium.spec(rl.envs.gymnasium_id(config.env)).max_episode_steps or 1000
        aim = {"target_return": float(returns.max()), "return_scale": scale, "max_steps": limit}
        return offline.decision_transformer(
            observation_space, action_space, **options, **aim, context=chosen["context"]
        )
    network = rl.networks.MLP(rl.spaces.encode(observation_space), chosen["widths"], nn.relu)
    options["optimizer"] = optax.adam(chosen["learning_rate"])
    return getattr(offline, config.method)(observation_space, action_space, network, **options)


def learner(config: Config, data: offline.Dataset | None = None) -> jdl.Learner:
    """The learner of one run."""
    spaces = rl.make_vec(config.env, 1)
    spaces.close()
    one = algorithm(config, spaces.single_observation_space, spaces.single_action_space, data)
    context = settings(config)["context"] if config.method == "decision_transformer" else None
    return offline.learner(one, spaces.single_action_space, settings(config)["batch_size"], context=context)


def dataset(config: Config) -> offline.Dataset:
    """The recorded episodes: a local Minari set, which is recorded first if it is one of those of this experiment."""
    chosen = settings(config)
    if config.data not in ("random", "medium", "replay", "mixed"):
        return offline.load(config.data)
    steps = {"random": "", "medium": f"-{chosen['medium_steps']}", "replay": f"-{chosen['expert_steps']}"}
    counts = steps.get(config.data, f"-{chosen['medium_steps']}-{chosen['expert_steps']}")
    name = f"{config.env.lower()}/{config.data}{counts}-{chosen['episodes']}-v0"
    if name in offline.local():
        return offline.load(name)
    space = rl.make_vec(config.env, 1).single_action_space
    if config.data != "random" and not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(
            f"data={config.data!r} is recorded by soft actor-critic, for Box actions, and {config.env} has {space}; "
            "record a run of another algorithm (rl.offline.record_run, rl.offline.save) and give its id as data"
        )
    print(f"recording {name}", file=sys.stderr)
    found = recorded(config.env, config.data, chosen)
    offline.save(found, name, algorithm="" if config.data == "random" else "soft actor-critic")
    return found


def recorded(env: str, kind: str, chosen: dict[str, Any]) -> offline.Dataset:
    """Episodes of random actions, of a half-trained agent, of it and a trained one, or what the latter saw."""
    count = chosen["episodes"]
    if kind == "random":
        return offline.record_random(env, episodes=count, seed=BEHAVIOR_SEED)
    if kind == "replay":
        return offline.replay_of(behavior(env, chosen["expert_steps"], chosen)[1], env)
    medium = offline.record(*behavior(env, chosen["medium_steps"], chosen), env, episodes=count, seed=BEHAVIOR_SEED)
    if kind == "medium":
        return medium
    expert = offline.record(*behavior(env, chosen["expert_steps"], chosen), env, episodes=count, seed=BEHAVIOR_SEED)
    return offline.join(medium, expert)


def behavior(env: str, steps: int, chosen: dict[str, Any]) -> tuple[rl.Algorithm, Any]:
    """Soft actor-critic after a number of steps."""
    rate = chosen.get("behavior_rate", 3e-4)

    def made(*spaces: Any) -> rl.Algorithm:
        return rl.sac(*spaces, num_envs=1, capacity=max(1000, steps), optimizer=optax.adam(rate))

    if rl.envs.is_compiled(env):
        twin = rl.envs.make(env)
        one = made(twin.observation_space, twin.action_space)
        training = jdl.jit(jdl.scan(rl.on_device(one, twin, 1), steps))
        return one, training.step(training.init(jax.random.key(BEHAVIOR_SEED)), None)[0].agent
    vector = rl.make_vec(env, 1)
    one = made(vector.single_observation_space, vector.single_action_space)
    training, source = rl.on_host(one, [vector], seed=[BEHAVIOR_SEED])
    try:
        return one, jdl.fit(jdl.jit(training), source, steps=steps, key=BEHAVIOR_SEED).state.agent
    finally:
        source.close()


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Learn from the recorded steps, and evaluate the final agents in Gymnasium's environment."""
    chosen, data = settings(config), dataset(config)
    vector = rl.make_vec(config.env, 1)
    vector.close()
    spaces = vector.single_observation_space, vector.single_action_space
    offline.check_spaces(data, config.env, *spaces)
    count = chosen["updates"]
    per_call = max(1, count // 100)
    training = jdl.jit(jdl.seeds(jdl.scan(learner(config, data), per_call), run.seeds))
    state = jdl.fit(training, data.transitions, steps=count // per_call * per_call, log_every=per_call, run=run).state
    trained = algorithm(config, *spaces, data)
    scores = rl.evaluate(
        trained, state.agent, config.env, episodes=config.num_episodes, runs=len(run.seeds), seed=10_000
    )
    run.save_arrays("scores", returns=scores.returns, lengths=scores.lengths)
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get(state.agent))
    rl.video(trained, first, config.env, run.path / "video.gif", seed=10_000)
    returns, of_data = scores.returns.mean(-1), data.returns.mean()
    return {
        "return": returns,
        "return of the data": np.full(len(returns), of_data),
        "gain over the data": returns - of_data,
    }
