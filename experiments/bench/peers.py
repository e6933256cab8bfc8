"""A peer's side of `experiments.bench.host`: Stable-Baselines3 or SBX, in an environment of their own.

Standard library, the peer and Gymnasium alone. Prints environment steps a second at every request, or how many
seconds training took to a mean return of 475.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

FIRST = {"n_steps": 128, "n_epochs": 4, "batch_size": 256}
SECOND = {"n_steps": 256, "n_epochs": 10, "batch_size": 64}
# The values of RL Baselines3 Zoo, schedules held constant.
PPO_ZOO = {
    "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
    "learning_rate": 1e-3, "clip_range": 0.2,
}  # fmt: skip
DQN_ZOO = {
    "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "gamma": 0.99,
    "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
SAC = {  # the defaults of both peers
    "learning_rate": 3e-4, "batch_size": 256, "buffer_size": 100_000, "learning_starts": 500, "tau": 0.005,
    "gamma": 0.99, "train_freq": 1, "gradient_steps": 1,
}  # fmt: skip
ENVS = {"sac": "HalfCheetah-v5"}


def make(peer: str, algorithm: str, settings: dict[str, Any], num_envs: int, seed: int = 0) -> Any:
    """A model of the peer's on CartPole, or on HalfCheetah for SAC."""
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore

    if peer == "sb3":
        import stable_baselines3 as library  # type: ignore
        import torch  # type: ignore

        torch.set_num_threads(2 if algorithm == "sac" else 1)  # the faster
    else:
        import sbx as library  # type: ignore
    env = make_vec_env(ENVS.get(algorithm, "CartPole-v1"), num_envs, seed=seed)
    extra = {"device": "cpu"} if peer == "sb3" else {}
    return getattr(library, algorithm.upper())("MlpPolicy", env, seed=seed, verbose=0, **settings, **extra)


def rate(peer: str, what: str) -> None:
    """Serve measurements of steps a second."""
    from experiments.bench.measure import serve

    settings = {"ppo-128": FIRST, "ppo-256": SECOND, "dqn": DQN_ZOO, "sac": SAC}[what]
    model = make(peer, what.split("-")[0], settings, 8 if what.startswith("ppo") else 1)
    steps = {"ppo-128": 30_720, "ppo-256": 12_288, "dqn": 10_240, "sac": 1000}[what]
    model.learn(steps)  # compiled, and past its warm-up

    def measure() -> float:
        begin = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.perf_counter() - begin)

    serve(measure)


def to_475(peer: str, what: str, seed: int) -> float:
    """Seconds since the process began until 100 greedy episodes have a mean return of 475; evaluations left out."""
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore
    from stable_baselines3.common.evaluation import evaluate_policy  # type: ignore

    model = make(peer, what, PPO_ZOO if what == "ppo" else DQN_ZOO, 8 if what == "ppo" else 1, seed)
    judge, spent, every = make_vec_env("CartPole-v1", 10, seed=1000), 0.0, 5120 if what == "ppo" else 2560
    for _ in range(200):
        model.learn(every, reset_num_timesteps=False)
        begin = time.perf_counter()
        mean = evaluate_policy(model, judge, 100)[0]
        spent += time.perf_counter() - begin
        if mean >= 475:
            break
    return age() - spent


def age() -> float:
    """Seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=("sb3", "sbx"))
    parser.add_argument("what")
    parser.add_argument("--to-475", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.to_475 is None:
        rate(options.peer, options.what)
    else:
        print(to_475(options.peer, options.what, options.to_475), file=sys.stdout)
