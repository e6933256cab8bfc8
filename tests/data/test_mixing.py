"""Mixed examples against loops over the batch; what a learner makes of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jdl
from jdl.data import augment
from jdl.data.mixing import cutmix, mixup


def images_of(batch=400, height=6, width=5, dtype=np.float32):
    """Every pixel of an image is its number, so that a mixture tells its parts; targets are numbers as well."""
    numbers = np.arange(1, batch + 1)
    images = np.broadcast_to(numbers[:, None, None, None], (batch, height, width, 2)).astype(dtype)
    return {"input": images, "target": numbers.astype(np.int32)}


def test_mixup_averages_pairs():
    batch = images_of()
    compiled = jax.jit(lambda key, alpha: mixup(alpha)(key, batch))  # traced, as a population's
    out = jax.tree.map(np.asarray, compiled(jax.random.key(0), 0.4))
    np.testing.assert_array_equal(out["target"], batch["target"])
    np.testing.assert_array_equal(np.sort(out["other_target"]), batch["target"])  # each is a partner once
    for row in range(400):
        expected = out["mix"][row] * (row + 1) + (1 - out["mix"][row]) * out["other_target"][row]
        np.testing.assert_allclose(out["input"][row], expected, rtol=1e-5)
    assert scipy.stats.kstest(out["mix"], "beta", (0.4, 0.4)).pvalue > 1e-3
    assert (out["other_target"] == batch["target"]).sum() < 8
    assert not np.array_equal(out["other_target"], compiled(jax.random.key(1), 0.4)["other_target"])


def test_mixup_takes_trees_and_keeps_types():
    batch = {"input": {"a": np.ones((4, 3), np.float16), "b": jnp.ones(4, jnp.bfloat16)}, "target": np.ones((4, 2))}
    out = jax.eval_shape(mixup(1.0), jax.random.key(0), batch)
    assert (out["input"]["a"].dtype, out["input"]["b"].dtype) == (np.float16, jnp.bfloat16)
    assert out["other_target"].shape == (4, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_cutmix_pastes_one_box(dtype):
    batch = images_of(200, dtype=dtype)
    out = jax.tree.map(np.asarray, jax.jit(cutmix(1.0))(jax.random.key(0), batch))
    np.testing.assert_array_equal(np.sort(out["other_target"]), batch["target"])
    assert out["input"].dtype == dtype
    shares = []
    for row in range(200):
        own, other = batch["input"][row], batch["input"][int(out["other_target"][row]) - 1]
        if out["other_target"][row] == row + 1:
            continue
        pasted = (out["input"][row] != own).any(-1)
        np.testing.assert_array_equal(out["input"][row], np.where(pasted[..., None], other, own))
        np.testing.assert_allclose(out["mix"][row], 1 - pasted.mean(), atol=1e-6)  # the area, to the pixel
        rows, columns = np.nonzero(pasted)
        if len(rows):
            assert pasted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        shares.append(pasted.mean())
    assert min(shares) < 0.1 < 0.6 < max(shares)


@pytest.mark.medium
def test_cutmix_boxes_are_the_papers():
    """Sides are the image's times the root of the share; all places of the center alike."""
    batch = images_of(3000, 8, 8)
    key = jax.random.key(3)
    out = jax.tree.map(np.asarray, jax.jit(cutmix(1.0))(key, batch))
    for_mix, *_ = jax.random.split(key, 3)
    share = 1 - np.asarray(jax.random.beta(for_mix, 1.0, 1.0, (3000,)))
    counts, sides = np.zeros((8, 8)), np.floor(8 * np.sqrt(share)).astype(int)
    for row in np.flatnonzero(sides == 3):
        pasted = out["input"][row, :, :, 0] != row + 1
        fits = []
        for y in range(8):
            for x in range(8):
                expected = np.zeros((8, 8), bool)
                expected[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
                fits += [(y, x)] if np.array_equal(expected, pasted) else []
        assert len(fits) == 1 or out["other_target"][row] == row + 1
        for fit in fits:
            counts[fit] += 1
    expected = counts.sum() / 64
    assert counts.sum() > 200
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))


@pytest.mark.parametrize("mixing", [mixup(1.0), cutmix(1.0)])
def test_padding_is_nobodys_partner(mixing):
    batch = images_of(50) | {"mask": np.arange(50) < 30}
    out = jax.jit(mixing)(jax.random.key(0), batch)
    assert (np.asarray(out["other_target"])[:30] <= 30).all()


@pytest.mark.medium
def test_a_learner_trains_on_mixtures_and_is_evaluated_on_examples():
    data = jdl.data.digits()
    one = jdl.supervised(
        nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(32), nn.relu, nn.Dense(10)]),
        jdl.losses.mixed(jdl.losses.cross_entropy),
        optax.adam(0.03),
        example=data.train,
        metrics={"accuracy": jdl.metrics.accuracy},
    )
    augmentation = augment.compose(augment.on(augment.cutout(1)), mixup(0.2))
    training = jdl.jit(jdl.accumulate(jdl.scan(jdl.feed(one, 64, augmentation), 10), 2))
    fitted = jdl.fit(training, data.train, steps=200)
    assert jdl.evaluate(training, fitted.state, data.test)["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: mixup(0.0), "mixup: alpha is 0.0, and must be above 0"),
        (lambda key: cutmix(-1.0), "cutmix: alpha is -1.0, and must be above 0"),
        (lambda key: mixup(1.0)(key, {"input": np.ones((2, 3))}), "mixup: the batch has no 'target', only"),
        (lambda key: mixup(1.0)(key, images_of(4, dtype=np.uint8)), "mixup: the input is uint8"),
        (lambda key: cutmix(1.0)(key, {"input": np.ones((2, 3)), "target": np.ones(2)}), r"cutmix: .* shape \(2, 3\)"),
        (lambda key: cutmix(1.0)(key, mixup(1.0)(key, images_of(4))), "cutmix: the batch is mixed already"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
