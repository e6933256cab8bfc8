"""Proximal policy optimization, on compiled twins or on the host; scored in the real Gymnasium environment.

Run:       jdl run ppo --env CartPole-v1 --seeds 10      (Acrobot-v1, Pendulum-v1, ...)
           jdl run ppo --env LunarLander-v3 --seeds 10
           jdl run ppo --env pgx:minatar-breakout --seeds 5         (asterix, freeway, seaquest, space_invaders)
           jdl run ppo --env ale_py:ALE/Pong-v5
Result:    return 500 [500, 500] (10 seeds, 59 s)
"""

import dataclasses
import functools

import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    learning_rate: float | None = None  # decays to zero over the run
    discount: float | None = None
    gae_lambda: float | None = None
    entropy_weight: float | None = None
    shared: bool | None = None  # one torso for actor and critic
    normalize_observations: bool | None = None
    normalize_rewards: bool | None = None


SMOKE = {"total_steps": 2048, "num_episodes": 2}
RECORDS = {
    "": jdl.Record(
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 475"},
        beside="CleanRL 490.0 ± 6.1",
    ),
    "acrobot": jdl.Record(
        {"env": "Acrobot-v1"}, seeds=10, statistic="iqm", bars={"return": ">= -90"}, beside="CleanRL -86.4 ± 1.3"
    ),
    "pendulum": jdl.Record(
        {"env": "Pendulum-v1"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= -200"},
        beside="RL Zoo -172 (one run, 100,000 steps)",
    ),
    "lunar_lander": jdl.Record(
        {"env": "LunarLander-v3"},
        seeds=10,
        statistic="iqm",
        bars={"return": ">= 230"},
        beside="RL Zoo 242 ± 32 (one run)",
    ),
    "minatar_breakout": jdl.Record(
        {"env": "pgx:minatar-breakout"},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 17.5"},
        beside="Young and Tian, AC(λ), 30 runs: 17.5",
    ),
    "minatar_asterix": jdl.Record(
        {"env": "pgx:minatar-asterix"}, seeds=5, statistic="iqm", beside="Young and Tian, AC(λ), 30 runs: 19"
    ),
    "minatar_freeway": jdl.Record(
        {"env": "pgx:minatar-freeway", "total_steps": 10_000_000},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 55"},
        beside="gymnax, PPO, without sticky actions: 58",
    ),
    "minatar_seaquest": jdl.Record({"env": "pgx:minatar-seaquest"}, seeds=5, statistic="iqm"),
    "minatar_space_invaders": jdl.Record(
        {"env": "pgx:minatar-space_invaders", "total_steps": 10_000_000},
        seeds=5,
        statistic="iqm",
        bars={"return": ">= 131"},
        beside="gymnax, PPO, without sticky actions: 131",
    ),
}


RENAMED = {  # since version 0.1
    "rollout": "num_steps",
    "trace": "gae_lambda",
    "normalise_observations": "normalize_observations",
    "normalise_rewards": "normalize_rewards",
}
# At a learning rate of 5e-4 the policy for Breakout is certain before it has seen a ball come down a second time.
MINATAR = {
    "total_steps": 5_000_000,
    "num_envs": 128,
    "num_steps": 32,
    "minibatches": 8,
    "learning_rate": 2e-3,
    "shared": True,
}
GAMES = "breakout", "asterix", "freeway", "seaquest", "space_invaders"
COMMON = {
    "total_steps": 500_000,
    "num_envs": 8,
    "num_steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 2.5e-4,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "entropy_weight": 0.01,
    "shared": False,
    "normalize_observations": False,
    "normalize_rewards": False,
}
TUNED = {
    "CartPole-v1": {"learning_rate": 1e-3, "discount": 0.98, "gae_lambda": 0.8, "entropy_weight": 0.0},
    "Acrobot-v1": {"learning_rate": 1e-3, "num_envs": 16},
    "LunarLander-v3": {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "num_steps": 1024,
        "minibatches": 256,
        "learning_rate": 1e-3,
        "discount": 0.999,
        "gae_lambda": 0.98,
    },
    "ALE/Pong-v5": {  # as Huang et al. 2022; frames come stacked from the vector environment
        "total_steps": 1_000_000,
        "learning_rate": 2.5e-4,
        "shared": True,
    },
    "Pendulum-v1": {
        "num_envs": 4,
        "num_steps": 1024,
        "epochs": 10,
        "minibatches": 64,
        "learning_rate": 1e-3,
        "discount": 0.9,
        "entropy_weight": 0.0,
    },
    **{f"minatar-{game}": MINATAR for game in GAMES},
}

settings = functools.partial(rl.settings, common=COMMON, tuned=TUNED)


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """PPO with Adam, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    schedule = optax.linear_schedule(chosen["learning_rate"], 0.0, count * chosen["epochs"] * chosen["minibatches"])
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    plain = rl.ppo(observation_space, action_space, optimizer=optimizer, **rl.options(rl.ppo, chosen))
    if not chosen["normalize_rewards"]:
        return plain
    return rl.scaled_rewards(plain, num_envs=chosen["num_envs"], discount=chosen["discount"])


learner, main = rl.experiment(algorithm, settings)
