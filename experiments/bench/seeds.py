"""Eight seeds on every core, beside one seed, and beside one process a core.

Each way to train is a process of its own, since how many devices a process has, and which cores it may use, is
settled when it starts. The processes take turns; those pinned to a core each run at the same time.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.bench.measure import Row, Worker, compared, interleaved, serve

SEEDS = 8
SECONDS = 2.5  # of training at a time


def seed_rows(rounds: int) -> list[Row]:
    """Updates a second summed over the seeds, against one seed and against processes pinned to cores."""
    rows = []
    for name in ("mlp", "cnn"):
        words = {"mlp": "MLP 128-128, digits", "cnn": "CNN of experiments.digits"}[name]
        spread, solo = _start(name, "spread"), _start(name, "solo")
        cores = sorted(os.sched_getaffinity(0))
        pinned = [_start(name, "solo", core) for core in cores]
        workers = {"spread": spread, "solo": solo, "pinned": functools.partial(_together, pinned)}
        rates = interleaved(workers, rounds)
        for worker in (spread, solo, *pinned):
            worker.close()
        row = functools.partial(compared, unit="updates/s")
        if name == "mlp":
            rows.append(row(f"{SEEDS} seeds / one seed: {words}", rates["spread"], rates["solo"], 1.8))
        else:
            label = f"{SEEDS} seeds / {len(cores)} pinned processes: {words}"
            rows.append(row(label, rates["spread"], rates["pinned"], 0.95))
        label = f"{SEEDS} seeds / one after another: {words}"
        rows.append(row(label, rates["spread"], rates["solo"], 1.0))
    return rows


def _start(name: str, kind: str, core: int | None = None) -> Worker:
    pin = [] if core is None else ["--core", str(core)]
    return Worker([sys.executable, "-m", "experiments.bench.seeds", name, kind, *pin])


def _together(workers: list[Worker]) -> float:
    for worker in workers:
        worker.ask()
    return sum(worker.answer() for worker in workers)


def training(name: str, runs: int | None) -> tuple[Any, Callable[[], float]]:
    """The learner, and a measure of its updates a second; one run where `runs` is None."""
    import jax  # after the process has been pinned
    import optax

    import jdl
    from experiments.basics import digits
    from experiments.bench.loops import MLP
    from jdl.core.runs_axis import beside

    config = digits.Config()
    data = digits.dataset(config).train
    if name == "mlp":
        model = MLP((128, 128))
        one = jdl.supervised(model, jdl.losses.cross_entropy, optax.adam(1e-3), example=data)
        one = jdl.scan(jdl.feed(one, 100), 240)
    else:
        augment = jdl.data.augment.on(jdl.data.augment.shift(config.shift))
        one = jdl.feed(digits.learner(config), config.batch_size, augment)
        one = jdl.scan(one, config.steps_per_call)
    learner = jdl.jit(one if runs is None else jdl.seeds(one, runs))
    state = learner.init(jax.random.key(0))
    data = beside(state, data)

    def measure() -> float:
        nonlocal state
        begin, calls, before = time.perf_counter(), 0, None
        while time.perf_counter() - begin < SECONDS:
            state, metrics = learner.step(state, data)
            jax.block_until_ready(before)  # one call runs and one waits, as in `fit`: else the queue outlives the clock
            before, calls = metrics, calls + 1
        jax.block_until_ready(state)
        return calls * learner.steps * (runs or 1) / (time.perf_counter() - begin)

    return learner, measure


def main() -> None:
    """A worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["mlp", "cnn"])
    parser.add_argument("kind", choices=["spread", "solo"])
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})  # JAX starts as many threads as it then sees cores
    if options.kind == "spread":
        import jdl

        jdl.host_devices()
    serve(training(options.name, SEEDS if options.kind == "spread" else None)[1])


if __name__ == "__main__":
    main()
