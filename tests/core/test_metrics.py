"""Metrics against scikit-learn and plain loops; the merge law by properties."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from jdl import metrics as m

properties = settings(max_examples=10, deadline=None, derandomize=True)
CLASSES = 5


def classified(seed, n, classes=CLASSES):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * 2
    return logits, rng.integers(0, classes, n)


def regressed(seed, n, outputs=(), offset=0.0):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n, *outputs)) + offset
    return (target + 0.3 * rng.normal(size=target.shape)).astype(np.float32), target.astype(np.float32)


def close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


# Every metric function goes through the same laws: add a line here.
BATTERY = {
    "accuracy": (m.accuracy, classified),
    "top_k": (m.top_k(k=3), classified),
    "confusion": (m.confusion, classified),
    "calibration": (m.calibration(bins=7), classified),
    "regression": (m.regression, regressed),
    "regression multi-output": (m.regression, functools.partial(regressed, outputs=(3,))),
    "regression with offset": (m.regression, functools.partial(regressed, offset=100.0)),
}
battery = pytest.mark.parametrize(("metric", "draw"), BATTERY.values(), ids=BATTERY.keys())


def padded(outputs, target, start, stop, size, rng):
    """A batch of rows start:stop among `size`, the rest garbage under a mask, in shuffled places."""
    places = np.sort(rng.permutation(size)[: stop - start])
    mask = np.zeros(size, rng.choice([bool, np.int32, np.float32]))
    mask[places] = 1
    filled = np.full((size, *outputs.shape[1:]), np.nan, outputs.dtype)
    filled[places] = outputs[start:stop]
    garbage = -7 if np.issubdtype(target.dtype, np.integer) else np.nan
    labels = np.full((size, *target.shape[1:]), garbage, target.dtype)
    labels[places] = target[start:stop]
    return filled, {"target": labels, "mask": mask}


compiled = functools.cache(jax.jit)  # one compile a metric and shape, not one an example


def merged_in_any_order(parts, rng):
    """Neighbors merged at random places until one is left: any association."""
    parts = list(parts)
    while len(parts) > 1:
        i = rng.integers(len(parts) - 1)
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    return parts[0]


@battery
@properties
@given(st.lists(st.integers(0, 24), max_size=6), st.integers(0, 2**20))
def test_uneven_padded_batches_merge_to_the_whole(metric, draw, cuts, seed):
    n, rng, metric = 24, np.random.default_rng(seed), compiled(metric)
    with jax.enable_x64(True):
        outputs, target = draw(seed, n)
        outputs = outputs.astype(np.float64)
        target = target.astype(np.float64) if target.dtype == np.float32 else target
        whole = m.to_host(metric(outputs, {"target": target}))
        bounds = [0, *sorted(cuts), n]  # equal cuts: batches that are all padding
        parts = [m.to_host(metric(*padded(outputs, target, a, b, n + 3, rng))) for a, b in itertools.pairwise(bounds)]
        expected = whole.compute()
        close(merged_in_any_order(parts, rng).compute(), expected, rtol=1e-12, atol=1e-12)

        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)  # [steps]
        close(m.merge_axis(stacked).compute(), expected, rtol=1e-12, atol=1e-12)

        # [runs, steps]: the second run holds the same parts in reverse.
        runs = jax.tree.map(lambda *leaves: np.stack([np.stack(leaves), np.stack(leaves[::-1])]), *parts)
        of_runs = m.merge_axis(runs, axis=1).compute()
        close(of_runs, jax.tree.map(lambda x: np.stack([x, x]), expected), rtol=1e-12, atol=1e-12)
        assert all(np.asarray(leaf).dtype != np.float32 for leaf in jax.tree.leaves(of_runs))


@battery
def test_inside_jit_vmap_and_scan_as_outside(metric, draw):
    drawn = [draw(seed, 12) for seed in range(2 * 3)]
    outputs = np.stack([o for o, _ in drawn]).reshape(2, 3, 12, *drawn[0][0].shape[1:])
    targets = np.stack([t for _, t in drawn]).reshape(2, 3, 12, *drawn[0][1].shape[1:])

    def one_run(outputs, targets):
        def step(carry, xs):
            return carry, metric(xs[0], {"target": xs[1]})

        return jax.lax.scan(step, None, (outputs, targets))[1]

    @jax.jit
    def program(outputs, targets):
        stacked = jax.vmap(one_run)(outputs, targets)  # [runs, steps]
        merged = m.merge_axis({"metric": stacked}, axis=1)["metric"]
        return stacked, merged.compute()

    stacked, computed = program(outputs, targets)
    host = m.merge_axis(m.to_host(stacked), axis=1).compute()
    close(computed, host, rtol=2e-4, atol=1e-6)
    for run in range(2):
        flat = (outputs[run].reshape(36, *outputs.shape[3:]), targets[run].reshape(36, *targets.shape[3:]))
        alone = m.to_host(compiled(metric)(flat[0], {"target": flat[1]})).compute()
        close(jax.tree.map(lambda x, run=run: x[run], host), alone, rtol=2e-4, atol=1e-6)


@battery
def test_what_is_masked_is_as_if_absent_also_all_of_it(metric, draw):
    (outputs, target), metric = draw(0, 6), compiled(metric)
    with np.errstate(all="raise"):
        nothing = m.to_host(metric(*padded(outputs, target, 0, 0, 4, np.random.default_rng(0))))
        some = m.to_host(metric(outputs, {"target": target}))
        empty = nothing.compute()
        close(some.merge(nothing).compute(), some.compute(), rtol=0)
        close(nothing.merge(some).compute(), some.compute(), rtol=0)
    ratios = empty if isinstance(empty, dict) else {"mean": empty}
    for name in {"mean", "accuracy", "ece", "mce", "mse", "rmse", "mae", "r2"} & ratios.keys():
        assert np.isnan(ratios[name])


@battery
def test_metrics_are_pytrees_whatever_the_leaves(metric, draw):
    outputs, target = draw(0, 6)
    value = compiled(metric)(outputs, {"target": target})
    assert m.is_metric(value)
    assert not m.is_metric(type(value))
    names = jax.tree.map(lambda leaf: "a sharding", value)  # as out_shardings and vmap's axes do
    assert set(jax.tree.leaves(names)) == {"a sharding"}


# The values.


def test_accuracy_and_top_k_are_scikit_learns():
    logits, target = classified(1, 200)
    batch = {"target": target}
    expected = sklearn_metrics.accuracy_score(target, logits.argmax(-1))
    close(m.accuracy(logits, batch).compute(), expected, rtol=1e-6)
    for k in (1, 2, 4):
        expected = sklearn_metrics.top_k_accuracy_score(target, logits, k=k)
        close(m.top_k(k=k)(logits, batch).compute(), expected, rtol=1e-6)
    assert m.top_k(k=CLASSES)(logits, batch).compute() == 1
    ties = np.zeros((2, 3), np.float32)
    assert m.top_k(k=1)(ties, {"target": np.array([0, 2])}).compute() == 0.5
    assert m.accuracy(ties, {"target": np.array([0, 2])}).compute() == 0.5


def test_accuracy_over_time_steps_counts_only_those_unmasked():
    logits, target = classified(2, 12)
    logits, target = logits.reshape(3, 4, CLASSES), target.reshape(3, 4)
    hits = logits.argmax(-1) == target
    mask = np.arange(4) < np.array([4, 1, 0])[:, None]
    close(m.accuracy(logits, {"target": target, "mask": mask}).compute(), hits[mask].mean(), rtol=1e-6)
    rows = np.array([1, 0, 1])
    close(m.accuracy(logits, {"target": target, "mask": rows}).compute(), hits[[0, 2]].mean(), rtol=1e-6)


@properties
@given(st.sampled_from([1, 7, 60]), st.integers(0, 2**20))
def test_confusion_is_scikit_learns(n, seed):
    logits, target = classified(seed, n)
    target = np.minimum(target, CLASSES - 2)  # the last class never occurs, and may be predicted
    logits[:, 0] = -9  # the first is never predicted, and may occur
    predicted = logits.argmax(-1)
    result = m.to_host(compiled(BATTERY["confusion"][0])(logits, {"target": target})).compute()
    labels = range(CLASSES)
    matrix = sklearn_metrics.confusion_matrix(target, predicted, labels=labels)
    np.testing.assert_array_equal(result["matrix"], matrix)
    close(result["accuracy"], sklearn_metrics.accuracy_score(target, predicted), rtol=1e-12)
    for average, suffix in (("macro", "macro"), ("micro", "micro"), (None, "per_class")):
        expected = sklearn_metrics.precision_recall_fscore_support(
            target, predicted, labels=labels, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            close(result[f"{name}_{suffix}"], value, rtol=1e-12)


def test_confusion_leaves_out_labels_out_of_range():
    counts = m.confusion(num_classes=2)(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], {"target": np.array([-1, 0, 2, 1])})
    np.testing.assert_array_equal(counts.counts, np.eye(2))


@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
def test_regression_is_scikit_learns(outputs):
    predicted, target = regressed(3, 50, outputs)
    result = m.to_host(compiled(m.regression)(predicted, {"target": target})).compute()
    expected = {
        "mse": sklearn_metrics.mean_squared_error(target, predicted),
        "rmse": sklearn_metrics.root_mean_squared_error(target, predicted),
        "mae": sklearn_metrics.mean_absolute_error(target, predicted),
        "r2": sklearn_metrics.r2_score(target, predicted),
    }
    close(result, expected, rtol=1e-5)


def test_regression_of_a_constant_target_and_of_one_example():
    constant = np.full(9, 0.1, np.float32)
    for predicted in (constant, constant + np.arange(9, dtype=np.float32)):
        parts = [compiled(m.regression)(predicted[a:b], {"target": constant[a:b]}) for a, b in ((0, 2), (2, 9))]
        expected = sklearn_metrics.r2_score(constant, predicted)
        assert m.to_host(parts[0]).merge(m.to_host(parts[1])).compute()["r2"] == expected
    assert np.isnan(compiled(m.regression)(constant[:1], {"target": constant[:1]}).compute()["r2"])


def test_r2_in_float32_survives_an_offset():
    predicted, target = regressed(4, 4096, offset=1e5)
    expected = sklearn_metrics.r2_score(target.astype(np.float64), predicted.astype(np.float64))
    batches = jax.jit(jax.vmap(lambda o, t: m.regression(o, {"target": t})))(
        predicted.reshape(64, 64), target.reshape(64, 64)
    )
    r2 = jax.jit(lambda batches: m.merge_axis(batches).compute()["r2"])(batches)
    assert r2.dtype == jnp.float32
    close(r2, expected, rtol=1e-5)
    # What it guards against: the textbook sum of squares is useless here.
    naive = jnp.sum(jnp.square(jnp.asarray(target))) - jnp.sum(jnp.asarray(target)) ** 2 / len(target)
    assert abs(naive / (len(target) * target.astype(np.float64).var()) - 1) > 0.1


def calibration_by_loop(logits, target, bins):
    """Guo et al. 2017, eq. 3 and 5, a bin at a time."""
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (exponential / exponential.sum(-1, keepdims=True)).max(-1)
    hits = logits.argmax(-1) == target
    gaps, weights = [], []
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            gaps.append(abs(hits[inside].mean() - confidence[inside].mean()))
            weights.append(inside.mean())
    return {"ece": np.dot(weights, gaps), "mce": max(gaps)}


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_is_the_plain_loop(bins):
    logits, target = classified(5, 300)
    with jax.enable_x64(True):
        logits = logits.astype(np.float64)
        result = jax.jit(m.calibration(bins=bins))(logits, {"target": target}).compute()
        close(result, calibration_by_loop(logits, target, bins), rtol=1e-12)


def test_calibration_bins_hold_their_upper_edge():
    logits = np.array([[0.0, 0.0], [40.0, 0.0]], np.float32)  # confidences 1/2 and 1
    metric = m.calibration(bins=4)(logits, {"target": np.array([0, 0])})
    np.testing.assert_array_equal(metric.count, [0, 1, 0, 1])


# Mean, Last, and the tools.


def test_mean_weighs_and_keeps_the_hosts_float64():
    mean = m.Mean.of(np.arange(6.0).reshape(3, 2), np.array([1, 0, 1]))
    assert (mean.total, mean.weight) == (10.0, 4.0)
    tiny = m.Mean(np.float64(1), np.float64(1)).merge(m.Mean(np.float64(1e-12), np.float64(0)))
    assert tiny.compute() == 1 + 1e-12
    assert m.Mean.of(jnp.ones(300, jnp.bfloat16)).total == 300  # a bfloat16 sum would stop at 256
    assert m.Mean.of(0.5).compute() == 0.5
    assert m.Mean.of(jnp.arange(4) > 0).compute() == 0.75


def test_mean_of_nothing_is_nan_without_a_warning():
    for zeros in (np.zeros(2), jnp.zeros(2)):
        assert np.isnan(m.Mean(zeros, zeros).compute()).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 8, 13])
def test_merge_axis_keeps_order(steps):
    values = np.arange(2 * steps).reshape(2, steps)
    merged = m.merge_axis({"a": m.Last(values), "b": (m.Mean(values * 1.0, np.ones((2, steps))),)}, axis=1)
    np.testing.assert_array_equal(merged["a"].compute(), values[:, -1])
    np.testing.assert_allclose(merged["b"][0].compute(), values.mean(1))


def test_merge_axis_keeps_order_for_any_metric():
    class Trace:  # neither commutative nor of this module
        def __init__(self, words):
            self.words = words

        def merge(self, other):
            return Trace(np.char.add(self.words, other.words))

        def compute(self):
            return self.words

    jax.tree_util.register_pytree_node(Trace, lambda t: ((t.words,), None), lambda _, c: Trace(*c))
    for n in range(1, 20):
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"[:n]))
        assert m.merge_axis(Trace(letters)).compute() == "".join(letters)


def test_to_host_widens():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.int32), "c": jnp.ones(1, bool), "d": 3.0}
    host = m.to_host(tree)
    assert {name: str(leaf.dtype) for name, leaf in host.items()} == {
        "a": "float64",
        "b": "int64",
        "c": "bool",
        "d": "float64",
    }
    assert all(isinstance(leaf, np.ndarray) for leaf in host.values())


LOGITS, LABELS = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: m.accuracy(LOGITS, {"label": LABELS}), KeyError, 'no "target"'),
        (lambda: m.accuracy(LOGITS, {"target": LOGITS}), TypeError, r"take .argmax\(-1\) of one-hot"),
        (
            lambda: m.accuracy(LOGITS, {"target": LABELS[:2]}),
            ValueError,
            r"int32\[2\]; labels for outputs \[4, 3\] are \[4\]",
        ),
        (lambda: m.accuracy(LOGITS, {"target": LABELS, "mask": LABELS[:2]}), ValueError, r"mask is \[2\]"),
        (lambda: m.top_k(k=0), ValueError, r"top_k\(k=0\): it must be 1 or more"),
        (lambda: m.top_k(k=4)(LOGITS, {"target": LABELS}), ValueError, "there are 3 classes"),
        (lambda: m.confusion(num_classes=4)(LOGITS, {"target": LABELS}), ValueError, "num_classes is 4"),
        (lambda: m.calibration(bins=0), ValueError, r"calibration\(bins=0\)"),
        (lambda: m.regression(LOGITS[:, :1], {"target": LOGITS[:, 0]}), ValueError, "squeeze"),
        (lambda: m.merge_axis({"a": LOGITS}), TypeError, r"\['a'\] is a ndarray"),
        (lambda: m.merge_axis(m.Last(LOGITS), axis=2), ValueError, "axis 2"),
        (lambda: m.merge_axis(m.Last(LOGITS[:0])), ValueError, "not empty"),
        (lambda: m.merge_axis(m.Mean(LOGITS, LABELS[:2])), ValueError, "axis 0"),
        (lambda: m.merge_axis(m.Last(LOGITS), axis=-1), ValueError, "from the front"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("metric", [m.accuracy, m.top_k(k=1), m.confusion, m.calibration])
def test_booleans_and_a_trailing_axis_are_labels(metric):
    logits = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1, 0], np.int32)
    plain = jax.tree.leaves(metric(logits, {"target": labels}))
    for other in (labels.astype(bool), labels[:, None], labels[:, None].astype(bool), labels.astype(np.int64)):
        for one, two in zip(plain, jax.tree.leaves(metric(logits, {"target": other})), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_metric_is_a_function_or_made_by_its_options():
    batch = {"target": LABELS}
    assert m.top_k(k=2)(LOGITS, batch).compute() == m.top_k(LOGITS, batch, k=2).compute()
    assert m.calibration()(LOGITS, batch).compute().keys() == m.calibration(LOGITS, batch).compute().keys()
    for wrong in (m.accuracy, m.regression):
        with pytest.raises(
            TypeError, match=rf"it has no options, so it is not called: .*jdl.metrics.{wrong.__name__}\}}"
        ):
            wrong()
    with pytest.raises(TypeError, match=r"options are given by keyword: .*jdl.metrics.top_k\(k=...\).*bins"):
        m.top_k(bins=3)
    with pytest.warns(FutureWarning, match=r"confusion\(3\) is written confusion\(num_classes=3\) now"):
        assert m.confusion(3)(LOGITS, batch).compute()
