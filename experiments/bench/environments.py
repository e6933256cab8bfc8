"""Our CartPole beside gymnax's: random play inside a scan, environments side by side.

Command:   PYTHONPATH=. PYTHON -m experiments.bench.environments
           PYTHON has this project's packages and gymnax 1.0, which asks for an older Gymnasium than ours and runs with
           the newer one all the same (`pip install --no-deps gymnax`, six, seaborn)
Time:      a minute on 2 cores
Expected:  the table in experiments/bench/README.md
"""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

import rl
from experiments.bench.measure import compared, show

STEPS = 400_000


def ours(count: int, time: int) -> Callable[[Array], Array]:
    """Compiled play of ours, `auto_reset` and all."""
    env = rl.envs.cartpole()
    step_env = jax.vmap(rl.envs.auto_reset(env))

    def play(key: Array) -> Array:
        def step(states: Any, key: Array) -> tuple[Any, Array]:
            act_key, env_key = jax.random.split(key)
            action = jax.random.randint(act_key, (count,), 0, 2)
            states, outcome, seen = step_env(states, action, jax.random.split(env_key, count))
            return states, outcome.reward.sum() + seen.observation.sum()  # or nothing would have to be computed

        states, _ = jax.vmap(env.reset)(jax.random.split(key, count))
        return jax.lax.scan(step, states, jax.random.split(key, time))[1].sum()

    return jax.jit(play)


def gymnaxs(count: int, time: int) -> Callable[[Array], Array]:
    """The same of gymnax's."""
    import gymnax  # type: ignore  # in an environment of its own

    env, params = gymnax.make("CartPole-v1")

    def play(key: Array) -> Array:
        def step(states: Any, key: Array) -> tuple[Any, Array]:
            act_key, env_key = jax.random.split(key)
            action = jax.random.randint(act_key, (count,), 0, 2)
            keys = jax.random.split(env_key, count)
            seen, states, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, states, action, params)
            return states, reward.sum() + seen.sum()

        _, states = jax.vmap(env.reset, (0, None))(jax.random.split(key, count), params)
        return jax.lax.scan(step, states, jax.random.split(key, time))[1].sum()

    return jax.jit(play)


def main() -> None:
    """Measure and print."""
    rows = []
    for count in (64, 1024, 4096):
        length = max(200, STEPS // count)
        rates: dict[str, list[float]] = {"ours": [], "gymnax": []}
        programs = {"ours": ours(count, length), "gymnax": gymnaxs(count, length)}
        for turn in range(8):
            for name, program in programs.items():
                begin = time.perf_counter()
                jax.block_until_ready(program(jax.random.key(turn)))
                if turn:  # the first compiles
                    rates[name].append(length * count / (time.perf_counter() - begin))
        rows.append(compared(f"CartPole / gymnax, {count} environments", rates["ours"], rates["gymnax"], 0.9))
    show(rows, "JAX environments", as_json=False)


if __name__ == "__main__":
    main()
