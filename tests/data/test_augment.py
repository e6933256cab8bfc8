"""Augmentations against a loop over examples in NumPy or scipy.ndimage, given the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from jdl.data import augment
from jdl.data.augment import compose, crop, cutout, flip, on, random_erasing, rotate, shift

rotated = jax.jit(augment.rotated)

EVERY = {
    "shift": shift(2),
    "crop": crop(3),
    "crop zero": crop(3, "zero"),
    "flip": flip(),
    "rotate": rotate(20.0),
    "cutout": cutout(3),
    "random erasing": random_erasing(0.5),
    "compose": compose(flip(), shift(1), cutout(2)),
}


def pictures(batch=32, height=9, width=7, channels=2, dtype=np.float32):
    values = np.random.default_rng(0).uniform(1, 255, (batch, height, width, channels))
    return values.astype(dtype)


@pytest.mark.parametrize("name", EVERY)
def test_laws(name):
    augmentation, images = EVERY[name], pictures()
    compiled = jax.jit(augmentation)
    first, second = jax.random.split(jax.random.key(0))
    out = compiled(first, images)
    np.testing.assert_array_equal(out, compiled(first, images))
    assert not np.array_equal(out, compiled(second, images))
    # Interpolation is rounded differently when fused; the others move pixels about.
    tolerance = 1e-3 if name == "rotate" else 0
    np.testing.assert_allclose(augmentation(first, images), out, rtol=0, atol=tolerance)
    # Each example has its own draw.
    same = np.broadcast_to(images[:1], images.shape)
    assert len(np.unique(np.asarray(compiled(first, same)), axis=0)) > 1


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("name", EVERY)
def test_shape_and_dtype_are_kept(name, dtype):
    images = pictures(dtype=dtype)
    out = jax.eval_shape(EVERY[name], jax.random.key(0), images)
    assert out.shape == images.shape
    assert out.dtype == images.dtype


def windows(images, padding, mode):
    """Every window of every padded image: [rows, columns, batch, height, width, channels]."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    offsets = range(2 * padding + 1)
    return np.array([[padded[:, r : r + height, c : c + width] for c in offsets] for r in offsets])


@pytest.mark.parametrize(
    ("augmentation", "padding", "mode"),
    [
        (shift(2), 2, "constant"),
        (crop(2, "zero"), 2, "constant"),
        (crop(3), 3, "reflect"),
        (shift(0), 0, "constant"),
    ],
)
def test_shift_and_crop_are_windows_of_the_padded_image(augmentation, padding, mode):
    images = pictures(2000, 5, 6, 2)
    out = np.asarray(jax.jit(augmentation)(jax.random.key(1), images))
    same = (windows(images, padding, mode) == out).all((3, 4, 5))
    np.testing.assert_array_equal(same.sum((0, 1)), 1)  # one window each, and only one
    # All offsets come up evenly, rows apart from columns.
    expected = 2000 / (2 * padding + 1) ** 2
    np.testing.assert_allclose(same.sum(2), expected, atol=5 * np.sqrt(expected) if padding else 0)


def test_flip_mirrors_left_to_right():
    images = pictures(2000)
    out = np.asarray(flip(0.3)(jax.random.key(0), images))
    kept = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(kept, ~mirrored)
    assert abs(mirrored.mean() - 0.3) < 5 * np.sqrt(0.21 / 2000)
    np.testing.assert_array_equal(flip(1.0)(jax.random.key(0), images), images[:, :, ::-1])
    np.testing.assert_array_equal(flip(0.0)(jax.random.key(0), images), images)


@pytest.mark.parametrize("shape", [(9, 9), (8, 8), (6, 11)])
def test_rotation_is_scipys(shape):
    degrees = np.array([0.0, 7.0, -33.0, 45.0, 90.0, 180.0, 123.4], np.float32)
    images = pictures(len(degrees), *shape)
    out = rotated(images, degrees)
    for image, angle, turned in zip(images, degrees, out, strict=True):
        expected = scipy.ndimage.rotate(image.astype(np.float64), angle, reshape=False, order=1, mode="grid-constant")
        np.testing.assert_allclose(turned, expected, atol=2e-3)  # of 255, coordinates in float32
    np.testing.assert_array_equal(out[0], images[0])
    rounded = rotated(images.astype(np.uint8), degrees)
    exact = rotated(images.astype(np.uint8).astype(np.float32), degrees)
    np.testing.assert_array_equal(rounded, np.round(exact))
    assert rounded.dtype == np.uint8


def test_rotation_is_scipys_in_float64():
    with jax.enable_x64(True):
        images, degrees = pictures(4, dtype=np.float64), np.array([10.0, -20.0, 60.0, 181.0])
        out = rotated(images, degrees)
        assert out.dtype == np.float64
        for image, angle, turned in zip(images, degrees, out, strict=True):
            expected = scipy.ndimage.rotate(image, angle, reshape=False, order=1, mode="grid-constant")
            np.testing.assert_allclose(turned, expected, atol=1e-9)


