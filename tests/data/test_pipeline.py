"""Pipelines against plain slices of the data, and against themselves interrupted, shared out and in other processes."""

import gc
import os
import threading
import time

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from examples import Numbers, ended, take, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import jdl
from jdl.data import records
from jdl.data.pipeline import pipeline
from jdl.training import runs

grain = pytest.importorskip("grain", reason="pipelines need the extra jdl[grain]")


def noisy(example, generator):
    return {**example, "noise": generator.normal(size=2)}


def with_process(example):
    """What a worker knows of its process, in the batch."""
    from jax._src import xla_bridge

    accelerator = jax.config.jax_platforms != "cpu" or os.environ.get("JAX_PLATFORMS") != "cpu"
    facts = [os.getpid(), xla_bridge.backends_are_initialized(), accelerator]
    return {**example, "process": np.array(facts, np.int32)}


def visited(batches):
    return [target for batch in batches for target in batch["target"].tolist()]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- which batches


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 20), data=st.data(), drop=st.booleans())
def test_in_order_batches_are_slices_of_each_epoch(size, data, drop):
    batch_size = data.draw(st.integers(1, size))
    source = pipeline(Numbers(size), batch_size, shuffle=False, drop_remainder=drop, prefetch=0)
    epoch = [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
    if drop:
        epoch = [batch for batch in epoch if len(batch) == batch_size]
    assert targets(take(source, 2 * len(epoch) + 1)) == epoch * 2 + epoch[:1]
    ended(source)


def test_each_epoch_is_a_shuffle_of_its_own():
    source = pipeline(Numbers(23), 4, seed=3)
    epochs = [visited(take(source, 5)) for _ in range(6)]
    ended(source)
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    others = [pipeline(Numbers(23), 4, seed=seed) for seed in (3, 4)]
    assert [visited(take(other, 5)) == epochs[0] for other in others] == [True, False]
    ended(*others)
    whole = pipeline(Numbers(23), 4, drop_remainder=False)
    assert sorted(visited(take(whole, 6))) == list(range(23))
    ended(whole)


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 4), part=st.integers(1, 3), rest=st.integers(0, 7), shuffle=st.booleans())
def test_shards_put_together_are_the_batch_of_one_process(count, part, rest, shuffle):
    batch_size = count * part
    data = Numbers(2 * batch_size + rest)
    whole = pipeline(data, batch_size, shuffle=shuffle, random_map=noisy, prefetch=0)
    shards = [
        pipeline(data, batch_size, shuffle=shuffle, random_map=noisy, prefetch=0, shard=(index, count))
        for index in range(count)
    ]
    for _ in range(5):
        parts = [shard.next() for shard in shards]
        same([whole.next()], [jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)])
    ended(whole, *shards)


def test_random_maps_differ_between_visits_and_come_after_map():
    source = pipeline(Numbers(4), 4, map=lambda e: {**e, "target": e["target"] + 10}, random_map=noisy)
    batches = take(source, 3)
    ended(source)
    assert {tuple(sorted(batch)) for batch in targets(batches)} == {(10, 11, 12, 13)}
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len({*noise.ravel().tolist()}) == noise.size
    other = pipeline(Numbers(4), 4, seed=1, random_map=noisy)
    assert not np.isin(np.concatenate([batch["noise"] for batch in take(other, 3)]), noise).any()
    ended(other)


# --- resuming


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_restored_pipeline_goes_on_with_the_same_bits(prefetch):
    whole = pipeline(Numbers(23), 4, random_map=noisy)
    expected = take(whole, 14)
    for consumed in (0, 3, 7):
        first, second = (pipeline(Numbers(23), 4, random_map=noisy, prefetch=prefetch, threads=3) for _ in range(2))
        take(first, consumed)
        saved = first.save()
        assert saved["position"] == consumed  # though more are ready
        take(second, 2)
        second.restore(saved)
        same(take(second, 14 - consumed), expected[consumed:])
        first.close()
        same(take(first, 14 - consumed), expected[consumed:])
        ended(first, second)
    ended(whole)


@pytest.mark.medium
def test_workers_give_the_same_bits_and_leave_accelerators_alone():
    whole = pipeline(Numbers(23), 4, random_map=noisy)
    expected = take(whole, 12)
    source = pipeline(Numbers(23), 4, map=with_process, random_map=noisy, workers=2)
    source.restore({**whole.save(), "position": 3})
    batches = take(source, 9)
    processes = np.concatenate([batch.pop("process") for batch in batches])
    same(batches, expected[3:])
    assert source.save()["position"] == 12
    assert len(set(processes[:, 0]) - {os.getpid()}) == 2
    assert not processes[:, 1:].any()
    ended(whole, source)


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        images = images.astype(np.float32) / 255
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1)))


