"""What checkpoints cost the loop: the same fit with and without them, taking turns."""

import tempfile
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

import jdl
from experiments.basics import digits
from experiments.bench import loops
from experiments.bench.measure import Row, interleaved, rate
from jdl.training.fit import _Loop

INTERVAL = 5.0  # seconds between the MLP's checkpoints


class Fit:
    """One fit, with or without checkpoints; a call gives its seconds, and `stalls` keeps the share spent saving."""

    def __init__(self, learner: jdl.Learner, data: Any, batch_size: int | None) -> None:
        self.learner, self.data, self.batch_size = jdl.jit(learner), data, batch_size
        self.stalls: list[float] = []

    def __call__(self, steps: int, log_every: int, checkpoint_every: int | None) -> float:
        """The seconds between the first log row and the last: the loop, without its start and its end."""
        source = self.data if self.batch_size is None else jdl.Batches(self.data, self.batch_size)
        moments: list[float] = []
        stood = 0.0

        def note(row: dict, state: Any) -> None:
            jax.block_until_ready(state)
            moments.append(time.perf_counter())

        save = _Loop.save

        def timed(loop: _Loop) -> None:
            nonlocal stood
            begin = time.perf_counter()
            save(loop)
            if moments and loop.step < steps:
                stood += time.perf_counter() - begin

        with tempfile.TemporaryDirectory() as folder, mock.patch.object(_Loop, "save", timed):
            jdl.fit(
                self.learner,
                source,
                steps=steps,
                log_every=log_every,
                checkpoint_every=checkpoint_every or steps,
                run=f"{folder}/run",
                callbacks=[note],
            )
        elapsed = moments[-1] - moments[0]
        if checkpoint_every:
            self.stalls.append(stood / elapsed)
        return elapsed


def checkpoint_rows(rounds: int) -> list[Row]:
    """The share of wall time lost to checkpoints, end to end and on the loop's thread."""
    mlp = loops.tasks()["mlp"]
    speed = loops.our_loop(mlp)
    speed()
    every = round(speed() * INTERVAL / 100) * 100
    config = digits.Config()
    augment = jdl.data.augment.on(jdl.data.augment.shift(config.shift))
    cnn = jdl.scan(jdl.feed(digits.learner(config), config.batch_size, augment), 20)
    data = digits.dataset(config).train
    cases = {
        f"MLP 784-512-512-10 every {INTERVAL:g} s": (Fit(loops.learner(mlp), mlp.data, mlp.batch_size), 100, every),
        "CNN of experiments.digits every 1000 steps": (Fit(cnn, data, None), 100, 1000),
    }
    rows = []
    for name, (fit, log_every, interval) in cases.items():
        steps = 2 * interval + log_every
        fit(2 * log_every, log_every, log_every)  # compiles, and imports Orbax
        fit.stalls.clear()
        found = interleaved(
            {
                "with": lambda f=fit, s=steps, e=log_every, i=interval: f(s, e, i),
                "without": lambda f=fit, s=steps, e=log_every: f(s, e, None),
            },
            rounds,
        )
        lost = 1 - np.array(found["without"]) / np.array(found["with"])
        words = rate(found["with"], "s"), rate(found["without"], "s")
        rows.append(Row(f"share of time lost to checkpoints, {name}", lost.tolist(), 0.05, *words, at_most=True))
        label = f"share of time the loop stands still to save, {name}"
        rows.append(Row(label, fit.stalls, 0.05, *words, at_most=True))
    return rows
