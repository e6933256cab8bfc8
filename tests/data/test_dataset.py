"""Data sets against scikit-learn's own splitting and scaling, and the errors a user can cause."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jdl.data import Dataset, Normalizer, breast_cancer, check, diabetes, iris, split, wine


def labeled(num_examples=100, num_classes=4):
    index = np.arange(num_examples)
    return {"input": index[:, None].astype(np.float32), "target": (index % num_classes).astype(np.int32)}


def members(part):
    return part["input"][:, 0].astype(int)


# --- split


def test_split_is_scikit_learns():
    data = labeled()
    train, validation, test = split(data, seed=3)
    expected_train, expected_test = train_test_split(
        np.arange(100), test_size=0.2, stratify=data["target"], random_state=3
    )
    assert validation is None
    np.testing.assert_array_equal(members(train), expected_train)
    np.testing.assert_array_equal(members(test), expected_test)


@given(
    num_examples=st.integers(30, 200),
    validation=st.just(0.0) | st.floats(0.01, 0.4),
    test=st.floats(0.01, 0.4),
    stratify=st.booleans(),
    seed=st.integers(0, 100),
)
def test_split_covers_each_example_once(num_examples, validation, test, stratify, seed):
    data = labeled(num_examples, 2)
    fractions = (1 - validation - test, validation, test)
    # A part smaller than the number of classes is refused (tested below).
    sizes = [np.ceil(round(fraction * num_examples, 6)) for fraction in fractions[1:]]
    stratify = stratify and 1 not in sizes
    parts = split(data, fractions, seed=seed, stratify=stratify)
    found = np.concatenate([members(part) for part in parts if part is not None])
    np.testing.assert_array_equal(np.sort(found), np.arange(num_examples))
    for part in parts:
        if part is not None:
            np.testing.assert_array_equal(part["target"], members(part) % 2)
            if stratify:
                assert abs(np.sum(part["target"] == 0) - np.sum(part["target"] == 1)) <= 2


def test_split_keeps_the_proportions_of_classes():
    data = {"input": np.zeros((200, 1)), "target": np.repeat([0, 1], [180, 20])}
    for part, share in zip(split(data, (0.5, 0.25, 0.25)), (10, 5, 5), strict=True):
        assert part["target"].sum() == share


def test_split_by_sizes_seed_and_nested_arrays():
    data = labeled() | {"mask": np.arange(100) % 2 == 0, "extra": {"row": jnp.arange(100)}}
    train, validation, test = split(data, sizes=(40, 20, 8), seed=1)
    assert [len(members(part)) for part in (train, validation, test)] == [40, 20, 8]
    np.testing.assert_array_equal(train["extra"]["row"], members(train))
    np.testing.assert_array_equal(train["mask"], members(train) % 2 == 0)
    again, other = split(data, sizes=(40, 20, 8), seed=1)[0], split(data, sizes=(40, 20, 8), seed=2)[0]
    np.testing.assert_array_equal(members(again), members(train))
    assert not np.array_equal(members(other), members(train))


def test_a_product_rounded_above_a_whole_number_counts_as_whole():
    assert 0.07 * 100 > 7
    assert len(split(labeled(), (0.93, 0.0, 0.07))[2]["target"]) == 7


def test_regression_targets_are_not_stratified():
    data = {"input": np.arange(10.0)[:, None], "target": np.arange(10.0)}
    train, _, test = split(data, seed=5)
    expected_train, expected_test = train_test_split(np.arange(10), test_size=0.2, random_state=5)
    np.testing.assert_array_equal(train["target"], expected_train)
    np.testing.assert_array_equal(test["target"], expected_test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (1.0, 0.0, 0.0)}, "the test part would be empty: 12 examples at fractions"),
        ({"fractions": (0.01, 0.0, 0.99)}, "the train part would be empty: 12 examples .* leave it 0"),
        ({"sizes": (0, 0, 12)}, "the train part would be empty"),
        ({"fractions": (0.8, 0.2, 0.2)}, "sums to 1.2, not to 1"),
        ({"fractions": (1.2, 0.0, -0.2)}, "none negative"),
        ({"sizes": (10, 2, 5)}, "sums to 17, but data has 12"),
        ({"fractions": (0.9, 0.0, 0.1)}, "2 examples for test .* cannot hold each of 4 classes"),
    ],
)
def test_split_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(labeled(12), **arguments)


def test_split_refuses_a_class_of_one():
    data = {"input": np.zeros((9, 1)), "target": np.array([0, 0, 0, 0, 7, 1, 1, 1, 1])}
    with pytest.raises(ValueError, match=r"class 7 has 1 example .* stratify=False"):
        split(data, (0.5, 0.0, 0.5))
    train, _, test = split(data, (0.5, 0.0, 0.5), stratify=False)
    assert len(train["target"]) + len(test["target"]) == 9


# --- check


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "holds no array"),
        ({"input": [1.0, 2.0]}, r"data\['input'\] is a list, not an array: .*numpy.asarray"),
        (
            {"input": np.zeros((3, 2)), "target": np.zeros(4)},
            r"data\['input'\] has 3, data\['target'\] has 4",
        ),
        ({"input": np.zeros((0, 2))}, "has no examples"),
        ({"input": np.float32(1)}, "is a scalar"),
        ({"input": np.array([[1], [1, 2]], object)}, 'dtype object.*"mask"'),
        ({"input": np.array(["a", "b"])}, "encode strings"),
        ({"input": np.array([[1, np.nan], [np.inf, 2]])}, r"2 value\(s\) .* first \(nan\) at index \(0, 1\)"),
        ({"input": jnp.array([1, jnp.inf], jnp.bfloat16)}, r"1 value\(s\) .* \(inf\) at index \(1,\)"),
        (
            {"input": np.zeros(2), "target": np.array([0, 3])},
            r"1 label\(s\) outside \[0, 3\).*\(3\) at .*\(1,\)",
        ),
        ({"input": np.zeros(2), "target": np.array([-1, 0])}, r"first \(-1\) at index \(0,\)"),
        ({"input": np.zeros(2), "target": np.zeros(2)}, "3 classes: give integer labels"),
        ({"input": {"left": np.zeros(2), "right": np.array([0, np.nan])}}, r"data\['input'\]\['right'\]"),
    ],
)
def test_check_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        check(data, num_classes=3)


def test_check_accepts():
    mask = np.array([[True, False], [True, True]])
    data = {"input": np.zeros((2, 2, 5)), "target": np.array([[0, -100], [1, 2]]), "mask": mask}
    assert check(data, 3) is data  # padding may carry any label
    with pytest.raises(ValueError, match="-100"):
        check(data | {"mask": ~mask}, 3)
    check({"input": jnp.zeros((2, 1), jnp.bfloat16), "target": np.array([False, True])}, 2)
    check({"input": np.zeros((2, 1)), "target": np.full((2, 3), 1 / 3)}, 3)  # soft labels
    check({"input": np.zeros((2, 1), np.uint8), "target": np.array([5, 900])})


def test_a_dataset_is_checked_when_made():
    good, bad = labeled(), labeled() | {"target": np.full(100, 4)}
    with pytest.raises(ValueError, match=r"mine.test\['target'\] has 100 label"):
        Dataset(good, None, bad, num_classes=4, name="mine")
    with pytest.raises(ValueError, match="2 class_names but num_classes is 4"):
        Dataset(good, None, good, num_classes=4, class_names=("a", "b"))


# --- normalizer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalizer_is_scikit_learns_scaler(dtype):
    inputs = np.random.default_rng(0).normal(1e3, 3.0, (2500, 4)).astype(dtype)
    inputs[:, 2] = 0.1  # constant: its deviation comes to 1e-17, and counts as zero
    normalizer = Normalizer.fit(inputs)
    scaler = StandardScaler().fit(inputs.astype(np.float64))
    np.testing.assert_allclose(normalizer.mean, scaler.mean_, rtol=1e-7)
    np.testing.assert_allclose(normalizer.std, scaler.scale_, rtol=1e-6)
    assert normalizer.std[2] == 1
    assert normalizer.mean.dtype == normalizer.std.dtype == np.float32
    normalized = normalizer(inputs)
    assert normalized.dtype == dtype
    np.testing.assert_allclose(normalized, scaler.transform(inputs.astype(np.float64)), atol=1e-4)
    np.testing.assert_allclose(normalizer.invert(normalized), inputs, rtol=1e-6)


def test_normalizer_per_channel_on_bytes_and_trees():
    images = np.random.default_rng(0).integers(0, 256, (1500, 3, 2, 3), np.uint8)
    inputs = {"image": images, "table": np.arange(1500.0)}
    normalizer = Normalizer.fit(inputs, "per channel")
    np.testing.assert_allclose(normalizer.mean["image"][0, 0], images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(normalizer.std["image"][0, 0], images.std((0, 1, 2)), rtol=1e-6)
    normalized = normalizer(inputs)
    assert normalized["image"].dtype == np.float32
    np.testing.assert_allclose(normalized["image"].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized["table"].std(), 1, rtol=1e-6)
    one = Normalizer.fit(images, (0, 1))
    np.testing.assert_allclose(one.std[0], images.std((0, 1)), rtol=1e-6)


def test_normalizer_is_a_pytree_and_runs_under_jit():
    inputs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    normalizer = Normalizer.fit(inputs)
    assert len(jax.tree.leaves(normalizer)) == 2
    compiled = jax.jit(lambda normalizer, x: normalizer(x))(normalizer, inputs)
    np.testing.assert_allclose(compiled, normalizer(inputs), rtol=1e-6)


def test_normalizer_refuses():
    inputs = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"examples of shape \(3,\).*array of shape \(5, 1\)"):
        Normalizer.fit(inputs)(np.zeros((5, 1)))
    with pytest.raises(ValueError, match="axes is 'per row'"):
        Normalizer.fit(inputs, "per row")
    with pytest.raises(ValueError, match="must contain 0"):
        Normalizer.fit(inputs, (1,))
    with pytest.raises(ValueError, match="no examples"):
        Normalizer.fit(np.zeros((0, 3)))


# --- tables


@pytest.mark.parametrize(
    ("source", "shape", "num_classes"),
    [(iris, (150, 4), 3), (wine, (178, 13), 3), (breast_cancer, (569, 30), 2), (diabetes, (442, 10), None)],
)
def test_tables_are_standardized_by_the_training_part(source, shape, num_classes):
    dataset = source(fractions=(0.6, 0.2, 0.2))
    parts = (dataset.train, dataset.validation, dataset.test)
    assert sum(len(part["input"]) for part in parts) == shape[0]
    assert dataset.num_classes == num_classes
    for part in parts:
        assert part["input"].dtype == np.float32
        assert part["input"].shape[1:] == shape[1:]
        assert part["target"].dtype == (np.float32 if num_classes is None else np.int32)
    np.testing.assert_allclose(dataset.train["input"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.train["input"].std(0), 1, rtol=1e-5)
    # Nothing of the test part went into the normalizer.
    assert np.abs(dataset.test["input"].mean(0)).max() > 1e-3
    raw = source(fractions=(0.6, 0.2, 0.2), standardize=False)
    assert raw.normalizer is None
    np.testing.assert_allclose(
        dataset.normalizer.invert(dataset.test["input"]), raw.test["input"], rtol=1e-4, atol=1e-6
    )


def test_iris_and_diabetes_hold_scikit_learns_rows():
    bunch = load_iris()
    dataset = iris(split_seed=4, standardize=False)
    train, test = train_test_split(np.arange(150), test_size=0.2, stratify=bunch.target, random_state=4)
    np.testing.assert_array_equal(dataset.train["input"], bunch.data[train].astype(np.float32))
    np.testing.assert_array_equal(dataset.test["target"], bunch.target[test])
    assert dataset.class_names == ("setosa", "versicolor", "virginica")
    assert re.search("120 train, 30 test, 3 classes", repr(dataset))

    bunch = load_diabetes(scaled=False)
    train, _ = train_test_split(np.arange(442), test_size=0.2, random_state=1)
    dataset = diabetes(split_seed=1, standardize=False)
    np.testing.assert_array_equal(dataset.train["input"], bunch.data[train].astype(np.float32))
    np.testing.assert_array_equal(dataset.train["target"], bunch.target[train].astype(np.float32))
    standardized = diabetes(standardize_target=True)
    np.testing.assert_allclose(standardized.train["target"].std(), 1, rtol=1e-5)
    back = standardized.target_normalizer.invert(standardized.test["target"])
    np.testing.assert_allclose(back, diabetes().test["target"], rtol=1e-5)