@pytest.mark.medium
def test_a_fit_that_was_interrupted_ends_in_the_same_bits(tmp_path):
    random = np.random.default_rng(0)
    examples = [{"input": random.integers(0, 256, (4, 4, 3), np.uint8), "target": np.int32(i % 2)} for i in range(22)]
    records.write_array_records(tmp_path / "records", examples)
    data = records.array_records(tmp_path / "records")
    make = lambda: pipeline(data, 4, seed=1, random_map=flipped)  # noqa: E731
    example = make().example
    assert example["input"].shape == (1, 4, 4, 3)
    learner = jdl.jit(jdl.supervised(Classifier(), jdl.losses.cross_entropy, optax.adam(0.01), example=example))
    options = {"steps": 24, "log_every": 4, "checkpoint_every": 5}
    whole = jdl.fit(learner, make(), run=tmp_path / "whole", **options)

    class Killed(Exception):
        pass

    def kill(row, state):
        if row["step"] >= 12:
            raise Killed

    with pytest.raises(Killed):
        jdl.fit(learner, make(), run=tmp_path / "killed", callbacks=[kill], **options)
    resumed = jdl.fit(learner, make(), run=tmp_path / "killed", resume=True, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    assert runs.differences(*(jdl.Run(tmp_path / run).rows for run in ("whole", "killed"))) == []
    with pytest.raises(ValueError, match=r"saved with batch_size 4, and this pipeline has 2; .*resume with"):
        jdl.fit(learner, pipeline(data, 2, seed=1), run=tmp_path / "killed", resume=True, **options)


def flipped(example, generator):
    return {**example, "input": example["input"][:, :: generator.choice([-1, 1])]}


# --- evaluation


class Pairs(Numbers):
    def __getitem__(self, index):
        return {"input": np.float32([np.sin(index), np.cos(index)]), "target": np.int32(index % 3)}


@pytest.mark.parametrize("size", [20, 22])  # of the second, the last batch is filled up and masked
def test_a_pipeline_is_evaluated_as_the_arrays_are(size):
    data, train = Pairs(size), Pairs(12)
    arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *(data[i] for i in range(size)))
    make = lambda: pipeline(data, 5, shuffle=False, drop_remainder=False)  # noqa: E731
    learner = jdl.jit(jdl.supervised(nn.Dense(3), jdl.losses.cross_entropy, optax.sgd(0.1), example=make().example))
    rows = [
        jdl.fit(
            learner, pipeline(train, 4), steps=6, validation=validation, evaluate_every=2, evaluation_batch_size=5
        ).rows
        for validation in (make(), arrays)
    ]
    assert runs.differences(*rows) == []
    assert len([row for row in rows[0] if "validation/loss" in row]) == 3
    source, state = make(), learner.init(jax.random.key(0))
    place = source.next()["target"].tolist()
    next(source.epoch())  # and no more of it
    assert place + source.next()["target"].tolist() == [i % 3 for i in range(10)]  # the place of `next` stays
    read = jdl.evaluate(learner, state, source)
    jax.tree.map(np.testing.assert_array_equal, read, jdl.evaluate(learner, state, arrays, batch_size=5))


def test_a_mask_of_the_data_counts_in_evaluation():
    data = Pairs(22)
    masked = lambda example: {**example, "mask": np.float32(example["target"] > 0)}  # noqa: E731
    source = pipeline(data, 5, shuffle=False, drop_remainder=False, map=masked)
    arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *(masked(data[i]) for i in range(22)))
    learner = jdl.supervised(nn.Dense(3), jdl.losses.cross_entropy, optax.sgd(0.1), example=source.example)
    state = learner.init(jax.random.key(0))
    read, given = jdl.evaluate(learner, state, source), jdl.evaluate(learner, state, arrays, batch_size=5)
    np.testing.assert_allclose(read["loss"], given["loss"], rtol=1e-6)


def test_a_last_batch_that_devices_do_not_divide_is_filled_up_before_it_is_placed():
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data"))
    source = pipeline(Pairs(21), 4, shuffle=False, drop_remainder=False, sharding=sharding)
    batches = list(source.epoch())
    assert [batch["mask"].tolist() for batch in batches] == [[1.0] * 4] * 5 + [[1.0, 0.0, 0.0, 0.0]]
    assert all(leaf.sharding == sharding for batch in batches for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"drop_remainder": False}, "shuffle=False"),
        ({"shuffle": False}, "drop_remainder=False"),
        ({"shuffle": False, "drop_remainder": False, "random_map": noisy}, "no random_map"),
    ],
)
def test_a_pipeline_that_evaluation_cannot_take(options, what, tmp_path):
    data = Pairs(12)
    learner = jdl.supervised(nn.Dense(3), jdl.losses.cross_entropy, optax.sgd(0.1), example=pipeline(data, 5).example)
    with pytest.raises(ValueError, match=f"each example once, as it is: give the pipeline {what}"):
        jdl.fit(learner, pipeline(data, 4), steps=1, validation=pipeline(data, 5, **options), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- ahead of the step


def test_batches_are_made_ahead_and_on_the_device():
    data = Numbers(50)
    source = pipeline(data, 2, prefetch=3, threads=1)
    assert isinstance(source, jdl.Source)
    assert data.reads == 1  # the one that was checked
    batch = source.next()
    assert all(isinstance(leaf, jax.Array) for leaf in batch.values())
    deadline = time.monotonic() + 60
    while data.reads < 1 + 2 * 4:
        assert time.monotonic() < deadline, "nothing was read ahead"
        time.sleep(0.001)
    assert source.save()["position"] == 1
    ended(source)


def test_a_closed_or_forgotten_pipeline_leaves_no_thread():
    before = threading.active_count()
    closed, forgotten = pipeline(Numbers(50), 2), pipeline(Numbers(50), 2)
    take(closed, 2)
    take(forgotten, 2)
    assert threading.active_count() > before
    ended(closed)
    closed.close()
    del forgotten
    gc.collect()
    deadline = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.001)


def test_waited_counts_what_next_was_blocked_for():
    def slow(example):
        time.sleep(0.02)
        return example

    source = pipeline(Numbers(8), 2, map=slow, prefetch=0, threads=1)
    assert source.waited == 0
    source.next()
    assert source.waited >= 2 * 0.02
    ended(source)


def test_batches_go_where_the_sharding_says():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    over_data = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    source, plain = (pipeline(Numbers(50), 16, sharding=sharding) for sharding in (over_data, None))
    batch = source.next()
    assert batch["input"].sharding == over_data
    assert batch["input"].addressable_shards[0].data.shape == (16 // len(jax.devices()), 3)
    same([batch], [plain.next()])
    ended(source, plain)
