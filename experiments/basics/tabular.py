"""An MLP beside scikit-learn's models on three small tables: breast cancer, wine (accuracy) and diabetes (R²).

Run:       jdl run tabular --seeds 8
Result:    breast_cancer (accuracy)/jdl MLP 0.9759 [0.9704, 0.9803]; wine (accuracy)/jdl MLP 0.9757 [0.9549, 0.9931];
           diabetes (R²)/jdl MLP 0.4109 [0.3653, 0.4557] (8 seeds, 19 s)
Data:      seed i is split i: every model is trained and tested on the same splits (60% training, 20% validation, 20%
           test, stratified). The MLP stops early on the validation part; the others are fitted on training and
           validation together, with scikit-learn's defaults, so they see more examples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import optax
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import SVC, SVR

import jdl

TABLES = {
    "breast_cancer": jdl.data.breast_cancer,
    "wine": jdl.data.wine,
    "diabetes": lambda **options: jdl.data.diabetes(standardize_target=True, **options),
}
CLASSES = {"breast_cancer": 2, "wine": 3, "diabetes": None}
PEERS = {
    "linear": (lambda seed: LogisticRegression(max_iter=1000), lambda seed: LinearRegression()),
    "svm": (lambda seed: SVC(), lambda seed: SVR()),
    "random forest": (
        lambda seed: RandomForestClassifier(random_state=seed),
        lambda seed: RandomForestRegressor(random_state=seed),
    ),
    "gradient boosting": (
        lambda seed: GradientBoostingClassifier(random_state=seed),
        lambda seed: GradientBoostingRegressor(random_state=seed),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters of the MLP, the same for every table."""

    width: int = 64
    dropout: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 32
    steps: int = 2000
    patience: int = 15  # evaluations, one every 50 updates


SMOKE = {"steps": 50}
RECORDS = {
    "": jdl.Record(
        seeds=8,
        shown=("breast_cancer (accuracy)/jdl MLP", "wine (accuracy)/jdl MLP", "diabetes (R²)/jdl MLP"),
        beside="scikit-learn on the same splits, below",
    )
}


class MLP(nn.Module):
    """Two hidden layers."""

    width: int
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        for _ in range(2):
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(nn.Dense(self.width)(x)))
        x = nn.Dense(self.outputs)(x)
        return x if self.outputs > 1 else x[:, 0]


def learner(config: Config, table: str) -> jdl.Learner:
    """One run on one table."""
    classes = CLASSES[table]
    return jdl.supervised(
        MLP(config.width, classes or 1, config.dropout),
        jdl.losses.cross_entropy if classes else jdl.losses.squared_error,
        optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=jdl.by_path("kernel$")),
        example=TABLES[table]().train,
        metrics={"accuracy": jdl.metrics.accuracy} if classes else {"fit": jdl.metrics.regression},
    )


def stacked(parts: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """One run's data each: a leading axis of runs."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Every model on every split; the score is accuracy or R² on the test part."""
    scores: dict[str, Any] = {}
    for table, load in TABLES.items():
        splits = [load(split_seed=seed, fractions=(0.6, 0.2, 0.2)) for seed in run.seeds]
        classes = CLASSES[table]
        group = f"{table} ({'accuracy' if classes else 'R²'})"
        one = jdl.scan(jdl.feed(learner(config, table), config.batch_size), 25)
        training = jdl.jit(jdl.seeds(one, run.seeds, each=True))
        fitted = jdl.fit(
            training,
            stacked([split.train for split in splits]),
            steps=config.steps,
            validation=stacked([split.validation for split in splits]),
            evaluate_every=50,
            monitor=jdl.Monitor("loss", patience=config.patience),
            run=run.part(table),
        )
        tested = jdl.evaluate(training, fitted.best, stacked([split.test for split in splits]))
        scores[f"{group}/jdl MLP"] = tested["accuracy" if classes else "fit/r2"]
        for name, (classifier, regressor) in PEERS.items():
            scores[f"{group}/{name}"] = [
                peer_score((classifier if classes else regressor)(seed), split)
                for seed, split in zip(run.seeds, splits, strict=True)
            ]
    return scores


def peer_score(model: Any, split: jdl.data.Dataset) -> float:
    """A scikit-learn model's score on the test part, fitted on all the rest."""
    parts = [part for part in (split.train, split.validation) if part]
    fit_on = {name: np.concatenate([part[name] for part in parts]) for name in split.train}
    return float(model.fit(fit_on["input"], fit_on["target"]).score(split.test["input"], split.test["target"]))
