"""A linear map over whatever devices there are, from arrays or from a pipeline that writes down what it reads."""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import numpy as np
import optax

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    steps: int = 40
    source: Literal["feed", "batches", "pipeline"] = "feed"
    devices: jdl.Mode = "data"
    mesh: str = ""
    rate: float = 0.1
    pause: float = 0.0  # seconds after each row of the log
    notes: Path | None = None  # where the pipeline writes down what it reads


RANDOM = np.random.default_rng(0)
DATA = {"input": RANDOM.normal(size=(64, 64)).astype(np.float32)}
DATA["target"] = DATA["input"] @ np.ones((64, 32), np.float32)


class Examples:
    def __init__(self, notes):
        self.file = notes and notes / f"{jax.process_index()}.txt"

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if self.file:
            with self.file.open("a") as file:
                file.write(f"{index}\n")
        return {name: leaf[index] for name, leaf in DATA.items()}


def main(config, run):
    learner = jdl.supervised(nn.Dense(32), jdl.losses.squared_error, optax.adam(config.rate), example=DATA)
    learner = jdl.distribute(learner, config.devices, config.mesh)
    if config.source == "feed":
        learner, source = jdl.feed(learner, 32), DATA
    elif config.source == "batches":
        source = jdl.Batches(DATA, 32)
    else:
        source = jdl.pipeline(Examples(config.notes), 32, prefetch=0, threads=1)
    learner = jdl.jit(learner)
    fitted = jdl.fit(
        learner, source, steps=config.steps, run=run, checkpoint_every=10, validation=DATA,
        callbacks=[lambda row, state: time.sleep(config.pause)],
    )  # fmt: skip
    (run.path / "where.txt").write_text(str(fitted.state.params["kernel"].sharding))
    run.save_arrays("parameters", **fitted.state.params)
    return {"loss": jdl.evaluate(learner, fitted.state, DATA)["loss"]}
