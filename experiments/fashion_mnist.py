"""A small convolutional network on Fashion-MNIST, five epochs.

Run:       jdl run fashion_mnist            (see experiments/README.md)
Expected:  see experiments/README.md; the data set's own page lists 2-layer CNNs at 91.6 to 93.4% (longer training)
Data:      the folder of Debian's dataset-fashion-mnist, --folder PATH, or --fetch. 5,000 training images are held out
           for validation, which is looked at and never selected on.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    epochs: int = 5
    batch_size: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    average_decay: float = 0.995  # of the parameters' moving average, which is what is evaluated
    flip: bool = True  # half of the training images, left to right
    split_seed: int = 0
    steps_per_call: int = 50  # updates in one dispatch
    folder: Path | None = None  # of the IDX files
    fetch: bool = False  # download them, checked, if they are nowhere


class ConvNet(nn.Module):
    """Three convolutions, two of them with pooling, and two dense layers."""

    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        x = jdl.nn.max_pool(nn.relu(jdl.nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
        x = jdl.nn.max_pool(nn.relu(jdl.nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(jdl.nn.Conv(64, (3, 3))(x))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(self.dropout, deterministic=not train)(x))


def learner(config: Config) -> jdl.Learner:
    """One run."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, max(1, config.epochs * (55_000 // config.batch_size)))
    return jdl.supervised(
        ConvNet(config.dropout),
        jdl.losses.cross_entropy,
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=jdl.by_path("kernel$")),
        example={"input": np.zeros((1, 28, 28, 1), np.float32), "target": np.zeros(1, np.int32)},
        metrics={"accuracy": jdl.metrics.accuracy},
        average_decay=config.average_decay,
    )


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train, evaluate the last averaged parameters on the 10,000 test images, keep what they predict."""
    data = jdl.data.fashion_mnist(
        config.folder, fetch=config.fetch, validation=5000 / 60_000, split_seed=config.split_seed
    )
    augment = jdl.data.augment.on(jdl.data.augment.flip()) if config.flip else None
    one = jdl.scan(jdl.feed(learner(config), config.batch_size, augment), config.steps_per_call)
    training = jdl.jit(jdl.seeds(one, run.seeds))
    per_epoch = max(config.steps_per_call, len(data.train["target"]) // config.batch_size)
    fitted = jdl.fit(
        training,
        data.train,
        steps=config.epochs * per_epoch // config.steps_per_call * config.steps_per_call,
        validation=data.validation,
        log_every=config.steps_per_call,
        evaluate_every=per_epoch // config.steps_per_call * config.steps_per_call,
        run=run,
    )
    test = {name: leaf[:2000] for name, leaf in data.test.items()}  # for the report's figures; the metrics use all
    run.save_arrays("predictions", logits=training.predict(fitted.state, test), class_names=data.class_names, **test)
    return jdl.evaluate(training, fitted.state, data.test)
