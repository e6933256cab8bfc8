"""Algorithms on the host beside Stable-Baselines3 and SBX, which have an environment of their own.

The same environment, network, sizes and number of updates on each side. Ours runs as `jdl run --runner host` does, on
a core of its own; Stable-Baselines3 with one thread (two are no faster), SBX with as many as it takes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from experiments.bench import peers
from experiments.bench.measure import Row, Worker, compared, interleaved, rate, serve

BARS = {  # by setting, vectorization and whether to act ahead: against SB3, against SBX
    ("ppo-128", "vector_entry_point", False): (3.0, 3.0),
    ("ppo-128", "sync", False): (2.5, 2.5),
    ("ppo-256", "vector_entry_point", False): (3.0, 1.5),
    ("dqn", "sync", False): (3.0, 1.5),
    ("dqn", "sync", True): (3.0, 1.5),
    ("sac", "sync", False): (1.5, 1.5),
}
WORDS = {
    "ppo-128": "PPO, 8 environments, 128 steps, 4 epochs of 256",
    "ppo-256": "PPO, 8 environments, 256 steps, 10 epochs of 64",
    "dqn": "DQN, the zoo's settings",
    "sac": "SAC on HalfCheetah, batches of 256, an update a step",
}


def host_rows(rounds: int, peer_python: str) -> list[Row]:
    """Environment steps a second, training included."""
    rows = []
    for (what, vectorization, ahead), bars in BARS.items():
        commands = {
            "ours": [sys.executable, "-m", "experiments.bench.host", "rate", what, vectorization, *["--ahead"] * ahead],
            **{peer: [peer_python, "-m", "experiments.bench.peers", peer, what] for peer in ("sb3", "sbx")},
        }
        workers = {side: Worker(command) for side, command in commands.items()}
        rates = interleaved(workers, rounds)
        for worker in workers.values():
            worker.close()
        for peer, bar in zip(("sb3", "sbx"), bars, strict=True):
            label = f"host / {peer.upper()}: {WORDS[what]}, {vectorization.replace('_', ' ')}{', ahead' * ahead}"
            rows.append(compared(label, rates["ours"], rates[peer], bar))
    return rows


def time_rows(rounds: int, peer_python: str) -> list[Row]:
    """Seconds from the start of the process to a mean return of 475, over ten seeds; evaluations left out."""
    rows = []
    for what in ("ppo", "dqn"):
        ours, theirs = [], []
        for seed in range(-1, 10):  # the first fills the cache of compiled programs
            mine = [sys.executable, "-m", "experiments.bench.host", "to-475", what, str(max(seed, 0))]
            found = float(subprocess.run(mine, capture_output=True, text=True, check=True).stdout.split()[-1])
            if seed < 0:
                continue
            ours.append(found)
            peer = [peer_python, "-m", "experiments.bench.peers", "sb3", what, "--to-475", str(seed)]
            theirs.append(float(subprocess.run(peer, capture_output=True, text=True, check=True).stdout.split()[-1]))
        ratio = statistics.median(ours) / statistics.median(theirs)
        label = f"seconds to 475 / SB3: {what.upper()}, the zoo's settings, medians of 10 seeds"
        rows.append(Row(label, [ratio], 1.0, rate(ours, "s"), rate(theirs, "s"), at_most=True))
    return rows


def make(
    what: str, vectorization: str, seed: int = 0, zoo: bool = False, ahead: bool = False
) -> tuple[Any, Any, Any, int]:
    """Algorithm, learner, source, and environment steps an update."""
    import jdl

    jdl.one_core()
    import flax.linen as nn
    import optax

    import rl

    num_envs = 8 if what.startswith("ppo") else 1
    envs = rl.make_vec(peers.ENVS.get(what, "CartPole-v1"), num_envs, vectorization)
    spaces = envs.single_observation_space, envs.single_action_space
    if what == "sac":
        theirs = peers.SAC
        algorithm = rl.sac(
            *spaces,
            num_envs=1,
            optimizer=optax.adam(theirs["learning_rate"]),
            num_steps=theirs["train_freq"],
            updates_per_rollout=theirs["gradient_steps"],
            batch_size=theirs["batch_size"],
            capacity=theirs["buffer_size"],
            learning_starts=theirs["learning_starts"],
            discount=theirs["gamma"],
            tau=theirs["tau"],
        )
    elif what == "dqn":
        theirs = peers.DQN_ZOO
        algorithm = rl.dqn(
            *spaces,
            rl.networks.torso(spaces[0], (256, 256), nn.relu),
            num_envs=1,
            optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(theirs["learning_rate"])),
            num_steps=theirs["train_freq"],
            updates_per_rollout=theirs["gradient_steps"],
            batch_size=theirs["batch_size"],
            capacity=theirs["buffer_size"],
            learning_starts=theirs["learning_starts"],
            target_every=theirs["gradient_steps"],  # at each of their 10 steps, 256 of which go by between trainings
            epsilon=optax.linear_schedule(1.0, theirs["exploration_final_eps"], int(0.16 * 50_000)),
            huber=1.0,
            double=False,
        )
    else:
        theirs = peers.PPO_ZOO if zoo else {"ppo-128": peers.FIRST, "ppo-256": peers.SECOND}[what]
        learning_rate = theirs.get("learning_rate", 3e-4)
        algorithm = rl.ppo(
            *spaces,
            optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate, eps=1e-5)),
            num_steps=theirs["n_steps"],
            epochs=theirs["n_epochs"],
            minibatches=theirs["n_steps"] * num_envs // theirs["batch_size"],
            discount=theirs.get("gamma", 0.99),
            gae_lambda=theirs.get("gae_lambda", 0.95),
            entropy_weight=0.0,
        )
    learner, source = rl.on_host(algorithm, envs, seed=seed, ahead=ahead)
    return algorithm, jdl.jit(learner), source, algorithm.num_steps * num_envs


def measured(what: str, vectorization: str, ahead: bool) -> None:
    """Serve measurements of steps a second, in `jdl.fit`."""
    import jdl

    _, learner, source, steps = make(what, vectorization, ahead=ahead)
    count = {"ppo-128": 60, "ppo-256": 20, "dqn": 60, "sac": 1000}[what]

    def measure() -> float:
        begin = time.perf_counter()
        jdl.fit(learner, source, steps=count, progress=False)
        return count * steps / (time.perf_counter() - begin)

    serve(measure)


def to_475(what: str, seed: int) -> float:
    """As `peers.to_475`, of ours."""
    import jax

    import rl

    algorithm, learner, source, steps = make(what, "vector_entry_point" if what == "ppo" else "sync", seed, zoo=True)
    state, spent, every = learner.init(jax.random.key(seed)), 0.0, 5120 if what == "ppo" else 2560
    for _ in range(200):
        for _ in range(every // steps):
            state, _ = learner.step(state, source.next(state))
        jax.block_until_ready(state)
        begin = time.perf_counter()
        mean = rl.evaluate(algorithm, state.agent, "CartPole-v1", episodes=100, seed=1000).returns.mean()
        spent += time.perf_counter() - begin
        if mean >= 475:
            break
    return peers.age() - spent


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("rate", "to-475"))
    parser.add_argument("setting")
    parser.add_argument("argument")
    parser.add_argument("--ahead", action="store_true")
    options = parser.parse_args()
    if options.what == "rate":
        measured(options.setting, options.argument, options.ahead)
    else:
        print(to_475(options.setting, int(options.argument)))
