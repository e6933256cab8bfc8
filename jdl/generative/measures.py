"""How near generated examples are to real ones: distances between sets of features, and between pairs of pictures.

Features are what a network makes of examples, `[examples, features]`. Distances compare only within one network and,
except for the kernel distance, only between sets of the same size. To know what a distance means, compute it also
between two sets of real examples: no model can be expected to come below that.

Distances between sets are computed by NumPy in float64. `psnr` and `ssim` are JAX functions, which may be compiled.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Features = Float[Array | np.ndarray, "_ _"]  # [examples, features]; each set has a number of examples of its own
Pictures = Shaped[
    Array | np.ndarray, "..."
]  # [batch, height, width, channels], as `_check_pictures` says with a remedy

_ROWS = 1000  # of a matrix of distances that are held at a time: 80 MB for 10,000 examples


def frechet_distance(real: Features, generated: Features) -> float:
    """Compute the squared Fréchet distance between two sets, each taken as a normal distribution.

        ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)

    With features of Inception-v3 this is the FID. The estimate is too large, by an amount that falls with the number of
    examples: compare sets of equal size.

    Args:
        real: features of real examples; more examples than features.
        generated: features of generated examples; likewise.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: for sets with different features, and for no more examples than features.

    Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017,
    section 4.
    """
    real, generated = _checked(real, generated)
    size = real.shape[1]
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= size:
            raise ValueError(
                f"frechet_distance: {name} has {len(features)} examples of {size} features, whose covariance is "
                "singular; give more examples than features, or use kernel_distance"
            )
    difference = real.mean(0) - generated.mean(0)
    first, second = np.cov(real, rowvar=False).reshape(size, size), np.cov(generated, rowvar=False).reshape(size, size)
    scales, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(scales.clip(0))) @ axes.T
    # The product of two covariances is not symmetric, and its root by scipy.linalg.sqrtm may be complex.
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(difference @ difference + np.trace(first) + np.trace(second) - 2 * overlap, 0.0))


class KernelDistance(NamedTuple):
    """A kernel distance over subsets.

    Attributes:
        mean: the estimate.
        std: standard deviation of the estimates of single subsets.
    """

    mean: float
    std: float


def kernel_distance(
    real: Features, generated: Features, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Estimate the squared maximum mean discrepancy under the kernel (x·y / features + 1)³, without bias.

    With features of Inception-v3 this is the KID. It may be below 0. Unlike the Fréchet distance it does not depend on
    the number of examples, and so serves for small sets.

    Args:
        real: features of real examples.
        generated: features of generated examples.
        subsets: how many pairs of random subsets are compared.
        size: examples in each subset, drawn without replacement; at most as many as each set has.
        seed: determines the subsets.

    Raises:
        ValueError: for sets with different features, and for sizes below 2 or above the size of a set.

    Source: Bińkowski et al., "Demystifying MMD GANs", 2018, section 4.
    """
    real, generated = _checked(real, generated)
    if not 2 <= size <= min(len(real), len(generated)):
        raise ValueError(
            f"kernel_distance(size={size}): at least 2, and at most the examples of each set, which are {len(real)} "
            f"and {len(generated)}"
        )
    if subsets < 1:
        raise ValueError(f"kernel_distance(subsets={subsets}): at least 1")
    random = np.random.default_rng(seed)
    found = np.array(
        [
            _discrepancy(*(of[random.choice(len(of), size, replace=False)] for of in (real, generated)))
            for _ in range(subsets)
        ]
    )
    return KernelDistance(float(found.mean()), float(found.std()))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Without bias: no example is compared with itself."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


