"""Buckets, padding and packing against plain Python, and attention inside a pack against attention alone."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
from jdl.data.lengths import buckets, pack, pad

properties = settings(deadline=None)  # the first of a shape compiles
sequences_of = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=40)


# --- buckets


@pytest.mark.medium
@settings(properties, max_examples=25)
@given(
    st.sampled_from([1, 7, 50]).flatmap(lambda n: st.lists(st.integers(0, 16), min_size=n, max_size=n)),
    st.sampled_from([{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 64}, {"tokens_per_batch": 32}]),
    st.integers(0, 2),
)
def test_each_example_once_in_the_shortest_bucket(lengths, size, epoch):
    boundaries = [4, 5, 16]
    batches = buckets(lengths, boundaries, key=3, epoch=epoch, **size)
    assert sorted(index for batch in batches for index in batch.indices[batch.mask].tolist()) == list(
        range(len(lengths))
    )
    for batch in batches:
        assert batch.indices.dtype == np.int32
        assert len(batch.indices) == len(batch.mask) == size.get("batch_size", 32 // batch.length)
        assert batch.mask[0]
        for index in batch.indices:  # those that only fill the batch fit too
            assert batch.length == min(end for end in boundaries if end >= lengths[index])
    # No more than one batch of a bucket is not full.
    for end in boundaries:
        assert sum(not batch.mask.all() for batch in batches if batch.length == end) <= 1


def test_buckets_are_drawn_anew_each_epoch_and_again_the_same():
    lengths = np.random.default_rng(0).integers(1, 33, 500)

    def drawn(key, epoch):
        return [
            (batch.length, *batch.indices.tolist())
            for batch in buckets(lengths, [8, 16, 32], batch_size=16, key=key, epoch=epoch)
        ]

    first = drawn(0, 0)
    assert first == drawn(0, 0) == drawn(jax.random.key(0), 0)
    for other in (drawn(0, 1), drawn(1, 0)):
        assert {(batch[0], len(batch)) for batch in other} == {(batch[0], len(batch)) for batch in first}
        assert not set(other) & set(first)  # other companions
        assert [batch[0] for batch in other] != [batch[0] for batch in first]  # another order of the shapes
    # Batches of like lengths do not follow each other more often than by chance: 32 batches of three kinds.
    kinds = [batch[0] for epoch in range(30) for batch in drawn(0, epoch)]
    repeats = np.mean([one == other for one, other in itertools.pairwise(kinds)])
    chance = sum((kinds.count(kind) / len(kinds)) ** 2 for kind in set(kinds))
    assert abs(repeats - chance) < 4 * math.sqrt(chance * (1 - chance) / len(kinds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [3, 17, 20]}, r"lengths\[1\] is 17, outside \[0, 16\].*the 2 such"),
        ({"lengths": [3, -1]}, r"lengths\[1\] is -1"),
        ({"lengths": []}, r"lengths has shape \(0,\)"),
        ({"lengths": [1.5]}, r"dtype float64: give an integer for each"),
        ({"boundaries": [4, 4]}, r"boundaries is \[4, 4\]"),
        ({"boundaries": []}, r"boundaries is \[\]"),
        ({"boundaries": [0, 4]}, r"boundaries is \[0, 4\]"),
        ({"batch_size": None}, "batch_size is None and tokens_per_batch is None: give one"),
        ({"tokens_per_batch": 64}, "batch_size is 2 and tokens_per_batch is 64: give one"),
        ({"batch_size": None, "tokens_per_batch": 15}, "tokens_per_batch is 15, less than one example of 16"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_buckets_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        buckets(**{"lengths": [3, 9], "boundaries": [4, 16], "batch_size": 2, **arguments})


# --- pad


@properties
@given(sequences_of, st.integers(-1, 3))
def test_pad_is_the_plain_loop(sequences, padding_id):
    ids, mask = pad(sequences, 12, padding_id=padding_id)
    assert ids.dtype == np.int32
    assert ids.shape == mask.shape == (len(sequences), 12)
    assert ids.tolist() == [row + [padding_id] * (12 - len(row)) for row in sequences]
    assert mask.tolist() == [[True] * len(row) + [False] * (12 - len(row)) for row in sequences]
    cut, mask = pad(sequences, 3, truncate=True)
    assert [row[kept].tolist() for row, kept in zip(cut, mask, strict=True)] == [row[:3] for row in sequences]


def test_pad_takes_an_empty_sequence():
    ids, mask = pad([[], np.array([1, 2])], 3)
    assert ids.tolist() == [[0, 0, 0], [1, 2, 0]]
    assert mask.sum(1).tolist() == [0, 2]


# --- pack


def first_fit_decreasing(sizes, length):
    rows = []
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        for row in rows:
            if sum(sizes[other] for other in row) + sizes[number] <= length:
                row.append(number)
                break
        else:
            rows.append([number])
    return rows


@properties
@given(sequences_of, st.integers(12, 30))
def test_pack_loses_no_token(sequences, length):
    packed = pack(sequences, length, padding_id=-1)
    assert packed.members == first_fit_decreasing([len(sequence) for sequence in sequences], length)
    for row, members in enumerate(packed.members):
        expected_ids, expected_segments, expected_positions = [], [], []
        for segment, number in enumerate(members, start=1):
            expected_ids += sequences[number]
            expected_segments += [segment] * len(sequences[number])
            expected_positions += range(len(sequences[number]))
        spare = length - len(expected_ids)
        assert packed.ids[row].tolist() == expected_ids + [-1] * spare
        assert packed.segments[row].tolist() == expected_segments + [0] * spare
        assert packed.positions[row].tolist() == expected_positions + [0] * spare
    if sequences:
        np.testing.assert_allclose(packed.efficiency, sum(map(len, sequences)) / (len(packed.members) * length))


def test_pack_of_a_thousand_is_near_the_bound():
    random = np.random.default_rng(0)
    sequences = [np.full(size, size) for size in random.integers(1, 100, 1000)]
    packed = pack(sequences, 128)
    fewest = -(-sum(map(len, sequences)) // 128)
    assert fewest <= len(packed.members) <= 11 / 9 * fewest + 1
    assert packed.efficiency > 0.95
    assert sorted(number for row in packed.members for number in row) == list(range(1000))


def test_attention_inside_segments_is_attention_alone():
    random = np.random.default_rng(1)
    sequences = [random.integers(1, 50, size).tolist() for size in (5, 3, 7, 2, 4, 6)]
    packed = pack(sequences, 10)
    tokens, places = random.normal(size=(50, 2, 8)), random.normal(size=(10, 2, 8))  # of 2 heads

    def attend(ids, positions, segments):
        x = jnp.asarray(tokens[ids] + places[positions])
        mask = (segments[:, None, :, None] == segments[:, None, None, :]) & (segments[:, None, None, :] > 0)
        return jax.nn.dot_product_attention(x, x, x, mask=jnp.asarray(mask), is_causal=True)

    together = attend(packed.ids, packed.positions, packed.segments)
    ids, mask = pad(sequences, 10)
    alone = attend(ids, np.arange(10), mask.astype(int))
    for row, members in enumerate(packed.members):
        for segment, number in enumerate(members, start=1):
            inside = together[row][packed.segments[row] == segment]
            np.testing.assert_allclose(inside, alone[number][mask[number]], rtol=1e-5)


@pytest.mark.parametrize("function", [pad, pack])
@pytest.mark.parametrize(
    ("sequences", "length", "message"),
    [
        ([[1], [1, 2, 3], [1]], 2, r"sequences\[1\] has 3 tokens, more than length 2.*truncate=True"),
        ([[1]], 0, "length is 0"),
        ([[1], [0.5]], 2, r"sequences\[1\] has shape \(1,\) and dtype float64"),
        ([[[1, 2]]], 4, r"sequences\[0\] has shape \(1, 2\)"),
    ],
)
def test_pad_and_pack_refuse(function, sequences, length, message):
    with pytest.raises(ValueError, match=message):
        function(sequences, length)


def test_pack_cuts_off_only_when_asked_and_refuses_an_empty_sequence():
    packed = pack([[1, 2, 3, 4], [5]], 3, truncate=True)
    assert packed.ids.tolist() == [[1, 2, 3], [5, 0, 0]]
    with pytest.raises(ValueError, match=r"sequences\[1\] is empty"):
        pack([[1], [], [2]], 3)


# --- a source of buckets


class LastState(nn.Module):
    """A recurrent network's last state, classified."""

    @nn.compact
    def __call__(self, inputs):
        _, (last,) = jdl.nn.Recurrent(4, "gru")(jax.nn.one_hot(inputs["ids"], 10), inputs["mask"].sum(1))
        return nn.Dense(2)(last)


