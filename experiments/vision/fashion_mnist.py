"""Fashion-MNIST by a perceptron, a convolutional network or a ResNet-18.

Run:       jdl run fashion_mnist --seeds 3                    (the convolutional network; --network mlp, resnet18)
Result:    accuracy 0.9327 [0.9319, 0.9335] (3 seeds, 31 min)
Data:      the folder of Debian's dataset-fashion-mnist, --folder PATH, or --fetch. 5,000 training images are held out
           for validation, which is looked at and never selected on.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import numpy as np
import optax

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    network: Literal["cnn", "mlp", "resnet18"] = "cnn"
    epochs: float = 15
    batch_size: int = 100
    learning_rate: float = 3e-3  # the highest of one cycle
    weight_decay: float = 1e-2
    dropout: float = 0.3  # of the perceptron and the convolutional network
    width: int = 64  # of the ResNet's first stage
    average_decay: float = 0.998  # of the parameters' moving average, which is what is evaluated
    augmentation: bool = True  # images are flipped left to right and moved by up to 2 pixels
    split_seed: int = 0
    steps_per_call: int = 50  # updates in one dispatch
    devices: jdl.Mode = "auto"  # single, pmap, data, fsdp, tensor or fsdp+tensor, for each run
    mesh: str = ""  # of how many devices: 4, or 2x2 where layers are shared out as well
    folder: Path | None = None  # of the IDX files
    fetch: bool = False  # download them, checked, if they are nowhere


SMOKE = {"epochs": 0.004, "steps_per_call": 2}
RECORDS = {
    "": jdl.Record(bars={"accuracy": ">= 0.93"}, beside="two convolutions 0.916 to 0.934 (the data set's page)"),
    "mlp": jdl.Record(
        {"network": "mlp", "augmentation": False},
        bars={"accuracy": ">= 0.89"},
        beside="MLP 0.883 (the same page)",
    ),
    "resnet18-reduced": jdl.Record(
        {"network": "resnet18", "width": 32, "epochs": 10},
        seeds=1,
        beside="half the width, 10 epochs; ResNet-18 0.949 (the same page)",
    ),
}


class ConvNet(nn.Module):
    """Three normalized convolutions, two of them with pooling, and two dense layers."""

    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        for features, pooled in ((32, True), (64, True), (64, False)):
            x = jdl.nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(jdl.nn.normalization("batch", train)(x))
            x = jdl.nn.max_pool(x, (2, 2), (2, 2)) if pooled else x
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(self.dropout, deterministic=not train)(x))


def model(config: Config) -> nn.Module:
    """The network."""
    match config.network:
        case "mlp":
            return jdl.nn.MLP((512, 256, 10), dropout=config.dropout)
        case "cnn":
            return ConvNet(config.dropout)
        case "resnet18":
            return jdl.nn.ResNet18(10, width=config.width, stem="cifar")


def learner(config: Config) -> jdl.Learner:
    """One run."""
    steps = max(1, int(config.epochs * (55_000 // config.batch_size)))
    schedule = optax.cosine_onecycle_schedule(steps, config.learning_rate, pct_start=0.2)
    return jdl.supervised(
        model(config),
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
    augmentation = jdl.data.augment.compose(jdl.data.augment.flip(), jdl.data.augment.shift(2))
    augment = jdl.data.augment.on(augmentation) if config.augmentation else None
    spread = jdl.distribute(learner(config), config.devices, config.mesh)
    one = jdl.scan(jdl.feed(spread, config.batch_size, augment), config.steps_per_call)
    training = jdl.jit(jdl.seeds(one, run.seeds, spread=config.devices in ("auto", "single") and len(run.seeds) > 1))
    fitted = jdl.fit(
        training,
        data.train,
        epochs=config.epochs,
        validation=data.validation,
        run=run,
    )
    test = {name: leaf[:2000] for name, leaf in data.test.items()}  # for the report's figures; the metrics use all
    run.save_arrays("predictions", logits=training.predict(fitted.state, test), class_names=data.class_names, **test)
    return jdl.evaluate(training, fitted.state, data.test)
