"""PPO on the device beside PPO by hand: one run, eight seeds, a network of convolutions, compile times."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.bench import measure
from experiments.bench.measure import Row, Worker, compared, interleaved, rate, serve

CALLS = 20  # rollouts and updates in a dispatch
SECONDS = 2.5


def device_rows(rounds: int) -> list[Row]:
    """Environment steps a second of one run and of eight seeds."""
    rows = []
    for num_envs in (8, 64):
        words = f"PPO on CartPole, {num_envs} environments"
        rates = _rates({"ours": ["ours", num_envs], "by hand": ["hand", num_envs]}, rounds)
        rows.append(compared(f"one run / by hand: {words}", rates["ours"], rates["by hand"], 1.0))
    sides = {"seeds": ["seeds", 8], "one": ["ours", 8], "vmap": ["vmap", 8], "vmap by hand": ["hand-vmap", 8]}
    rates = _rates(sides, rounds)
    rows.append(compared("8 seeds / one seed, in sum: PPO, 8 environments", rates["seeds"], rates["one"], 1.9))
    rows.append(compared("8 seeds / plain vmap: PPO, 8 environments", rates["seeds"], rates["vmap"], 1.4))
    label = "8 seeds / plain vmap of PPO by hand, 8 environments"
    rows.append(compared(label, rates["seeds"], rates["vmap by hand"], 1.4))
    rates = _rates({"scan": ["pixels-scan", 8], "loop": ["pixels-loop", 8]}, rounds)
    rows.append(compared("inside / outside the scan: PPO, convolutions on 36x36x1", rates["scan"], rates["loop"], 0.9))
    return rows


def compile_rows(rounds: int) -> list[Row]:
    """Seconds to trace and compile a step of PPO, without and with the cache; every time a new process."""
    import shutil
    import subprocess
    import tempfile

    def first(side: str, folder: str) -> float:
        command = [sys.executable, "-m", "experiments.bench.device", "compile", side, folder]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    cold, warm, hand = [], [], []
    for _ in range(min(rounds, 3)):
        folder = tempfile.mkdtemp()
        cold.append(first("ours", folder))
        warm.append(first("ours", folder))
        shutil.rmtree(folder)
        folder = tempfile.mkdtemp()
        hand.append(first("hand", folder))
        shutil.rmtree(folder)
    ratios = [one / other for one, other in zip(cold, hand, strict=True)]
    cached = [one / other for one, other in zip(warm, cold, strict=True)]
    return [
        Row("first step, cold / by hand: PPO", ratios, 1.2, rate(cold, "s"), rate(hand, "s"), at_most=True),
        Row("first step, from the cache / cold: PPO", cached, 0.4, rate(warm, "s"), rate(cold, "s"), at_most=True),
    ]


def _rates(sides: dict[str, list[Any]], rounds: int) -> dict[str, list[float]]:
    workers = {
        name: Worker([sys.executable, "-m", "experiments.bench.device", "rate", *map(str, side)])
        for name, side in sides.items()
    }
    rates = interleaved(workers, rounds)
    for worker in workers.values():
        worker.close()
    return rates


def stepping(side: str, num_envs: int) -> tuple[Callable[[Any], Any], Any, int]:
    """A compiled call, its first state, and how many environment steps it takes."""
    import jax

    import jdl

    if side in ("seeds", "vmap"):
        jdl.host_devices()
    if side.startswith("hand"):
        from experiments.bench import ppo_by_hand
        from jdl.runtime.memory import keep_scratch_memory

        keep_scratch_memory()
        init, update = ppo_by_hand.make(num_envs)
        runs, first = 1, jax.random.key(0)
        if side == "hand-vmap":
            runs, first, init, update = 8, jax.random.split(first, 8), jax.vmap(init), jax.vmap(update)
        many = jax.jit(lambda state: jax.lax.scan(lambda s, _: update(s), state, None, CALLS), donate_argnums=0)
        return lambda state: many(state)[0], jax.jit(init)(first), CALLS * 128 * num_envs * runs
    import rl

    if side.startswith("pixels"):
        env = _pixels()
        network = rl.networks.NatureCNN(64)
        algorithm = rl.ppo(env.observation_space, env.action_space, network, num_steps=16, shared=True)
        learner = rl.on_device(algorithm, env, num_envs)
        if side == "pixels-scan":
            learner = jdl.scan(learner, 4)
        calls = learner.steps
    else:
        env = rl.envs.cartpole()
        algorithm = rl.ppo(env.observation_space, env.action_space)
        learner, calls = jdl.scan(rl.on_device(algorithm, env, num_envs), CALLS), CALLS
    runs = 1
    if side in ("seeds", "vmap"):
        runs = 8
        learner = jdl.seeds(learner, runs, **({"placement": "vmap", "spread": False} if side == "vmap" else {}))
    learner = jdl.jit(learner)
    step = learner.step
    return (
        lambda state: step(state, None)[0],
        learner.init(jax.random.key(0)),
        calls * algorithm.num_steps * num_envs * runs,
    )


def _pixels() -> Any:
    """An environment like a game on a screen: a picture of bytes with a bright spot to be followed."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from gymnasium import spaces

    import rl

    no = np.False_

    def draw(place: Any) -> Any:
        near = jnp.abs(jnp.arange(36)[:, None] - place[0]) + jnp.abs(jnp.arange(36) - place[1])
        return jnp.where(near < 4, 255, 0).astype(jnp.uint8)[..., None]

    def reset(key: Any) -> Any:
        place = jax.random.randint(key, (2,), 0, 36)
        return (place, jnp.int32(0)), rl.envs.Outcome(draw(place), jnp.float32(0), no, no)

    def step(state: Any, action: Any, key: Any) -> Any:
        place, time = state
        right = (action == place[0] * 4 // 36).astype(jnp.float32)
        place = jnp.clip(place + jax.random.randint(key, (2,), -2, 3), 0, 35)
        return (place, time + 1), rl.envs.Outcome(draw(place), right, no, time >= 99)

    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    return rl.envs.Environment("pixels", reset, step, space, spaces.Discrete(4))


def main() -> None:
    """A worker's side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("rate", "compile"))
    parser.add_argument("side")
    parser.add_argument("argument")
    options = parser.parse_args()
    import jax

    if options.what == "compile":
        jax.config.update("jax_compilation_cache_dir", options.argument)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        # Starting JAX is not what is looked at, nor is reading modules.
        jax.block_until_ready(jax.numpy.zeros(1) + 1)
        import optax  # noqa: F401

        import rl  # noqa: F401
        from experiments.bench import ppo_by_hand  # noqa: F401

        begin = time.perf_counter()
        call, state, _ = stepping(options.side, 8)
        jax.block_until_ready(call(state))
        print(time.perf_counter() - begin)
        return
    call, state, steps = stepping(options.side, int(options.argument))
    serve(measure.stepping(lambda state: jax.block_until_ready(call(state)), state, steps, SECONDS))


if __name__ == "__main__":
    main()