@pytest.mark.medium
def test_a_fit_on_buckets_compiles_once_a_length_and_resumes_to_the_bit(tmp_path):
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 10, length) for length in [3, 9, 4, 16, 2, 2, 12, 7, 1, 8, 5]]
    targets = np.array([sequence[0] > 4 for sequence in sequences], np.int32)

    def make(indices, length):
        padded = pad([sequences[i] for i in indices], length)
        return {"input": padded._asdict(), "target": targets[indices]}

    ours = jdl.Bucketed(lambda i, n: {"mask": np.zeros(len(i))}, [1, 1, 1], [1], batch_size=2)
    assert not ours.next()["mask"].any()  # what is masked stays so
    source = lambda: jdl.Bucketed(make, [*map(len, sequences)], [4, 8, 16], batch_size=2, key=5)  # noqa: E731
    first = source()
    epoch = [first.next() for _ in range(7)]
    assert sorted({batch["input"]["ids"].shape for batch in epoch}) == [(2, 4), (2, 8), (2, 16)]
    seen = np.concatenate([batch["input"]["mask"].sum(1)[batch["mask"] > 0] for batch in epoch])
    assert sorted(seen) == sorted(map(len, sequences))
    learner = jdl.jit(
        jdl.supervised(LastState(), jdl.losses.cross_entropy, optax.adam(0.01), example=epoch[0], any_length=True)
    )
    whole = jdl.fit(learner, source(), steps=15)
    assert len(learner.step.signatures) == 3
    jdl.fit(learner, source(), steps=8, run=tmp_path / "parts")
    parts = jdl.fit(learner, source(), steps=15, run=tmp_path / "parts", resume=True)
    jax.tree.map(np.testing.assert_array_equal, parts.state.params, whole.state.params)
    wrong = {**epoch[0], "input": {**epoch[0]["input"], "mask": np.ones((2, 5), bool)}}
    with pytest.raises(ValueError, match=r"one length, these have .*\['mask'\]\"?: 5"):
        learner.step(learner.init(jax.random.key(0)), wrong)
