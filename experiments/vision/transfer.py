"""What ImageNet's weights are worth on a few labeled pictures: from scratch, frozen, fine-tuned.

Run:       jdl run transfer --seeds 3 --fetch
Result:    accuracy, scratch, 1 of each 0.218; accuracy, scratch, 5 of each 0.389; accuracy, scratch, 20 of each
           0.458; accuracy, frozen, 1 of each 0.481; accuracy, frozen, 5 of each 0.69; accuracy, frozen, 20 of each
           0.792; accuracy, fine-tuned, 1 of each 0.537; accuracy, fine-tuned, 5 of each 0.727; accuracy, fine-tuned,
           20 of each 0.806 (3 seeds, 37 min)
Data:      six classes of Tux Paint's stamps (Debian's tuxpaint-stamps-default, or --folder PATH); seed i has split i:
           12 pictures of each class are for testing, and of the others 1, 2, 5, 10 or 20 of each for training.
           EfficientNet-Lite0's weights are downloaded once with --fetch.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import optax
from matplotlib.figure import Figure

import jdl

METHODS = ("scratch", "frozen", "fine-tuned")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    labeled: tuple[int, ...] = (1, 2, 5, 10, 20)  # pictures of each class
    tested: int = 12
    size: int = 128  # pixels
    steps: int = 200  # whatever the number of pictures: one of each class would be passed in a single step
    steps_per_call: int = 20
    batch_size: int = 6
    learning_rate: float = 1e-3  # of the head, and of a network from scratch
    body_factor: float = 0.1  # by which the learning rate of fine-tuned layers is smaller
    folder: Path | None = None  # of the stamps
    fetch: bool = False  # download the weights, checked, if they are nowhere


SMOKE = {"labeled": (1,), "size": 32, "steps": 2, "steps_per_call": 2, "fetch": True}
RECORDS = {
    "": jdl.Record(
        {"fetch": True},
        shown=[f"accuracy, {method}, {count} of each" for method in METHODS for count in (1, 5, 20)],
        beside="from scratch; chance 0.167; 72 test pictures of six classes of stamps",
    )
}


RENAMED = {"labelled": "labeled"}  # since version 0.1


def model(method: str = "fine-tuned") -> nn.Module:
    """EfficientNet-Lite0's body and a head for six classes; ImageNet's statistics stay with ImageNet's weights."""
    return jdl.nn.Classifier(
        jdl.nn.EfficientNetLite(None), 6, frozen=method == "frozen", fixed_statistics=method == "fine-tuned"
    )


def learner(config: Config, method: str = "fine-tuned", variables: Any = None) -> jdl.Learner:
    """One run; method may be a part's name, "fine-tuned-5"."""
    method = next(known for known in METHODS if method.startswith(known))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    if method == "frozen":
        optimizer = jdl.transfer.freeze(optimizer, "^encoder/")
    elif method == "fine-tuned":
        optimizer = optax.chain(optimizer, jdl.transfer.scale_by_path({"^encoder/": config.body_factor}, 1.0))
    example = {"input": np.zeros((1, config.size, config.size, 3), np.float32), "target": np.zeros(1, np.int32)}
    return jdl.supervised(
        model(method),
        jdl.losses.cross_entropy,
        optimizer,
        example=example,
        metrics={"accuracy": jdl.metrics.accuracy},
        variables=None if method == "scratch" else variables,
    )


def splits(labels: np.ndarray, images: int, config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of training and test pictures; more training pictures are the fewer ones and others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == label] for label in range(labels.max() + 1)]
    tested = np.concatenate([places[: config.tested] for places in by_class])
    return np.concatenate([places[config.tested : config.tested + images] for places in by_class]), tested


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Every method on every number of labeled pictures."""
    images, labels, _ = jdl.data.stamps(config.folder, config.size)
    inputs = np.asarray(jdl.pretrained.imagenet_images(images))
    pretrained = jdl.pretrained.efficientnet_lite0(fetch=config.fetch)
    augmentation = jdl.data.augment.on(jdl.data.augment.compose(jdl.data.augment.flip(), jdl.data.augment.shift(8)))
    body = jdl.transfer.graft(jdl.transfer.cut(pretrained.variables, "^params/head/"), "encoder")
    results: dict[str, Any] = {}
    for count in config.labeled:
        parts = [splits(labels, count, config, seed) for seed in run.seeds]
        train, test = (
            {
                "input": np.stack([inputs[part[i]] for part in parts]),
                "target": np.stack([labels[part[i]] for part in parts]),
            }
            for i in (0, 1)
        )
        for method in METHODS:
            fed = jdl.feed(learner(config, method, body), config.batch_size, augmentation)
            training = jdl.jit(jdl.seeds(jdl.scan(fed, config.steps_per_call), run.seeds, each=True))
            fitted = jdl.fit(training, train, steps=config.steps, run=run.part(f"{method}-{count}"))
            name = f"accuracy, {method}, {count} of each"
            results[name] = jdl.evaluate(training, fitted.state, test)["accuracy"]
    draw(config, run, results)
    return results


def draw(config: Config, run: jdl.Run, results: dict[str, Any]) -> None:
    """Accuracy against the number of labeled pictures."""
    figure = Figure((7, 4.5), layout="constrained")
    axis = figure.subplots()
    for method in METHODS:
        scores = np.array([results[f"accuracy, {method}, {count} of each"] for count in config.labeled])
        axis.plot(config.labeled, scores.mean(1), "o-", label=method)
        axis.fill_between(config.labeled, scores.min(1), scores.max(1), alpha=0.2, linewidth=0)
    axis.axhline(1 / 6, linestyle=":", color="grey")
    axis.set(xscale="log", xlabel="labeled pictures of each class", ylabel="test accuracy", ylim=(0, 1))
    axis.set_xticks(config.labeled, [str(count) for count in config.labeled])
    axis.legend()
    run.save_figure("Accuracy by labeled pictures", figure, "Mean and range over the seeds; dotted: chance.")
