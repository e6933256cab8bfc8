"""Image augmentation on the device: pure functions `(key, images) -> images` with an independent draw for each example.

Images are `[batch, height, width, channels]`, floating or uint8; shape and dtype are kept. Pixels outside the image
count as zero, which is the mean of normalized images.

    augmentation = compose(shift(2), flip(), cutout(8))
    learner = feed(learner, batch_size=128, augment=on(augmentation))

Augmentations that mix examples, and with them their targets, are in `jdl.data.mixing`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

Images = Shaped[Array | np.ndarray, "batch height width channels"]
Augmented = Shaped[Array, "batch height width channels"]
Augmentation = Callable[[PRNGKeyArray, Any], Array]


def shift(pixels: int) -> Augmentation:
    """Move each image by a random whole number of rows and columns; zeros fill the gap.

    Args:
        pixels: the largest move in each direction, less than the sides of the images; all moves up to it are equally
            likely.

    Raises:
        ValueError: for negative `pixels`; when applied, for images that are too small.
    """
    return _crop("shift: pixels", pixels, "constant")


def crop(padding: int, mode: str = "reflect") -> Augmentation:
    """Pad each side of the image, then cut out a window of the original size at a uniformly random place.

    Args:
        padding: pixels added on each side, less than the sides of the images.
        mode: `"reflect"` mirrors the image at its border without repeating the border pixels; `"zero"` pads with
            zeros, as `shift` does.

    Raises:
        ValueError: for an unknown mode or a negative padding; when applied, for images that are too small.

    Source: He et al., "Deep residual learning", 2016, section 4.2.
    """
    modes = {"reflect": "reflect", "zero": "constant"}
    if mode not in modes:
        raise ValueError(f"crop: mode is {mode!r}, and must be one of {list(modes)}.")
    return _crop("crop: padding", padding, modes[mode])


def flip(probability: float = 0.5) -> Augmentation:
    """Mirror each image left to right at random.

    Args:
        probability: how probable it is, from 0 to 1.

    Raises:
        ValueError: for another probability.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"flip: probability is {probability}, and must be between 0 and 1.")

    def augment(key: PRNGKeyArray, images: Images) -> Augmented:
        images = _as_images(images)
        flipped = jax.random.bernoulli(key, probability, images.shape[:1])
        return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)

    return augment


def rotate(degrees: float) -> Augmentation:
    """Rotate each image about its center by a random angle, with linear interpolation.

    Args:
        degrees: angles are uniform in `[-degrees, degrees]`; from 0 to 180.

    Raises:
        ValueError: for `degrees` outside 0 to 180.
    """
    if not 0 <= degrees <= 180:
        raise ValueError(f"rotate: degrees is {degrees}, and must be between 0 and 180.")

    def augment(key: PRNGKeyArray, images: Images) -> Augmented:
        images = _as_images(images)
        return rotated(images, jax.random.uniform(key, images.shape[:1], minval=-degrees, maxval=degrees))

    return augment


