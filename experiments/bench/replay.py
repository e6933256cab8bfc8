"""What replay costs: time beside that of a DQN update, memory for a million pictures."""

import argparse
import resource
import subprocess
import sys
from typing import Any

from experiments.bench.measure import Row, interleaved, rate, seconds


def replay_rows(rounds: int) -> list[Row]:
    """Adding 32 steps and sampling 8 batches of 64, beside the update that uses them; and Atari's memory."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import rl
    from rl.replay.replay import replay

    env = rl.envs.cartpole()
    spaces = env.observation_space, env.action_space
    sizes: dict[str, Any] = {"num_envs": 8, "capacity": 100_000}
    memory = replay(*spaces, **sizes)
    algorithm = rl.dqn(*spaces, num_steps=4, updates_per_rollout=8, batch_size=64, learning_starts=1, **sizes)
    agent = jax.jit(algorithm.init)(jax.random.key(0))
    random = np.random.default_rng(0)

    def rows(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape).astype(np.float32))

    no = jnp.zeros((4, 8), bool)
    experience = rl.Experience(
        timestep=rl.TimeStep(rows(4, 8, 4), no), action=jnp.zeros((4, 8), jnp.int32), extras=(), reward=rows(4, 8),
        terminated=no, truncated=no, valid=~no, next_observation=rows(4, 8, 4),
        last=rl.TimeStep(rows(8, 4), no[0]), carry=(),
    )  # fmt: skip

    def add_and_sample(state, key):
        state = memory.add(state, experience)
        batches = jax.lax.map(lambda key: memory.sample(state, key, 64, 0.99), jax.random.split(key, 8))
        return state, batches.reward.sum()

    def repeated(step, count=200):
        def many(state, key):
            return jax.lax.scan(step, state, jax.random.split(key, count))

        return jax.jit(many, donate_argnums=0)

    keep = repeated(add_and_sample)
    update = repeated(lambda agent, key: (algorithm.update(agent, experience, key)[0], 0.0))
    held = {"replay": agent.replay, "agent": agent}
    held["replay"] = jax.tree.map(jnp.copy, agent.replay)

    def once(name, program):
        def run():
            held[name] = jax.block_until_ready(program(held[name], jax.random.key(1)))[0]

        run()
        return lambda: seconds(run) / 200

    times = interleaved({"replay": once("replay", keep), "update": once("agent", update)}, rounds)
    ratios = [one / other for one, other in zip(times["replay"], times["update"], strict=True)]
    micro = {name: rate([1e6 * t for t in found], "us") for name, found in times.items()}
    memory_row = float(
        subprocess.run(
            [sys.executable, "-m", "experiments.bench.replay", "--fill"], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )
    return [
        Row("replay / DQN update: add 32, sample 8 x 64", ratios, 0.1, micro["replay"], micro["update"], at_most=True),
        Row("GB for 1M transitions of 84x84x4 bytes", [memory_row], 8.0, f"{memory_row:.2f} GB", "", at_most=True),
    ]


def fill() -> float:
    """The memory of this process, in GB, when a replay of a million stacked pictures is full."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from gymnasium import spaces

    import rl
    from rl.replay.replay import replay

    picture = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    memory = replay(picture, spaces.Discrete(6), capacity=1_000_000, num_envs=8, stack=4)
    time = 125
    no = jnp.zeros((time, 8), bool)
    seen = jnp.ones((time, 8, 4, 84, 84), jnp.uint8)
    experience = rl.Experience(
        timestep=rl.TimeStep(seen, no), action=jnp.zeros((time, 8), jnp.int32), extras=(),
        reward=jnp.zeros((time, 8)), terminated=no, truncated=no, valid=~no, next_observation=seen,
        last=rl.TimeStep(seen[0], no[0]), carry=(),
    )  # fmt: skip
    state = jax.jit(memory.init)()
    add = jax.jit(memory.add, donate_argnums=0)
    for _ in range(1000):
        state = add(state, experience)
    jax.block_until_ready(jax.jit(memory.sample, static_argnums=2)(state, jax.random.key(0), 32, 0.99))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fill", action="store_true")
    if parser.parse_args().fill:
        print(fill())
