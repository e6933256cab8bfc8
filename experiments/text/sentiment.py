"""Are these review sentences for or against? A bidirectional LSTM, a fine-tuned MiniLM, and words counted.

Run:       jdl run sentiment --seeds 3 --fetch           (--network lstm for the other network)
Result:    accuracy 0.85 [0.84, 0.861]; TF-IDF accuracy 0.756 [0.745, 0.763]; majority accuracy 0.514 (3 seeds, 20
           min)
Data:      sentences of movie and product reviews scored from -4 to 4 by twenty people each (Hutto and Gilbert 2014);
           those nearer to 0 than 0.5 are left out. Seed i has split i; no review is divided between two parts. The
           peer, TF-IDF with logistic regression (scikit-learn), sees the same sentences.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import jdl


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    network: Literal["minilm", "lstm"] = "minilm"
    train_sentences: int = 4000  # of about 9,000
    length: int = 48  # tokens; longer sentences are cut
    batch_size: int = 32
    epochs: int = 2
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    vocabulary: int = 6000  # of the LSTM's tokenizer, which is trained on its training sentences
    features: int = 96  # of the LSTM, each way
    dropout: float = 0.1
    steps_per_call: int = 5
    folder: Path | None = None  # of the reviews
    fetch: bool = False  # download reviews and weights, checked, if they are nowhere


SMOKE = {"network": "lstm", "train_sentences": 64, "epochs": 1, "steps_per_call": 2, "fetch": True}
RECORDS = {
    "": jdl.Record(
        {"fetch": True},
        shown=("accuracy", "TF-IDF accuracy", "majority accuracy"),
        beside="TF-IDF with logistic regression on the same sentences",
    ),
    "lstm": jdl.Record(
        {"network": "lstm", "learning_rate": 2e-3, "epochs": 4, "dropout": 0.4, "fetch": True},
        shown=("accuracy", "TF-IDF accuracy", "majority accuracy"),
        beside="bidirectional LSTM, from scratch",
    ),
}


class BidirectionalLSTM(nn.Module):
    """Both ways over token embeddings; the mean over the sentence."""

    vocab_size: int
    features: int
    dropout: float

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        mask = inputs["mask"]
        x = nn.Embed(self.vocab_size, 128)(inputs["ids"])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x, _ = jdl.nn.Recurrent(self.features, bidirectional=True)(x, mask.sum(1), train=train)
        return x.sum(1) / mask.sum(1, keepdims=True)  # what stands behind a sentence is zero


def model(config: Config, vocab_size: int) -> nn.Module:
    """The network."""
    if config.network == "lstm":
        encoder = BidirectionalLSTM(vocab_size, config.features, config.dropout)
    else:
        encoder = jdl.nn.Pooled(jdl.nn.BERT(vocab_size, width=384, num_layers=6, dropout=config.dropout))
    return jdl.nn.Classifier(encoder, 2, config.dropout)


def learner(config: Config, vocab_size: int = 30522, variables: Any = None) -> jdl.Learner:
    """One run."""
    steps = config.epochs * (config.train_sentences // config.batch_size)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    ids = np.zeros((1, config.length), np.int32)
    return jdl.supervised(
        model(config, vocab_size),
        jdl.losses.cross_entropy,
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=jdl.by_path("kernel$")),
        example={"input": {"ids": ids, "mask": ids > 0}, "target": np.zeros(1, np.int32)},
        metrics={"accuracy": jdl.metrics.accuracy},
        clip_norm=1.0,
        variables=variables,
    )


def sentences(config: Config, seed: int) -> tuple[jdl.data.Reviews, jdl.data.Reviews]:
    """Training and test sentences of split `seed`."""
    reviews = jdl.data.reviews(("movies", "amazon"), config.folder, fetch=config.fetch)
    clear = np.abs(reviews.scores) >= 0.5
    train, _, test = jdl.data.split_reviews(reviews.where(clear), (0.8, 0.0, 0.2), seed)
    order = np.random.default_rng(seed).permutation(len(train.texts))[: config.train_sentences]
    return train.where(order), test


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Train on each split, beside the peer."""
    splits = [sentences(config, seed) for seed in run.seeds]
    scores: dict[str, list[float]] = {"TF-IDF accuracy": [], "majority accuracy": []}
    for train, test in splits:
        scores["TF-IDF accuracy"].append(counted_words(train, test))
        scores["majority accuracy"].append(float(max(np.mean(test.scores > 0), np.mean(test.scores < 0))))
    if config.network == "minilm":
        pretrained = jdl.pretrained.minilm(fetch=config.fetch)
        tokenizers = [pretrained.tokenizer] * len(splits)
        variables = {"params": {"encoder": {"encoder": pretrained.variables["params"]}}}
    else:
        tokenizers = [jdl.data.tokenizers.train_bpe(train.texts, config.vocabulary, ["<pad>"]) for train, _ in splits]
        variables = None
    size = max(tokenizer.vocab_size for tokenizer in tokenizers)
    trains, tests = (
        [as_data(split[part], tokenizer, config.length) for split, tokenizer in zip(splits, tokenizers, strict=True)]
        for part in (0, 1)
    )
    trains = jax.tree.map(lambda *leaves: np.stack(leaves), *trains)  # a leading axis of runs
    one = jdl.scan(jdl.feed(learner(config, size, variables), config.batch_size), config.steps_per_call)
    training = jdl.jit(jdl.seeds(one, run.seeds, each=True))
    steps = config.epochs * (config.train_sentences // config.batch_size) // config.steps_per_call
    steps *= config.steps_per_call
    fitted = jdl.fit(training, trains, steps=steps, checkpoint_every=steps, run=run)  # a checkpoint is a gigabyte
    alone = jdl.jit(learner(config, size))
    evaluated = [
        jdl.evaluate(alone, jax.tree.map(lambda leaf, i=i: leaf[i], fitted.state), test, batch_size=64)
        for i, test in enumerate(tests)
    ]
    return {name: [one[name] for one in evaluated] for name in ("accuracy", "loss")} | scores


def as_data(reviews: jdl.data.Reviews, tokenizer: Any, length: int) -> dict[str, Any]:
    """Token ids and labels: 1 is for, 0 against."""
    return {
        "input": tokenizer.encode_batch(list(reviews.texts), length),
        "target": (reviews.scores > 0).astype(np.int32),
    }


def counted_words(train: jdl.data.Reviews, test: jdl.data.Reviews) -> float:
    """Accuracy of logistic regression on TF-IDF of words and pairs, its penalty chosen by cross-validation."""
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": np.logspace(-1, 2, 7)}, cv=5)
    peer = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), search)
    return float(peer.fit(train.texts, train.scores > 0).score(test.texts, test.scores > 0))
