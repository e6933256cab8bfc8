"""What a network's features know: projections, clusters, and anomalies found by autoencoders, on Fashion-MNIST.

Run:       jdl run embeddings --seeds 3
Result:    accuracy 0.8993 [0.8977, 0.9012]; k-means of features (adjusted Rand) 0.7046 [0.6984, 0.7123]; k-means of
           pixels (adjusted Rand) 0.3512 [0.3329, 0.3864]; Gaussian mixture of features (adjusted Rand) 0.6421
           [0.6299, 0.6548]; Gaussian mixture of pixels (adjusted Rand) 0.4025 [0.3835, 0.4331]; anomalies by
           autoencoder (area under ROC) 0.9105 [0.9099, 0.9109]; anomalies by principal components (area under ROC)
           0.9051 [0.905, 0.9051]; anomalies by isolation forest (area under ROC) 0.9166 [0.9147, 0.9178] (3 seeds,
           239 s)
Data:      as `fashion_mnist`'s. Projections and clusters (scikit-learn) are of 3,000 test images, which the classifier
           never saw; its peer is the same of the pixels. Anomalies: an autoencoder for each class, trained on that
           class alone, tells its 1,000 test images from the 9,000 others; its peers are the reconstruction error of
           as many principal components, and an isolation forest.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, roc_auc_score, roc_curve
from sklearn.mixture import GaussianMixture

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    epochs: float = 2  # of the classifier
    features: int = 64  # its last hidden layer, which is looked at
    images: int = 3000  # that are projected and clustered
    code: int = 32  # the autoencoder's narrowest layer, and the principal components
    autoencoder_epochs: float = 20
    batch_size: int = 100
    learning_rate: float = 2e-3
    steps_per_call: int = 50
    folder: Path | None = None  # of the IDX files
    fetch: bool = False  # download them, checked, if they are nowhere


SMOKE = {"epochs": 0.0034, "images": 200, "autoencoder_epochs": 0.035, "steps_per_call": 2}
RECORDS = {
    "": jdl.Record(
        shown=(
            "accuracy",
            "k-means of features (adjusted Rand)",
            "k-means of pixels (adjusted Rand)",
            "Gaussian mixture of features (adjusted Rand)",
            "Gaussian mixture of pixels (adjusted Rand)",
            "anomalies by autoencoder (area under ROC)",
            "anomalies by principal components (area under ROC)",
            "anomalies by isolation forest (area under ROC)",
        ),
        beside="pixels; scikit-learn's PCA and isolation forest, which is better still",
    )
}


class Classifier(nn.Module):
    """A small convolutional network, whose last hidden layer can be asked for."""

    features: int

    @nn.compact
    def __call__(self, x, hidden: bool = False):
        for channels in (32, 64):
            x = jdl.nn.max_pool(nn.relu(jdl.nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.features)(x.reshape(len(x), -1)))
        return x if hidden else nn.Dense(10)(x)


class Autoencoder(nn.Module):
    """Through a narrow layer and back to the pixels."""

    code: int

    @nn.compact
    def __call__(self, x):
        wide = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
        wide = nn.relu(nn.Dense(128)(nn.Dense(self.code)(wide)))
        return nn.Dense(x[0].size)(wide).reshape(x.shape)


def learner(config: Config) -> jdl.Learner:
    """The classifier."""
    example = {"input": np.zeros((1, 28, 28, 1), np.float32), "target": np.zeros(1, np.int32)}
    return jdl.supervised(
        Classifier(config.features),
        jdl.losses.cross_entropy,
        optax.adam(config.learning_rate),
        example=example,
        metrics={"accuracy": jdl.metrics.accuracy},
    )


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train the classifier and look at its features; then find anomalies."""
    data = jdl.data.fashion_mnist(config.folder, fetch=config.fetch)
    one = jdl.scan(jdl.feed(learner(config), config.batch_size), config.steps_per_call)
    training = jdl.jit(jdl.seeds(one, run.seeds))
    fitted = jdl.fit(training, data.train, epochs=config.epochs, run=run.part("classifier"))
    results = {"accuracy": jdl.evaluate(training, fitted.state, data.test)["accuracy"]}
    images, labels = data.test["input"][: config.images], data.test["target"][: config.images]
    network = Classifier(config.features)
    look = jax.jit(lambda params, x: network.apply({"params": params}, x, hidden=True))
    hidden = [
        np.asarray(look(jax.tree.map(lambda leaf, i=i: leaf[i], fitted.state.params), images))
        for i in range(len(run.seeds))
    ]
    pixels = images.reshape(len(images), -1)
    for kind, views in (("features", hidden), ("pixels", [pixels] * len(run.seeds))):
        found = [clusters(view, labels, seed) for view, seed in zip(views, run.seeds, strict=True)]
        results |= {f"{name} of {kind} (adjusted Rand)": [one[name] for one in found] for name in found[0]}
    draw_projections(run, hidden[0], pixels, labels, data.class_names, seed=run.seeds[0])
    return results | anomalies(config, run, data)


