"""Overfitting shown and cured: one convolutional network on 3,000 images, under five kinds of regularization.

Run:       jdl run overfitting --seeds 3
Result:    loss, none 0.885 [0.86, 0.934]; loss, L2 0.58 [0.548, 0.6]; loss, dropout 0.501 [0.489, 0.514]; loss,
           augmentation 0.462 [0.45, 0.469]; loss, all three 0.388 [0.376, 0.402] (3 seeds, 13 min)
Data:      the first 3,000 training images of Fashion-MNIST; the 5,000 held out as `fashion_mnist` does are looked at
           on the way, and its 10,000 test images at the end.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax
from matplotlib.figure import Figure

import jdl

KINDS = ("none", "L2", "dropout", "augmentation", "all three")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    images: int = 3000
    steps: int = 3000
    batch_size: int = 100
    learning_rate: float = 1e-3
    l2: float = 2e-3  # weight of the sum of the kernels' squares
    dropout: float = 0.5
    steps_per_call: int = 30  # updates in one dispatch; an epoch
    folder: Path | None = None  # of the IDX files
    fetch: bool = False  # download them, checked, if they are nowhere


SMOKE = {"images": 200, "steps": 4, "steps_per_call": 1}
RECORDS = {"": jdl.Record(shown=[f"loss, {kind}" for kind in KINDS], beside="each other: one figure")}


class ConvNet(nn.Module):
    """Two convolutions with pooling, two dense layers."""

    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        for features in (16, 32):
            x = jdl.nn.max_pool(nn.relu(jdl.nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(nn.Dropout(self.dropout, deterministic=not train)(x))


def learner(config: Config, kind: str = "none") -> jdl.Learner:
    """One run under one kind of regularization."""
    decayed = kind in ("L2", "all three")
    return jdl.supervised(
        ConvNet(config.dropout if kind in ("dropout", "all three") else 0.0),
        jdl.losses.cross_entropy,
        optax.adam(config.learning_rate),
        example={"input": np.zeros((1, 28, 28, 1), np.float32), "target": np.zeros(1, np.int32)},
        metrics={"accuracy": jdl.metrics.accuracy},
        penalty=(lambda params: config.l2 * jdl.losses.l2(params, "kernel$")) if decayed else None,
    )


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train under each kind; draw all of them in one figure."""
    data = jdl.data.fashion_mnist(config.folder, fetch=config.fetch, validation=5000 / 60_000)
    few = {name: leaf[: config.images] for name, leaf in data.train.items()}
    moved = jdl.data.augment.on(jdl.data.augment.compose(jdl.data.augment.flip(), jdl.data.augment.shift(2)))
    results: dict[str, Any] = {}
    for kind in KINDS:
        augment = moved if kind in ("augmentation", "all three") else None
        fed = jdl.feed(learner(config, kind), config.batch_size, augment)
        training = jdl.jit(jdl.seeds(jdl.scan(fed, config.steps_per_call), run.seeds))
        fitted = jdl.fit(
            training,
            few,
            steps=config.steps,
            validation=data.validation,
            log_every=4 * config.steps_per_call,
            evaluate_every=4 * config.steps_per_call,
            run=run.part(kind.replace(" ", "-")),
        )
        tested, trained = (jdl.evaluate(training, fitted.state, part) for part in (data.test, few))
        results[f"accuracy, {kind}"] = tested["accuracy"]
        results[f"loss, {kind}"] = tested["loss"]
        results[f"loss on what it was trained on, {kind}"] = trained["loss"]
    draw(run)
    return results


def draw(run: jdl.Run) -> None:
    """Training and validation loss of each kind, mean over the seeds."""
    figure = Figure((14, 3.6), layout="constrained")
    axes = figure.subplots(1, len(KINDS), sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        metrics = run.part(kind.replace(" ", "-")).metrics
        for part, color in (("train", "tab:blue"), ("validation", "tab:orange")):
            steps, losses = metrics[f"{part}/loss"]
            losses = np.asarray(losses, float).reshape(len(steps), -1)
            axis.plot(steps, losses.mean(1), color=color, label=part)
            axis.fill_between(steps, losses.min(1), losses.max(1), color=color, alpha=0.2, linewidth=0)
        axis.set(title=kind, xlabel="updates", ylim=(0, 1.0))
    axes[0].set(ylabel="cross-entropy")
    axes[0].legend()
    note = "Mean and range over the seeds. Training loss is measured on batches as they are drawn, augmented or not."
    run.save_figure("Overfitting and its cures", figure, note)