def test_angles_are_even_in_their_range():
    # A pixel right of the center tells the angle: its brightness moves up or down.
    ramp = np.broadcast_to(np.arange(11.0, dtype=np.float32)[None, :, None, None], (2000, 11, 3, 1))
    out = np.asarray(jax.jit(rotate(30.0))(jax.random.key(0), ramp))
    sines = out[:, 5, 2, 0] - 5  # one pixel from the center, the row it came from
    angles = np.rad2deg(np.arcsin(np.clip(sines, -1, 1)))
    counts, _ = np.histogram(angles, 6, (-30, 30))
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts, 2000 / 6, atol=5 * np.sqrt(2000 / 6))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_blanks_one_square(size):
    height, width = 5, 6
    images = pictures(3000, height, width, 2)
    out = np.asarray(jax.jit(cutout(size))(jax.random.key(0), images))
    counts = np.zeros((height, width))
    for image, blanked in zip(images, out, strict=True):
        matches = []
        for row in range(height):
            for column in range(width):
                expected = image.copy()
                top, left = row - size // 2, column - size // 2
                expected[max(top, 0) : top + size, max(left, 0) : left + size] = 0
                if np.array_equal(expected, blanked):
                    matches.append((row, column))
        assert len(matches) == 1
        counts[matches[0]] += 1
    expected = 3000 / (height * width)
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))


def sides_of(changed):
    """The sides of the rectangle that the changed pixels fill, which they must."""
    rows, columns = np.nonzero(changed)
    filled = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert filled.all()
    return filled.shape


@pytest.mark.parametrize("fill", ["random", "zero"])
def test_random_erasing_fills_one_rectangle_inside(fill):
    images = pictures(1500, 40, 30, 1)
    out = np.asarray(jax.jit(random_erasing(0.6, (0.05, 0.2), (0.5, 2.0), fill))(jax.random.key(0), images))
    changed = (out != images).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.mean() - 0.6) < 5 * np.sqrt(0.24 / 1500)
    sides = np.array([sides_of(each) for each in changed[erased]])
    shares, ratios = sides.prod(1) / 1200, sides[:, 0] / sides[:, 1]
    assert abs(shares.mean() - 0.125) < 5 * shares.std() / np.sqrt(len(shares)) + 0.002  # even over its range
    # Sides are whole pixels: up to half of one on each, of 5.5 by 11 at the least and 11 by 22 at the most.
    assert 0.043 < shares.min() < 0.06 < 0.19 < shares.max() < 0.2142
    assert 0.4 < ratios.min() < 0.6 < 1.7 < ratios.max() < 2.4
    assert abs(np.log(ratios).mean()) < 0.1  # tall as often as wide
    top = changed[erased].any(2).argmax(1)
    places = top / (40 - sides[:, 0])
    assert abs(places.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(places))
    assert (places.min(), places.max()) == (0, 1)
    noise = out[changed]
    if fill == "zero":
        np.testing.assert_array_equal(noise, 0)
    else:
        assert scipy.stats.kstest(noise[::20, 0], "norm").pvalue > 1e-3


def test_random_erasing_fits_long_images_and_fills_bytes():
    images = np.zeros((300, 4, 60, 3), np.uint8)
    out = np.asarray(random_erasing(1.0, (0.4, 0.4))(jax.random.key(0), images))
    changed = out.any(-1)
    for each in changed:
        height, width = sides_of(each)
        assert height == 4
        assert abs(width - 24) <= 1
    counts, _ = np.histogram(out[changed], 8, (0, 256))
    np.testing.assert_allclose(counts, counts.sum() / 8, atol=6 * np.sqrt(counts.sum() / 8))


def test_compose_applies_in_order_with_keys_of_its_own():
    images, key = pictures(), jax.random.key(5)
    expected = cutout(3)(jax.random.fold_in(key, 1), flip()(jax.random.fold_in(key, 0), images))
    np.testing.assert_array_equal(compose(flip(), cutout(3))(key, images), expected)
    np.testing.assert_array_equal(compose()(key, images), images)
    # Two flips with one key would undo each other.
    assert not np.array_equal(compose(flip(), flip())(key, images), images)


def test_on_changes_one_array_of_the_batch():
    batch = {"input": pictures(), "target": np.arange(32), "other": pictures()}
    key = jax.random.key(0)
    out = on(shift(1))(key, batch)
    np.testing.assert_array_equal(out["input"], shift(1)(key, batch["input"]))
    assert out["target"] is batch["target"]
    np.testing.assert_array_equal(on(shift(1), "other")(key, batch)["other"], out["input"])
    with pytest.raises(ValueError, match=r"no key 'image', only \['input'"):
        on(shift(1), "image")(key, batch)


def test_refusals():
    key, images = jax.random.key(0), pictures()
    for make, message in (
        (lambda: shift(-1), "shift: pixels is -1"),
        (lambda: crop(-1), "crop: padding is -1"),
        (lambda: crop(1, "wrap"), "crop: mode is 'wrap'.*reflect"),
        (lambda: flip(1.5), "flip: probability is 1.5"),
        (lambda: rotate(200.0), "rotate: degrees is 200"),
        (lambda: cutout(0), "cutout: size is 0"),
        (lambda: random_erasing(1.5), "random_erasing: probability is 1.5"),
        (lambda: random_erasing(area=(0.0, 0.4)), r"random_erasing: area is \(0.0, 0.4\)"),
        (lambda: random_erasing(ratio=(2.0, 0.5)), r"random_erasing: ratio is \(2.0, 0.5\)"),
        (lambda: shift(7)(key, images), "shift: pixels is 7.* 9 by 7"),
        (lambda: crop(7)(key, images), "crop: padding is 7.* 9 by 7"),
        (lambda: cutout(8)(key, images), "cutout: size is 8.* 9 by 7"),
        # The shape annotations, which hold in tests only, would otherwise speak first.
        (lambda: augment._as_images(images[0]), r"shape \(9, 7, 2\).*\[batch, height, width, channels\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