def clusters(view: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Ten clusters, without labels; how far they agree with the classes (1: wholly, 0: as chance does)."""
    narrow = PCA(20, random_state=seed).fit_transform(view)  # a full covariance of 784 pixels is not to be had
    models = {
        "k-means": KMeans(10, n_init="auto", random_state=seed),
        "Gaussian mixture": GaussianMixture(10, reg_covar=1e-3, random_state=seed),
    }
    return {name: float(adjusted_rand_score(labels, model.fit_predict(narrow))) for name, model in models.items()}


def draw_projections(
    run: jdl.Run, hidden: np.ndarray, pixels: np.ndarray, labels: np.ndarray, names: Any, seed: int
) -> None:
    """Principal components and t-SNE, of features and of pixels."""
    figure = Figure((12, 11), layout="constrained")
    axes = figure.subplots(2, 2)
    for row, (kind, view) in enumerate((("features", hidden), ("pixels", pixels))):
        for column, method in enumerate((PCA(2, random_state=seed), TSNE(2, random_state=seed))):
            places = method.fit_transform(view)
            axis = axes[row, column]
            axis.scatter(*places.T, c=labels, cmap="tab10", s=5, alpha=0.7, linewidths=0)
            title = f"{type(method).__name__} of {kind}"
            if isinstance(method, PCA):
                title += f" ({method.explained_variance_ratio_.sum():.0%} of the variance)"
            axis.set(title=title, xticks=[], yticks=[])
            for label, name in enumerate(names):
                axis.annotate(name, np.median(places[labels == label], 0), ha="center", fontsize=8)
    note = f"{len(labels)} test images; seed {seed}. Names stand at their class's median."
    run.save_figure("Projections of features and pixels", figure, note)


def anomalies(config: Config, run: jdl.Run, data: jdl.data.Dataset) -> dict[str, Any]:
    """The mean over classes of the area under the ROC curve: how well a class is told from all others."""
    by_class = [data.train["input"][data.train["target"] == label] for label in range(10)]
    stacked = np.stack([images[: min(map(len, by_class))] for images in by_class])
    one = jdl.supervised(
        Autoencoder(config.code),
        jdl.losses.squared_error,
        optax.adam(config.learning_rate),
        example={"input": stacked[0], "target": stacked[0]},
    )
    # A run a class, each with its own data, in one program.
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(one, config.batch_size), config.steps_per_call), 10, each=True))
    test = data.test["input"]
    areas: dict[str, list[float]] = {name: [] for name in ("autoencoder", "principal components", "isolation forest")}
    errors = np.zeros(())
    for seed in run.seeds:
        fitted = jdl.fit(
            training,
            {"input": stacked, "target": stacked},
            epochs=config.autoencoder_epochs,
            key=seed,
            run=run.part(f"autoencoders-{seed}", seeds=range(10)),
        )
        drawn = training.predict(fitted.state, {"input": np.broadcast_to(test, (10, *test.shape))})
        errors = np.square(np.asarray(drawn) - test).mean((2, 3, 4))
        areas["autoencoder"].append(mean_area(errors, data.test["target"]))
        peers = [peer_errors(images, test, config.code, seed) for images in stacked]
        for place, name in enumerate(("principal components", "isolation forest")):
            areas[name].append(mean_area(np.stack([peer[place] for peer in peers]), data.test["target"]))
    draw_curves(run, errors, data)
    return {f"anomalies by {name} (area under ROC)": values for name, values in areas.items()}


def peer_errors(images: np.ndarray, test: np.ndarray, code: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's detectors, fitted on one class, say of each test image: larger is stranger."""
    flat, flat_test = images.reshape(len(images), -1), test.reshape(len(test), -1)
    components = PCA(code, random_state=seed).fit(flat)
    again = components.inverse_transform(components.transform(flat_test))
    forest = IsolationForest(random_state=seed).fit(flat)
    return np.square(again - flat_test).mean(1), -forest.score_samples(flat_test)


def mean_area(errors: np.ndarray, labels: np.ndarray) -> float:
    """errors: [classes, images]."""
    return float(np.mean([roc_auc_score(labels != label, errors[label]) for label in range(len(errors))]))


def draw_curves(run: jdl.Run, errors: np.ndarray, data: jdl.data.Dataset) -> None:
    """The ROC curve of each class's autoencoder."""
    figure = Figure((7, 6), layout="constrained")
    axis = figure.subplots()
    labels = data.test["target"]
    for label, name in enumerate(data.class_names or ()):
        wrong, right, _ = roc_curve(labels != label, errors[label])
        axis.plot(wrong, right, label=f"{name}: {roc_auc_score(labels != label, errors[label]):.3f}")
    axis.plot([0, 1], [0, 1], ":", color="grey")
    axis.set(xlabel="false alarms", ylabel="anomalies found")
    axis.legend(title="normal class: area", fontsize=8)
    run.save_figure("Anomalies by reconstruction error", figure, "An autoencoder a class; the last seed.")
