"""Pipelines against plain slices of the data, and against themselves interrupted, shared out and in other processes."""

import gc
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl
from jdl import runs
from jdl.data import records
from jdl.pipeline import pipeline

grain = pytest.importorskip("grain", reason="pipelines need the extra jdl[grain]")


class Numbers:
    """Examples that are their number, and count how often they were read."""

    def __init__(self, size):
        self.size = size
        self.reads = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads += 1
        return {"input": np.full(3, index, np.float32), "target": np.int32(index)}

    def name(self, index):
        return f"number {index}"


def noisy(example, generator):
    return {**example, "noise": generator.normal(size=2)}


def with_process(example):
    """What a worker knows of its process, in the batch."""
    from jax._src import xla_bridge

    accelerator = jax.config.jax_platforms != "cpu" or os.environ.get("JAX_PLATFORMS") != "cpu"
    facts = [os.getpid(), xla_bridge.backends_are_initialized(), accelerator]
    return {**example, "process": np.array(facts, np.int32)}


def take(source, count):
    return [source.next() for _ in range(count)]


def targets(batches):
    return [batch["target"].tolist() for batch in batches]


def visited(batches):
    return [target for batch in batches for target in batch["target"].tolist()]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def ended(*sources):
    for source in sources:
        source.close()
    assert not multiprocessing.active_children()


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


# --- what goes wrong


def picky(example):
    if example["target"] == 13:
        raise KeyError("thirteen")
    return example


def ragged(example):
    return {**example, "input": np.zeros(int(example["target"]) // 10)}


class Damaged(Numbers):
    def __getitem__(self, index):
        if index == 13:
            raise OSError("unreadable")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("data", "map", "message"),
    [
        (
            Numbers(23),
            picky,
            r"example 13 \(number 13\) could not be mapped: KeyError: 'thirteen' \(in picky, test_pip",
        ),
        (Damaged(23), None, r"example 13 \(number 13\) could not be read: OSError: unreadable"),
        (
            Numbers(23),
            ragged,
            r"example 10 \(number 10\) is .*float64\[1\].* and example 8 \(number 8\) is .*float64\[0\].* alike in map",
        ),
    ],
)
def test_an_example_that_fails_is_named_and_keeps_its_place(data, map, message):
    source = pipeline(data, 4, shuffle=False, map=map)
    with pytest.raises(ValueError, match=message):
        take(source, 20)
    place = source.save()["position"]
    with pytest.raises(ValueError, match=message):  # again: none was passed over
        source.next()
    assert source.save()["position"] == place
    ended(source)


def test_errors_in_workers_are_named_also_from_modules_that_workers_cannot_import(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "class Odd(Exception):\n"
        "    def __init__(self, one, two):\n"
        "        super().__init__(one)\n"
        "def fails(example):\n"
        "    if example['target'] == 13:\n"
        "        raise Odd('one', 'two')\n"
        "    return example\n"
    )
    spec = importlib.util.spec_from_file_location("elsewhere_1234", tmp_path / "elsewhere.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    source = pipeline(Numbers(23), 4, shuffle=False, map=module.fails, workers=1)
    assert targets(take(source, 3)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match=r"example 13 .*could not be mapped: Odd: one \(in fails, elsewhere.py line 6"):
        source.next()
    ended(source)


def test_what_cannot_be_sent_to_workers_is_named():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"pipeline\(workers=2\): map cannot be sent .*lock.*or use workers=0"):
        pipeline(Numbers(8), 2, map=lambda example: (lock, example)[1], workers=2)


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (9, {}, r"batch_size=9\): the data has 8 examples; use 1 to 8"),
        (0, {}, r"batch_size=0\)"),
        (3, {"shard": (0, 2)}, r"batch_size=3\) does not divide over 2 processes"),
        (2, {"shard": (2, 2)}, r"shard=\(2, 2\)\): give \(index, count\)"),
        (6, {"shard": (0, 2), "drop_remainder": False}, r"last batch of an epoch has 2 of 8 examples, and 2 processes"),
        (2, {"seed": -1}, r"seed=-1\): it is at least 0"),
        (2, {"workers": -1}, r"workers=-1\): it is at least 0"),
        (2, {"threads": 0}, r"threads=0\): it is at least 1"),
        (2, {"prefetch": -1}, r"prefetch=-1\): it is at least 0"),
        (2, {"map": lambda example: {"input": "words"}}, r"the first example\['input'\] has dtype <U5"),
    ],
)
def test_arguments_that_are_refused(batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(Numbers(8), batch_size, **options)


def test_arrays_in_memory_are_for_batches():
    with pytest.raises(ValueError, match=r"for arrays in memory use Batches"):
        pipeline({"input": np.zeros((8, 3))}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_process(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time, multiprocessing\n"
        "from test_pipeline import Numbers, pipeline\n"
        "if __name__ == '__main__':\n"
        "    source = pipeline(Numbers(23), 4, workers=2)\n"
        "    source.next()\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(100)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(jdl.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their process"
        time.sleep(0.01)


def _lives(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_that_dies_is_an_error():
    source = pipeline(Numbers(8), 2, map=deadly, workers=1)
    with pytest.raises(RuntimeError, match=r"worker process of the pipeline ended with exit code -9: .*fewer workers"):
        take(source, 8)
    ended(source)


def deadly(example):
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return example
