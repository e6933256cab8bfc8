"""Losses beside SciPy and loops over their formulas; penalties beside Optax's decay; mixed targets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

import jdl
from jdl import losses

RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.normal(size=(6, 5))).astype(np.float32)
TARGET = np.array([0, 4, 2, 2, 1, 3])
NEGATIVE = -scipy.special.log_softmax(LOGITS.astype(np.float64), -1)
OWN = NEGATIVE[np.arange(6), TARGET]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing(smoothing):  # PyTorch's formula: the rest to the mean over all classes, the target's too
    found = losses.smoothed_cross_entropy(smoothing)(jnp.asarray(LOGITS), {"target": TARGET})
    np.testing.assert_allclose(found, (1 - smoothing) * OWN + smoothing * NEGATIVE.mean(1), rtol=1e-5)


def test_soft_targets():
    target = RANDOM.dirichlet(np.ones(5), 6).astype(np.float32)
    found = losses.soft_cross_entropy(jnp.asarray(LOGITS), {"target": target})
    np.testing.assert_allclose(found, (target * NEGATIVE).sum(1), rtol=1e-5)
    np.testing.assert_allclose(
        losses.soft_cross_entropy(jnp.asarray(LOGITS), {"target": np.eye(5, dtype=np.float32)[TARGET]}), OWN, rtol=1e-5
    )
    # At the target's own distribution there is nothing to gain: the entropy, with a gradient of zero.
    at = lambda logits: losses.soft_cross_entropy(logits, {"target": target}).sum()  # noqa: E731
    np.testing.assert_allclose(at(jnp.log(target)), scipy.stats.entropy(target.T).sum(), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(at)(jnp.log(target)), 0, atol=1e-6)


@pytest.mark.medium
@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.bool_, (3, 4)))
def test_tokens_count_by_their_weights(counted):
    logits = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    target = np.random.default_rng(2).integers(0, 5, (3, 4))
    of_each = -scipy.special.log_softmax(logits, -1)
    expected = []
    for row in range(3):
        kept = [of_each[row, time, target[row, time]] for time in range(4) if counted[row, time]]
        expected.append(np.mean(kept) if kept else 0.0)
    padded = {"target": np.where(counted, target, -100), "weights": counted.astype(np.int32)}  # PyTorch's padding
    found = losses.token_cross_entropy(jnp.asarray(logits), padded)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.grad(lambda logits: losses.token_cross_entropy(logits, padded).sum())(jnp.asarray(logits))
    np.testing.assert_array_equal(gradient[~counted], 0)
    assert np.isfinite(gradient).all()


def test_all_tokens_count_alike_or_by_given_weights():
    logits, target = jnp.asarray(LOGITS.reshape(2, 3, 5)), TARGET.reshape(2, 3)
    np.testing.assert_allclose(
        losses.token_cross_entropy(logits, {"target": target}), OWN.reshape(2, 3).mean(1), rtol=1e-5
    )
    weights = np.array([[1.0, 2.0, 0.0], [0.5, 0.5, 0.5]], np.float32)
    found = losses.token_cross_entropy(logits, {"target": target, "weights": weights})
    np.testing.assert_allclose(found, np.average(OWN.reshape(2, 3), axis=1, weights=weights), rtol=1e-5)


def test_margin_is_the_papers():
    lengths = RANDOM.uniform(size=(6, 5)).astype(np.float32)
    expected = np.zeros(6)
    for row in range(6):
        for k in range(5):
            present = float(TARGET[row] == k)
            expected[row] += present * max(0, 0.9 - lengths[row, k]) ** 2
            expected[row] += 0.5 * (1 - present) * max(0, lengths[row, k] - 0.1) ** 2
    np.testing.assert_allclose(losses.margin(jnp.asarray(lengths), {"target": TARGET}), expected, rtol=1e-5)
    perfect = np.where(np.eye(5)[TARGET], 0.95, 0.05)
    np.testing.assert_array_equal(losses.margin(jnp.asarray(perfect), {"target": TARGET}), 0)


def test_mixed_targets():
    mix, other = np.linspace(0, 1, 6, dtype=np.float32), TARGET[::-1]
    batch = {"target": TARGET, "other_target": other, "mix": mix}
    found = losses.mixed(losses.cross_entropy)(jnp.asarray(LOGITS), batch)
    distribution = mix[:, None] * np.eye(5)[TARGET] + (1 - mix[:, None]) * np.eye(5)[other]
    np.testing.assert_allclose(found, (distribution * NEGATIVE).sum(1), rtol=1e-5)
    np.testing.assert_allclose(losses.mixed(losses.cross_entropy)(jnp.asarray(LOGITS), {"target": TARGET}), OWN, 1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.smoothed_cross_entropy(1.0), r"smoothed_cross_entropy\(1.0\).*\[0, 1\)"),
        (lambda: losses.soft_cross_entropy(jnp.zeros((6, 5)), {"target": TARGET}), r"int64\[6\].*for integers: cross_"),
        (
            lambda: losses.soft_cross_entropy(jnp.zeros((6, 5)), {"target": np.zeros((6, 4))}),
            r"float64\[6, 4\]; for logits \[6, 5\]",
        ),
        (
            lambda: losses.token_cross_entropy(jnp.zeros((2, 3, 5)), {"target": np.zeros((2, 4), int)}),
            r'"target"\] is int32\[2, 4\].*\[2, 3\]',
        ),
        (
            lambda: losses.token_cross_entropy(
                jnp.zeros((2, 3, 5)), {"target": np.zeros((2, 3), int), "weights": np.zeros(2)}
            ),
            r'"weights"\] is \[2\].*\[2, 3\]',
        ),
        (lambda: losses.l2(PARAMS, "kernle"), "'kernle' matches no parameter; there are layer/bias"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PARAMS = {"layer": {"kernel": np.array([[1.0, -2.0]], np.float32), "bias": np.array([3.0], np.float32)}}


def test_penalties():
    assert losses.l1(PARAMS) == 6
    assert losses.l1(PARAMS, "kernel$") == 3
    assert losses.l2(PARAMS) == 7
    assert losses.l2(PARAMS, "kernel$", "bias$") == 7
    assert losses.l2(PARAMS, "bias") == 4.5
    gradient = jax.grad(losses.l2)(jax.tree.map(jnp.asarray, PARAMS), "kernel$")["layer"]
    np.testing.assert_array_equal(gradient["kernel"], PARAMS["layer"]["kernel"])
    np.testing.assert_array_equal(gradient["bias"], 0)
    many = losses.l1({"kernel": jnp.full(1000, 1.01, jnp.bfloat16)})
    np.testing.assert_allclose(many, 1000 * np.float32(jnp.bfloat16(1.01)), rtol=1e-5)


INPUT = RANDOM.normal(size=(8, 3)).astype(np.float32)
DATA = {"input": INPUT, "target": (INPUT[:, 0] > 0).astype(np.int32), "mask": np.array([1, 1, 1, 1, 1, 1, 1, 0])}


def learner(optimizer, **options):
    return jdl.supervised(nn.Dense(2), losses.cross_entropy, optimizer, example=DATA, **options)


@pytest.mark.parametrize("transform", [lambda one: one, lambda one: jdl.accumulate(one, 4), jdl.pmap])
def test_an_l2_penalty_is_weight_decay_of_plain_descent(transform):
    decay = optax.add_decayed_weights(0.1, jdl.by_path("kernel$"))
    plain = jdl.jit(learner(optax.chain(decay, optax.sgd(0.5))), donate=False)
    penalized = learner(optax.sgd(0.5), penalty=lambda params: 0.1 * losses.l2(params, "kernel$"))
    penalized = jdl.jit(transform(penalized), donate=False)
    expected, first = plain.step(plain.init(jax.random.key(0)), DATA)
    start = penalized.init(jax.random.key(0))
    state, metrics = penalized.step(start, DATA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected.params)
    charged = 0.05 * (np.asarray(start.params["kernel"]) ** 2).sum()
    np.testing.assert_allclose(metrics["penalty"].compute(), charged, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), first["loss"].compute() + charged, rtol=1e-5)
    evaluated = penalized.evaluate(start, DATA)
    assert "penalty" not in evaluated
    np.testing.assert_allclose(evaluated["loss"].compute(), first["loss"].compute(), rtol=1e-5)


def test_a_penalty_is_one_number():
    one = learner(optax.sgd(0.1), penalty=lambda params: params["bias"])
    with pytest.raises(ValueError, match=r"penalty= returned shape \(2,\).*sum over"):
        one.step(one.init(jax.random.key(0)), DATA)
