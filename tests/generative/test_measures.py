"""Distances between sets beside closed forms, prdc and scikit-learn; pictures beside scikit-image."""

import contextlib
import io

import jax
import numpy as np
import pytest
import scipy.linalg
from prdc import compute_prdc
from skimage import metrics
from sklearn.metrics.pairwise import polynomial_kernel

from jdl import generative

RANDOM = np.random.default_rng(0)
MIXING = RANDOM.normal(size=(12, 12))
REAL = RANDOM.normal(size=(400, 12)) @ MIXING
BYTES = RANDOM.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
GENERATED = (0.7 * RANDOM.normal(size=(300, 12)) + 0.5) @ MIXING


def test_the_frechet_distance_of_normal_distributions():
    means, scales = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 3.0])
    first = RANDOM.normal(size=(200_000, 3))
    second = means + scales * RANDOM.normal(size=(200_000, 3))
    expected = (means**2).sum() + ((1 - scales) ** 2).sum()  # covariances that commute
    assert generative.frechet_distance(first, second) == pytest.approx(expected, rel=0.01)


def test_the_frechet_distance_by_the_root_of_a_matrix():
    first, second = np.cov(REAL, rowvar=False), np.cov(GENERATED, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    difference = REAL.mean(0) - GENERATED.mean(0)
    expected = difference @ difference + np.trace(first + second - 2 * root)
    assert generative.frechet_distance(REAL, GENERATED) == pytest.approx(expected, rel=1e-6)
    assert generative.frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-8)
    assert generative.frechet_distance(REAL, REAL + 3) == pytest.approx(9 * 12, rel=1e-9)


def test_the_kernel_distance_beside_scikit_learn():
    """All examples in every subset: nothing is left to chance."""
    x, y = REAL[:300], GENERATED
    own = [polynomial_kernel(of, degree=3, coef0=1) for of in (x, y)]
    within = sum((kernel.sum() - np.trace(kernel)) / (300 * 299) for kernel in own)
    expected = within - 2 * polynomial_kernel(x, y, degree=3, coef0=1).mean()
    found = generative.kernel_distance(x, y, subsets=3, size=300)
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-6 * expected)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    first, second = (RANDOM.normal(size=(2000, 8)) for _ in range(2))
    found = generative.kernel_distance(first, second, size=200)
    assert abs(found.mean) < 3 * found.std / np.sqrt(100) + 1e-3
    moved = generative.kernel_distance(first, second + 0.5, size=200)
    assert moved.mean > 10 * found.std
    assert moved == generative.kernel_distance(first, second + 0.5, size=200)
    assert moved != generative.kernel_distance(first, second + 0.5, size=200, seed=1)


@pytest.mark.parametrize("neighbors", [1, 5])
def test_neighborhoods_beside_their_authors(neighbors, monkeypatch):
    monkeypatch.setattr("jdl.generative.measures._ROWS", 128)  # several pieces, and a last one that is smaller
    with contextlib.redirect_stdout(io.StringIO()):
        expected = compute_prdc(REAL, GENERATED, neighbors)
    found = generative.neighborhoods(REAL, GENERATED, neighbors=neighbors)
    assert found._asdict() == pytest.approx(expected)
    assert 0 < found.recall < found.precision


def test_missing_modes_lower_the_coverage_and_not_the_precision():
    modes = np.repeat(np.eye(5) * 100, 60, axis=0)
    real, whole = (modes + RANDOM.normal(size=modes.shape) for _ in range(2))
    found = generative.neighborhoods(real, whole[:60].repeat(5, 0) + 0.1 * RANDOM.normal(size=modes.shape))
    assert found.precision > 0.7
    assert found.coverage <= 0.2
    assert generative.neighborhoods(real, whole).coverage > 0.9


@pytest.mark.parametrize("shape", [(28, 28, 1), (17, 32, 3)])
def test_pictures_beside_scikit_image(shape):
    references = RANDOM.uniform(size=(4, *shape)).astype(np.float32)
    images = np.clip(references + 0.1 * RANDOM.normal(size=references.shape), 0, 1).astype(np.float32)
    signal, similarity = jax.jit(generative.psnr)(images, references), jax.jit(generative.ssim)(images, references)
    for i in range(4):
        expected = metrics.peak_signal_noise_ratio(references[i], images[i], data_range=1)
        np.testing.assert_allclose(signal[i], expected, rtol=1e-5)
        expected = metrics.structural_similarity(
            references[i], images[i], gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
            channel_axis=-1,
        )  # fmt: skip
        np.testing.assert_allclose(similarity[i], expected, atol=1e-5)
    np.testing.assert_allclose(generative.ssim(references, references), 1, atol=1e-6)
    np.testing.assert_allclose(generative.psnr(255 * images, 255 * references, 255.0), signal, rtol=1e-4)
    np.testing.assert_allclose(generative.ssim(255 * images, 255 * references, 255.0), similarity, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: generative.frechet_distance(REAL, GENERATED[:, :5]), r"\(400, 12\), generated \(300, 5\)"),
        (lambda: generative.frechet_distance(REAL, GENERATED[:12]), r"generated has 12 examples of 12 features"),
        (lambda: generative.frechet_distance(REAL, GENERATED * np.nan), r"generated examples are not all finite"),
        (lambda: generative.kernel_distance(REAL, GENERATED), r"size=1000\): .* which are 400 and 300"),
        (lambda: generative.kernel_distance(REAL, GENERATED, size=9, subsets=0), r"subsets=0\): at least 1"),
        (lambda: generative.neighborhoods(REAL, GENERATED, neighbors=300), r"neighbors=300\): .* 400 and 300"),
        (lambda: generative.psnr(BYTES, BYTES), r"psnr: the images are uint8; give floats"),
        (lambda: generative.ssim(BYTES / 255, BYTES), r"ssim: the references are uint8"),
        (lambda: generative.psnr(BYTES / 255, BYTES[:1] / 255), r"\(2, 16, 16, 3\) and \(1, 16, 16, 3\)"),
        (lambda: generative.ssim(np.zeros((1, 8, 28, 1)), np.zeros((1, 8, 28, 1))), r"8 x 28 are smaller"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        wrong()
