"""The computed shuffle is a permutation, and its permutations are evenly spread over the keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jdl.data import epoch_indices, shuffled_index

# Keys are fixed, so a test passes or fails for good; the threshold is one in ten thousand.
UNLIKELY = 1e-4


@pytest.mark.parametrize("size", [*range(1, 8), 13, 64, 65, 97, 1437, 4096, 60000, 2**16 + 1])
def test_each_index_comes_up_once(size):
    indices = epoch_indices(jax.random.key(size), 3, size)
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(indices), np.arange(size))


def test_the_largest_sizes_stay_in_range_and_apart():
    size = 2**31 - 1
    positions = jnp.concatenate([jnp.arange(5000), size - 1 - jnp.arange(5000)])
    indices = np.asarray(shuffled_index(jax.random.key(0), 0, positions, size))
    assert indices.min() >= 0
    assert indices.max() < size
    assert len(np.unique(indices)) == 10000
    assert chisquare(np.histogram(indices, 20, (0, size))[0]).pvalue > UNLIKELY


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_is_as_likely(size):
    keys = jax.random.split(jax.random.key(0), 60000)
    drawn = np.asarray(jax.vmap(lambda key: epoch_indices(key, 0, size))(keys))
    codes = drawn @ size ** np.arange(size)
    every = np.array(list(itertools.permutations(range(size)))) @ size ** np.arange(size)
    counts = [np.sum(codes == code) for code in every]
    assert sum(counts) == len(keys)
    assert chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("size", [7, 70, 5000])
def test_first_positions_and_pairs_are_even(size):
    keys = jax.random.split(jax.random.key(size), 40000)
    positions = jnp.array([0, 1, size // 2, size - 1])
    drawn = np.asarray(jax.vmap(lambda key: shuffled_index(key, 5, positions, size))(keys))
    bins = min(size, 20)
    binned = drawn * bins // size
    width = np.bincount(np.arange(size) * bins // size)
    for column in binned.T:
        assert chisquare(np.bincount(column, minlength=bins), len(keys) * width / size).pvalue > UNLIKELY
    # The expected number of ordered pairs of different indices in each pair of bins.
    pairs = np.outer(width, width) - np.diag(width)
    expected = len(keys) * pairs / pairs.sum()
    for i, j in itertools.combinations(range(4), 2):
        counts = np.bincount(binned[:, i] * bins + binned[:, j], minlength=bins**2).reshape(bins, bins)
        assert chisquare(counts[pairs > 0], expected[pairs > 0]).pvalue > UNLIKELY


def test_epochs_of_one_key_are_independent():
    key, size, epochs = jax.random.key(2), 5, 60000
    orders = np.asarray(jax.vmap(lambda epoch: epoch_indices(key, epoch, size))(jnp.arange(epochs)))
    permutations = orders @ (size ** np.arange(size))
    _, counts = np.unique(permutations, return_counts=True)
    assert len(counts) == 120
    assert chisquare(counts).pvalue > UNLIKELY
    for lag in (1, 2, 256):  # where an example stands in one epoch says nothing of where it stands in a later one
        pairs = np.bincount(orders[:-lag, 0] * size + orders[lag:, 0], minlength=size * size)
        assert chisquare(pairs).pvalue > UNLIKELY


def test_successive_indices_do_not_follow_each_other():
    indices = np.asarray(epoch_indices(jax.random.key(1), 0, 60000)).astype(np.float64)
    for lag in (1, 2, 245):  # 245 is a side of the grid
        # A correlation of independent values has standard deviation 1 / sqrt(60000) = 0.004.
        assert abs(np.corrcoef(indices[:-lag], indices[lag:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(60000), indices)[0, 1]) < 0.02


def test_epochs_and_keys_differ():
    shuffles = [np.asarray(epoch_indices(jax.random.key(k), e, 1437)) for k in range(3) for e in range(3)]
    for one, other in itertools.combinations(shuffles, 2):
        # Two random permutations agree at one place on average.
        assert np.sum(one == other) < 10


def test_the_same_under_jit_vmap_and_scan():
    size = 5000
    keys, positions = jax.random.split(jax.random.key(4), 3), jnp.arange(100)
    whole = epoch_indices(keys[1], 2, size)[:100]
    jitted = jax.jit(lambda epoch, position: shuffled_index(keys[1], epoch, position, size))
    np.testing.assert_array_equal([jitted(2, position) for position in range(100)], whole)
    over_positions = jax.vmap(lambda position: shuffled_index(keys[1], 2, position, size))(positions)
    np.testing.assert_array_equal(over_positions, whole)
    over_keys = jax.vmap(lambda key, epoch: shuffled_index(key, epoch, positions, size))(keys, jnp.arange(1, 4))
    np.testing.assert_array_equal(over_keys[1], whole)

    def step(position, _):
        return position + 1, shuffled_index(keys[1], 2, position, size)

    np.testing.assert_array_equal(jax.lax.scan(step, 0, length=100)[1], whole)


@pytest.mark.parametrize("size", [3, 5, 1437])
def test_positions_outside_wrap_and_do_not_hang(size):
    whole = np.asarray(epoch_indices(jax.random.key(0), 0, size))
    positions = np.array([size, size + 1, 2 * size - 1, -1, -size])
    np.testing.assert_array_equal(shuffled_index(jax.random.key(0), 0, positions, size), whole[positions % size])


@pytest.mark.parametrize("size", [0, -4, 2**31])
def test_refuses_sizes(size):
    with pytest.raises(ValueError, match=f"size is {size}"):
        shuffled_index(jax.random.key(0), 0, 0, size)
    with pytest.raises(ValueError, match=f"size is {size}"):
        epoch_indices(jax.random.key(0), 0, size)