class Neighborhoods(NamedTuple):
    """How two sets overlap; each example has a ball as large as the distance to its k-th neighbor in its own set.

    Attributes:
        precision: share of generated examples inside the ball of some real one; they look real.
        recall: share of real examples inside the ball of some generated one; the model could have made them.
        density: mean number of real balls around a generated example, divided by k; not bounded by 1. An outlier among
            the real examples, whose ball is large, counts for less than in the precision.
        coverage: share of real examples whose ball contains a generated one; falls when modes are missing.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighborhoods(real: Features, generated: Features, *, neighbors: int = 5) -> Neighborhoods:
    """Measure quality and variety apart, by the neighborhoods of examples.

    Two sets of one distribution do not score 1: print also what real examples score against other real ones.

    Args:
        real: features of real examples.
        generated: features of generated examples.
        neighbors: k.

    Raises:
        ValueError: for sets with different features, and for no more examples than neighbors.

    Source: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019; Naeem et
    al., "Reliable fidelity and diversity metrics for generative models", 2020, sections 2 and 3.
    """
    real, generated = _checked(real, generated)
    if not 1 <= neighbors < min(len(real), len(generated)):
        raise ValueError(
            f"neighborhoods(neighbors={neighbors}): at least 1, and fewer than the examples of each set, which are "
            f"{len(real)} and {len(generated)}"
        )
    real_radii, generated_radii = _radii(real, neighbors), _radii(generated, neighbors)
    precise, around = np.zeros(len(generated), bool), np.zeros(len(generated))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distances in _distances(real, generated):
        inside = distances < real_radii[rows, None]
        precise |= inside.any(0)
        around += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (distances < generated_radii).any(1)
    return Neighborhoods(
        float(precise.mean()), float(recalled.mean()), float(around.mean() / neighbors), float(covered.mean())
    )


def _radii(features: np.ndarray, neighbors: int) -> np.ndarray:
    radii = np.empty(len(features))
    for rows, distances in _distances(features, features):
        # An example is its own nearest, at place 0; by rounding its distance to itself may be a little more.
        distances[np.arange(len(distances)), np.arange(len(features))[rows]] = -1
        radii[rows] = np.partition(distances, neighbors, axis=1)[:, neighbors]
    return radii


def _distances(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances, some rows of the matrix at a time."""
    lengths = (second**2).sum(1)
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        part = first[rows]
        squares = (part**2).sum(1)[:, None] + lengths - 2 * part @ second.T
        yield rows, np.sqrt(squares.clip(0))


def _checked(real: Any, generated: Any) -> tuple[np.ndarray, np.ndarray]:
    real, generated = (np.asarray(features, np.float64) for features in (real, generated))
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features are [examples, features], with the same features in both sets; real has the shape {real.shape}, "
            f"generated {generated.shape}"
        )
    for name, features in (("real", real), ("generated", generated)):
        if not np.isfinite(features).all():
            raise ValueError(f"the features of the {name} examples are not all finite")
    return real, generated


def psnr(
    images: Pictures,
    references: Pictures,
    peak: float = 1.0,
) -> Float[Array, " batch"]:
    """Compute the peak signal-to-noise ratio of each image, in decibels: 10 log₁₀(peak² / mean squared error).

    Average it over images; the ratio of a mean error is another number, and both are in use.

    Args:
        images: what is judged, [batch, height, width, channels].
        references: what it should be.
        peak: the largest value that a pixel can have, above a least one of 0.

    Returns:
        Infinity for an image without any error.

    Raises:
        ValueError: for images of whole numbers, and for references of another shape.
    """
    _check_pictures("psnr", images, references)
    error = ((images - references) ** 2).mean((1, 2, 3))
    return 10 * jnp.log10(peak**2 / error)


def ssim(
    images: Pictures,
    references: Pictures,
    peak: float = 1.0,
) -> Float[Array, " batch"]:
    """Compute the structural similarity of each image, at most 1, over Gaussian windows of 11 pixels with σ = 1.5.

    Windows lie wholly inside the image. Of several channels the mean is taken.

    Args:
        images: what is judged, [batch, height, width, channels].
        references: what it should be.
        peak: the largest value that a pixel can have, above a least one of 0.

    Raises:
        ValueError: for images smaller than a window, or as `psnr`.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, equation 13.
    """
    _check_pictures("ssim", images, references)
    if min(images.shape[1:3]) < 11:
        raise ValueError(f"ssim: images of {images.shape[1]} x {images.shape[2]} are smaller than its window, 11 x 11")
    down, across = _windows(images.shape[1]), _windows(images.shape[2])

    def local_mean(x: Array | np.ndarray) -> Array:
        return jnp.einsum("ih,bhwc,jw->bijc", down, x, across)

    mean, other = local_mean(images), local_mean(references)
    variance, other_variance = local_mean(images**2) - mean**2, local_mean(references**2) - other**2
    covariance = local_mean(images * references) - mean * other
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (2 * mean * other + c1) * (2 * covariance + c2)
    similarity /= (mean**2 + other**2 + c1) * (variance + other_variance + c2)
    return similarity.mean((1, 2, 3))


def _check_pictures(name: str, images: Any, references: Any) -> None:
    """Differences of bytes would wrap around, and other shapes broadcast, both in silence."""
    if images.shape != references.shape or images.ndim != 4:
        raise ValueError(
            f"{name}: images and references are [batch, height, width, channels], of one shape; they have the shapes "
            f"{images.shape} and {references.shape}"
        )
    for what, pictures in (("images", images), ("references", references)):
        if not jnp.issubdtype(pictures.dtype, jnp.floating):
            raise ValueError(f"{name}: the {what} are {pictures.dtype}; give floats, for bytes divided by 255")


def _windows(size: int) -> Float[np.ndarray, "windows size"]:
    """The weights of each window in a line of pixels."""
    offsets = np.arange(size) - np.arange(size - 10)[:, None] - 5  # from the middle of the window
    weights = np.where(np.abs(offsets) <= 5, np.exp(-0.5 * (offsets / 1.5) ** 2), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