def cutout(size: int) -> Augmentation:
    """Set a square in each image to zero; its center is uniform over the pixels.

    Args:
        size: the side of the square in pixels, at most the sides of the images. The square may extend over the edge.

    Raises:
        ValueError: for a `size` below 1; when applied, for images that are smaller than the square.

    Source: DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017, section
    3.2.
    """
    if size < 1:
        raise ValueError(f"cutout: size is {size}, and must be at least 1 pixel.")

    def augment(key: PRNGKeyArray, images: Images) -> Augmented:
        images = _as_images(images)
        _, height, width, _ = images.shape
        if size > min(height, width):
            raise ValueError(f"cutout: size is {size}, larger than images of {height} by {width} pixels.")
        centers = jax.random.randint(key, (images.shape[0], 2), 0, jnp.array([height, width]))
        return jnp.where(boxes(centers - size // 2, size, height, width), jnp.zeros((), images.dtype), images)

    return augment


def random_erasing(
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: Literal["random", "zero"] = "random",
) -> Augmentation:
    """Replace a random rectangle inside each image by noise or zeros, with a given probability per image.

    Args:
        probability: of erasing a rectangle, drawn for each image.
        area: the smallest and the largest area of the rectangle, as fractions of the image.
        ratio: the smallest and the largest ratio of height to width. Its logarithm is drawn uniformly, so with
            `(1 / r, r)` tall and wide rectangles are equally likely. A rectangle that would not fit gets the nearest
            ratio that does.
        fill: "random" for independent noise in each value: standard normal, as normalized images are, or uniform over
            0 to 255 for uint8. "zero" for zeros.

    Raises:
        ValueError: for an argument outside its range.

    Source: Zhong et al., "Random erasing data augmentation", 2020, algorithm 1 (which draws until a rectangle fits).
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"random_erasing: probability is {probability}, and must be between 0 and 1.")
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"random_erasing: area is {area}, and must be two rising shares of the image, up to 1.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"random_erasing: ratio is {ratio}, and must be two rising numbers above 0.")
    if fill not in ("random", "zero"):
        raise ValueError(f"random_erasing: fill is {fill!r}, and must be 'random' or 'zero'.")

    def augment(key: PRNGKeyArray, images: Images) -> Augmented:
        images = _as_images(images)
        batch, height, width, _ = images.shape
        for_chosen, for_area, for_ratio, for_corner, for_noise = jax.random.split(key, 5)
        pixels = height * width * jax.random.uniform(for_area, (batch,), minval=area[0], maxval=area[1])
        logarithm = jax.random.uniform(for_ratio, (batch,), minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
        ratios = jnp.clip(jnp.exp(logarithm), pixels / width**2, height**2 / pixels)
        sides = jnp.stack([jnp.sqrt(pixels * ratios), jnp.sqrt(pixels / ratios)], -1)
        limits = jnp.array([height, width])
        sizes = jnp.clip(jnp.round(sides).astype(jnp.int32), 1, limits)
        corners = jax.random.randint(for_corner, (batch, 2), 0, limits - sizes + 1)
        chosen = jax.random.bernoulli(for_chosen, probability, (batch, 1, 1, 1))
        noise = _noise(for_noise, images) if fill == "random" else jnp.zeros((), images.dtype)
        return jnp.where(chosen & boxes(corners, sizes, height, width), noise, images)

    return augment


def compose(*augmentations: Callable[[PRNGKeyArray, Any], Any]) -> Callable[[PRNGKeyArray, Any], Any]:
    """Apply augmentations from left to right, each with a different key.

    Args:
        augmentations: either all act on images, or all act on batches. Augmentations of batches come from `on` and
            from `jdl.data.mixing`.
    """

    def augment(key: PRNGKeyArray, images_or_batch: Any) -> Any:
        for i, augmentation in enumerate(augmentations):
            images_or_batch = augmentation(jax.random.fold_in(key, i), images_or_batch)
        return images_or_batch

    return augment


def on(augmentation: Augmentation, key_name: str = "input") -> Callable[[PRNGKeyArray, Any], dict[str, Any]]:
    """Make an image augmentation act on one array of a batch.

    Args:
        augmentation: a function `(key, images) -> images`.
        key_name: the key of the array in the batch.

    Returns:
        A function `(key, batch) -> batch`, for `feed`. It raises ValueError for a batch without that key.
    """

    def augment(key: PRNGKeyArray, batch: dict[str, Any]) -> dict[str, Any]:
        if key_name not in batch:
            raise ValueError(f"on: the batch has no key {key_name!r}, only {list(batch)}: name one of these.")
        return batch | {key_name: augmentation(key, batch[key_name])}

    return augment


def rotated(images: Images, degrees: Float[Array | np.ndarray, " batch"]) -> Augmented:
    """Rotate image i by `degrees[i]` with linear interpolation.

    The result is that of scipy.ndimage's `rotate(image, degrees, reshape=False, order=1, mode="grid-constant")`.

    Args:
        images: floating or integer images.
        degrees: angles, counterclockwise as seen on a screen.
    """
    images = _as_images(images)
    batch, height, width, channels = images.shape
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    angles = jnp.deg2rad(jnp.asarray(degrees).astype(dtype))[:, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    # Find where each output pixel comes from: the inverse rotation, with the row axis pointing down.
    down = jnp.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    right = jnp.arange(width, dtype=dtype)[None, :] - (width - 1) / 2
    rows = cosine * down + sine * right + (height - 1) / 2
    columns = cosine * right - sine * down + (width - 1) / 2
    top, left = jnp.floor(rows), jnp.floor(columns)

    # Gathering a pixel's channels together is twice as fast as map_coordinates channel by channel.
    pixels = images.reshape(batch, height * width, channels).astype(dtype)
    turned = jnp.zeros(images.shape, dtype)
    for row, row_weight in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, column_weight in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            corner = jnp.take_along_axis(pixels, place.reshape(batch, -1, 1), axis=1, mode="promise_in_bounds")
            turned += (row_weight * column_weight * inside)[..., None] * corner.reshape(images.shape)
    if jnp.issubdtype(images.dtype, jnp.integer):
        # Interpolation stays within the range of the pixels, so only rounding is needed.
        turned = jnp.round(turned)
    return turned.astype(images.dtype)


def boxes(
    corners: Int[Array, "batch 2"], sizes: Int[Array, "batch 2"] | int, height: int, width: int
) -> Bool[Array, "batch {height} {width} 1"]:
    """Return a mask that is True inside one rectangle per image.

    Args:
        corners: row and column of each rectangle's top left pixel. Parts of a rectangle outside the image are
            ignored.
        sizes: rows and columns of each rectangle in pixels; one number for equal squares.
        height: rows of the images.
        width: columns of the images.
    """
    ends = corners + sizes
    rows, columns = jnp.arange(height), jnp.arange(width)
    inside_rows = (rows >= corners[:, 0, None]) & (rows < ends[:, 0, None])
    inside_columns = (columns >= corners[:, 1, None]) & (columns < ends[:, 1, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]


def _crop(name: str, padding: int, mode: str) -> Augmentation:
    if padding < 0:
        raise ValueError(f"{name} is {padding}, and must not be negative.")

    def augment(key: PRNGKeyArray, images: Images) -> Augmented:
        images = _as_images(images)
        batch, height, width, _ = images.shape
        if padding >= min(height, width):
            raise ValueError(f"{name} is {padding}: it must be less than the sides, {height} by {width} pixels.")
        around = (padding, padding)
        padded = jnp.pad(images, ((0, 0), around, around, (0, 0)), mode=mode)
        corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
        return _windows(padded, corners, height, width)

    return augment


def _windows(
    images: Shaped[Array, "batch _ _ channels"], corners: Int[Array, "batch 2"], height: int, width: int
) -> Shaped[Array, "batch {height} {width} channels"]:
    """Cut from image i the window whose top left pixel is `corners[i]`."""
    # Rows first, then columns: two gathers of whole lines are faster than one gather of pixels.
    rows = corners[:, 0, None] + jnp.arange(height)
    columns = corners[:, 1, None] + jnp.arange(width)
    images = jnp.take_along_axis(images, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2, mode="promise_in_bounds")


def _noise(key: PRNGKeyArray, images: Augmented) -> Augmented:
    if jnp.issubdtype(images.dtype, jnp.integer):
        return jax.random.randint(key, images.shape, 0, 256).astype(images.dtype)
    return jax.random.normal(key, images.shape, images.dtype)


def _as_images(images: Any) -> Array:
    if getattr(images, "ndim", None) != 4:
        shape = getattr(images, "shape", type(images).__name__)
        raise ValueError(f"images have shape {shape}: augmentation takes [batch, height, width, channels].")
    return jnp.asarray(images)
