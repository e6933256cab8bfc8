"""A small capsule network on Fashion-MNIST, beside a convolutional network of as many parameters.

Run:       jdl run capsules --seeds 3                     (--network cnn for the other; --full for the paper's size)
Result:    accuracy 0.9129 [0.9118, 0.9137] (3 seeds, 60 min)
Data:      as `fashion_mnist`'s: Debian's dataset-fashion-mnist, --folder PATH, or --fetch.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    network: Literal["capsules", "cnn"] = "capsules"
    channels: int = 64  # of the first convolution
    full: bool = False  # 8.2 million parameters, as in the paper, for an accelerator
    iterations: int = 3  # of routing
    reconstruction: float = 5e-4  # weight of the summed squared error of the drawn image (the paper's)
    epochs: float = 16
    batch_size: int = 100
    learning_rate: float = 2e-3
    average_decay: float = 0.998
    flips: bool = True  # left to right
    shift: int = 0  # by up to so many pixels: worth its price in longer training alone
    split_seed: int = 0
    steps_per_call: int = 25  # updates in one dispatch
    folder: Path | None = None  # of the IDX files
    fetch: bool = False  # download them, checked, if they are nowhere


SMOKE = {"epochs": 0.004, "steps_per_call": 2, "channels": 4}
RECORDS = {
    "": jdl.Record(
        bars={"accuracy": ">= 0.91"},
        beside="960,000 parameters; a CapsNet of 8 million 0.936 (the data set's page)",
    ),
    "cnn": jdl.Record({"network": "cnn", "epochs": 12}, beside="a CNN of as many parameters"),
}


class Capsules(nn.Module):
    """Sees the label in training alone, where it says which capsule draws the image."""

    network: jdl.nn.CapsNet

    @nn.compact
    def __call__(self, inputs, train: bool):
        labels = jax.nn.one_hot(inputs["label"], self.network.num_classes) if train else None
        return self.network(inputs["image"], labels)


class ConvNet(nn.Module):
    """Convolutions and pooling, and as many parameters as the small capsule network (960,000)."""

    @nn.compact
    def __call__(self, inputs, train: bool):
        x = inputs["image"]
        for features in (32, 64):
            x = jdl.nn.max_pool(nn.relu(jdl.nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(jdl.nn.Conv(64, (3, 3))(x))
        x = nn.relu(nn.Dense(288)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(x))


def model(config: Config) -> nn.Module:
    """The network."""
    if config.network == "cnn":
        return ConvNet()
    small = {"channels": config.channels, "kinds": 8, "decoder": (128, 256)}
    return Capsules(jdl.nn.CapsNet(10, iterations=config.iterations, **({} if config.full else small)))


def learner(config: Config) -> jdl.Learner:
    """One run."""

    def loss(outputs: Any, batch: Any) -> jax.Array:
        if config.network == "cnn":
            return jdl.losses.cross_entropy(outputs, batch)
        error = jnp.square(outputs.reconstruction - batch["input"]["image"]).sum((1, 2, 3))
        return jdl.losses.margin(outputs.lengths, batch) + config.reconstruction * error

    def accuracy(outputs: Any, batch: Any) -> jdl.metrics.Metric:
        return jdl.metrics.accuracy(outputs if config.network == "cnn" else outputs.lengths, batch)

    schedule = optax.cosine_onecycle_schedule(max(1, int(config.epochs * 550)), config.learning_rate, pct_start=0.2)
    return jdl.supervised(
        model(config),
        loss,
        optax.adam(schedule),
        example=as_batch({"input": np.zeros((1, 28, 28, 1), np.float32), "target": np.zeros(1, np.int32)}),
        metrics={"accuracy": accuracy},
        average_decay=config.average_decay,
    )


def as_batch(data: Any) -> dict[str, Any]:
    """With the label beside the image."""
    return {"input": {"image": data["input"], "label": data["target"]}, "target": data["target"]}


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train, evaluate the last averaged parameters on the 10,000 test images."""
    data = jdl.data.fashion_mnist(
        config.folder, fetch=config.fetch, validation=5000 / 60_000, split_seed=config.split_seed
    )
    chosen = [jdl.data.augment.flip()] * config.flips + [jdl.data.augment.shift(config.shift)] * bool(config.shift)
    transform = jdl.data.augment.compose(*chosen)

    def augment(key: jax.Array, batch: Any) -> Any:
        return {**batch, "input": {**batch["input"], "image": transform(key, batch["input"]["image"])}}

    fed = jdl.feed(learner(config), config.batch_size, augment if chosen else None)
    training = jdl.jit(jdl.seeds(jdl.scan(fed, config.steps_per_call), run.seeds))
    fitted = jdl.fit(
        training,
        as_batch(data.train),
        epochs=config.epochs,
        validation=as_batch(data.validation),
        evaluation_batch_size=250,
        run=run,
    )
    return jdl.evaluate(training, fitted.state, as_batch(data.test), batch_size=250)
