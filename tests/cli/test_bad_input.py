"""Bad input stops early, with one message that names the input and the remedy."""

import builtins
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import Linear

import jdl
from jdl.training import loggers, runs


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


def data(size=12, labels=3):
    random = np.random.default_rng(0)
    return {
        "input": random.normal(size=(size, 4)).astype(np.float32),
        "target": (np.arange(size) % labels).astype(np.int32),
    }


def learner(**changes):
    options = {"example": data(), **changes}
    return jdl.supervised(Classifier(), jdl.losses.cross_entropy, optax.sgd(0.1), **options)


def fit(given, **options):
    return jdl.fit(jdl.jit(jdl.feed(learner(), 4)), given, steps=4, **options)


def test_an_input_of_another_shape():
    wrong = data() | {"input": np.zeros((12, 5), np.float32)}
    with pytest.raises(
        ValueError, match=r"batch\['input'\] has shape \('batch', 5\), the learner was made for \('batch', 4\); reshape"
    ):
        fit(wrong)


def test_data_for_evaluation_that_is_none():
    state = learner().init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"data is a Batches: evaluate takes a dict of arrays, or a jdl.pipeline"):
        jdl.evaluate(learner(), state, jdl.Batches(data(), 4))
    with pytest.raises(ValueError, match="data is empty"):
        jdl.evaluate(learner(), state, {})
    several = jdl.seeds(learner(), 3, each=True)
    with pytest.raises(
        ValueError, match=r"data\['target'\] has shape \(12,\), and .* all have runs, then examples first"
    ):
        jdl.evaluate(several, state, data(), batch_size=5)


def test_an_input_of_another_type():
    wrong = data() | {"input": np.zeros((12, 4), np.int32)}
    with pytest.raises(
        ValueError, match=r"batch\['input'\] has type int32, .*float32; convert it with .astype\('float32'\)"
    ):
        fit(wrong)


def test_a_missing_part_of_the_batch():
    with pytest.raises(ValueError, match=r"batch\['target'\] is missing \(there are \['input'\]\)"):
        fit({"input": data()["input"]})


def test_outputs_that_do_not_fit_the_target():
    one = jdl.supervised(
        Classifier(), lambda outputs, batch: (outputs - batch["target"]) ** 2, optax.sgd(0.1),
        example={"input": np.zeros((1, 4), np.float32), "target": np.zeros((1, 3), np.float32)},
    )  # fmt: skip
    state = one.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"the loss has shape \(5, 3\) for 5 examples .*one number per example, shape \(5,\)"
    ):
        one.step(state, {"input": np.zeros((5, 4), np.float32), "target": np.zeros((5, 3), np.float32)})
    with pytest.raises(ValueError, match=r"predictions have shape \(5, 1\) and the target \(5,\)"):
        jdl.losses.squared_error(jnp.zeros((5, 1)), {"target": jnp.zeros(5)})


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range(label):
    wrong = data()
    wrong["target"][5] = label
    with pytest.raises(
        ValueError, match=r"target has labels from .* and the model has 3 outputs \(labels 0 to 2\); relabel"
    ):
        fit(wrong)
    with pytest.raises(ValueError, match="target has labels"):
        fit(data(), validation=wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite(value):
    wrong = data()
    wrong["input"][7, 2] = value
    for use in (lambda: fit(wrong), lambda: jdl.Batches(wrong, 4), lambda: fit(data(), validation=wrong)):
        with pytest.raises(ValueError, match=r"input"):
            use()


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match=r"batch_size=64\) is larger than the data \(12 examples\); use at most 12"):
        jdl.fit(jdl.jit(jdl.feed(learner(), 64)), data(), steps=4)
    with pytest.raises(ValueError, match=r"batch_size=64\): the data has 12 examples; use 1 to 12"):
        jdl.Batches(data(), 64)


def test_an_empty_split():
    with pytest.raises(ValueError, match=r"test"):
        jdl.data.split(data(), (0.99, 0.0, 0.01), seed=0)


@pytest.mark.parametrize("seeds", [0, -2, []])
def test_fewer_than_one_seed(seeds):
    with pytest.raises(ValueError, match=r"at least 1 run"):
        jdl.seeds(learner(), seeds)


@pytest.mark.parametrize("wrong", [0, -1])
def test_transforms_of_less_than_one(wrong):
    for transform in (jdl.scan, jdl.accumulate, jdl.feed):
        with pytest.raises(ValueError, match="at least 1"):
            transform(learner(), wrong)


def test_batches_that_do_not_divide():
    state = learner().init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"scan\(learner, 5\) splits a batch's axis 0, of examples, in 5, and this one has shape \(12"
    ):
        jdl.scan(learner(), 5).step(state, data())
    with pytest.raises(ValueError, match=r"accumulate\(learner, 5\) splits"):
        jdl.accumulate(learner(), 5).step(state, data())
    with pytest.raises(ValueError, match=r"pmap: a batch of shape \(12, 4\) does not divide over 8 devices"):
        jdl.pmap(learner()).step(state, data())
    with pytest.raises(ValueError, match=r"shard: a batch of shape \(12, 4\) does not divide over 8 devices"):
        jdl.shard(learner()).step(state, data())
    with pytest.raises(ValueError, match=r"seeds\(each=True\) takes batches with a leading axis of 3 runs"):
        jdl.seeds(learner(), 3, each=True).step(jdl.seeds(learner(), 3).init(jax.random.key(0)), data())


def test_transforms_in_an_order_that_cannot_be():
    with pytest.raises(ValueError, match=r"feed goes inside.*seeds\(feed"):
        jdl.feed(jdl.seeds(learner(), 2), 4)
    with pytest.raises(ValueError, match=r"pmap goes inside"):
        jdl.pmap(jdl.seeds(learner(), 2))


@pytest.mark.slow
def test_devices_that_are_taken_are_said_to_be():
    one = jdl.seeds(jdl.pmap(jdl.feed(learner(), 4)), 4)
    with pytest.warns(UserWarning, match="pmap has one device here, because seeds around it has taken them; give"):
        one.step(one.init(jax.random.key(0)), data())


def test_a_population_of_nothing_or_of_uneven_settings():
    for settings in ({"rate": np.zeros(0)}, {"rate": np.zeros(2), "decay": np.zeros(3)}):
        with pytest.raises(ValueError, match="population"):
            jdl.population(lambda setting: learner(), settings)


def test_options_of_supervised():
    with pytest.raises(ValueError, match=r"average_decay=1\.5 is not between 0 and 1"):
        learner(average_decay=1.5)
    with pytest.raises(ValueError, match=r"clip_norm=0\.0 is not positive"):
        learner(clip_norm=0.0)
    with pytest.raises(ValueError, match='example has no "input"'):
        learner(example={"x": np.zeros((1, 4))})
    with pytest.raises(
        ValueError, match=r"the pattern 'kernle' matches no parameter; there are Dense_0/bias, Dense_0/kernel"
    ):
        jdl.by_path("kernle")(learner().init(jax.random.key(0)).params)


def test_a_loss_that_returns_no_weight():
    with pytest.raises(TypeError, match=r"returns \(total, weight\)"):
        jdl.gradients(lambda params, batch, key: params.sum(), jnp.ones(2), None, jax.random.key(0))
    with pytest.raises(TypeError, match=r"the total of a loss is a floating scalar, this one has shape \(2,\)"):
        jdl.gradients(lambda params, batch, key: (params, 1.0), jnp.ones(2), None, jax.random.key(0))


def test_a_run_directory_that_exists(tmp_path):
    fit(data(), run=tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"run exists; continue it .*resume=True.* or choose another"):
        fit(data(), run=tmp_path / "run")


def test_a_checkpoint_from_another_config(tmp_path):
    fit(data(), run=tmp_path / "run")
    other = jdl.supervised(
        Linear(), jdl.losses.squared_error, optax.adam(0.1), example=data() | {"target": np.zeros(12, np.float32)}
    )
    with pytest.raises(ValueError, match="made with another config"):
        jdl.fit(
            jdl.jit(jdl.feed(other, 4)), data() | {"target": np.zeros(12, np.float32)}, steps=8,
            run=tmp_path / "run", resume=True,
        )  # fmt: skip


def test_a_full_disk(tmp_path, monkeypatch):
    fit(data(), run=tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jdl.training.checkpoint.checkpoints._save_arrays", full)
    with pytest.raises(OSError, match="free space there"):
        jdl.fit(jdl.jit(jdl.feed(learner(), 4)), data(), steps=8, run=tmp_path / "run", resume=True)
    monkeypatch.undo()
    resumed = jdl.fit(jdl.jit(jdl.feed(learner(), 4)), data(), steps=8, run=tmp_path / "run", resume=True)
    assert int(resumed.state.step) == 8


def test_no_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run directory .*jdl runs"):
        jdl.load(tmp_path)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_optional_package(package, monkeypatch, tmp_path):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=rf"pip install 'jdl\[{package}\]'"):
        loggers.LOGGERS[package](tmp_path)


def test_host_devices_after_the_backend_started_falls_back_and_says_so():
    jax.devices()
    with pytest.warns(UserWarning, match=r"JAX already runs with 8 CPU device\(s\), 2 were asked for: call"):
        assert jdl.host_devices(2) == 8


def test_seeds_on_one_device_of_several_cores_say_how_to_spread():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    code = (
        "import jax, jdl, numpy as np, optax, flax.linen as nn\n"
        "data = {'input': np.zeros((4, 2), np.float32), 'target': np.zeros(4, np.int32)}\n"
        "l = jdl.supervised(nn.Dense(2), jdl.losses.cross_entropy, optax.sgd(.1), example=data)\n"
        "l = jdl.seeds(l, 2); l.step(l.init(jax.random.key(0)), data)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "seeds: 2 runs one after another" in result.stderr
    assert "jdl.host_devices()" in result.stderr


def test_plain_convolutions_in_a_loop_are_pointed_out():
    images = {"input": np.zeros((4, 5, 5, 1), np.float32), "target": np.zeros(4, np.int32)}

    class Net(nn.Module):
        conv: type

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(self.conv(4, (3, 3))(x).mean((1, 2)))

    for transform in (lambda l: jdl.scan(jdl.feed(l, 2), 3), lambda l: jdl.seeds(jdl.feed(l, 2), 9)):
        plain = transform(jdl.supervised(Net(nn.Conv), jdl.losses.cross_entropy, optax.sgd(0.1), example=images))
        with pytest.warns(UserWarning, match=r"plain convolution.*use jdl.nn.Conv"):
            jax.eval_shape(plain.step, jax.eval_shape(plain.init, jax.random.key(0)), images)
        cured = transform(jdl.supervised(Net(jdl.nn.Conv), jdl.losses.cross_entropy, optax.sgd(0.1), example=images))
        jax.eval_shape(cured.step, jax.eval_shape(cured.init, jax.random.key(0)), images)  # warnings are errors here


def test_the_log_is_whole_after_a_cut_line(tmp_path):
    run = runs.create(tmp_path / "run")
    run.log({"step": 1, "train/loss": 2.0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "trai')
    assert run.rows == [{"step": 1, "train/loss": 2.0}]
    assert run.truncate(1) == run.rows
    run.log({"step": 2, "train/loss": 1.0})
    assert [row["step"] for row in run.rows] == [1, 2]


def test_a_mask_of_another_shape_and_one_of_shares():
    state = learner().init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r'batch\["mask"\] has shape \(12, 1\); it is one number per example, shape \(12,\)'
    ):
        learner().evaluate(state, data() | {"mask": np.ones((12, 1), np.float32)})
    whole = learner().evaluate(state, data())["loss"].compute()
    half = learner().evaluate(state, data() | {"mask": np.full(12, 0.5, np.float32)})["loss"].compute()
    np.testing.assert_allclose(half, whole, rtol=1e-6)  # a mask says who counts, not how much


def test_a_config_that_json_cannot_hold(tmp_path):
    assert runs.create(tmp_path / "path", {"folder": tmp_path}).config["folder"] == str(tmp_path)
    with pytest.raises(TypeError, match=r"a config holds .* of type complex; use numbers"):
        runs.create(tmp_path / "other", {"number": 1j})
    assert not (tmp_path / "other").exists()


def test_token_ids_outside_the_vocabulary_stop_before_the_first_compile():
    model = jdl.nn.GPT(7, 4, 8, 1, 2)
    ids = np.arange(12, dtype=np.int32).reshape(3, 4) % 7
    learner = jdl.supervised(
        model, jdl.losses.token_cross_entropy, optax.sgd(0.1), example={"input": ids, "target": ids}
    )
    wrong = {"input": np.where(ids == 6, 7, ids), "target": ids}
    with pytest.raises(ValueError, match=r"token id 7 \(sequence 1, position 2\) is outside the vocabulary of 7"):
        jdl.fit(jdl.jit(jdl.seeds(jdl.feed(learner, 2), 2)), wrong, steps=2)


def test_weights_of_another_architecture_are_named():
    weights = {"params": {"Dense_0": {"kernel": np.zeros((4, 5), np.float32)}, "Dense_9": {"bias": np.zeros(3)}}}
    with pytest.raises(
        ValueError, match=r"not those of this model.*\n.*Dense_0/kernel \(4, 5\), the model has \(4, 3\)"
    ):
        jdl.jit(learner(variables=weights)).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -100] * 4), r'-100 marks what Transformers ignores: give "mask", target != -100'),
        (np.array([0, 1, 9] * 4), "labels from 0 to 9, and the model has 3 outputs"),
        (np.array([[0], [1], [9]] * 4), "labels from 0 to 9, and the model has 3 outputs"),
    ],
)
def test_labels_without_an_output_are_told_before_compiling(labels, message):
    data = {"input": np.zeros((12, 4), np.float32), "target": labels.astype(np.int32)}
    learner = jdl.supervised(nn.Dense(3), jdl.losses.cross_entropy, optax.sgd(0.1), example=data)
    with pytest.raises(ValueError, match=message):
        jdl.fit(jdl.jit(jdl.feed(learner, 4)), data, steps=1)


@pytest.mark.parametrize("labels", [np.array([True, False] * 6), np.array([[1], [0]] * 6, np.int32)])
def test_booleans_and_a_trailing_axis_train_as_labels_do(labels):
    inputs = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)

    def trained(target):
        data = {"input": inputs, "target": target}
        metrics = {"accuracy": jdl.metrics.accuracy}
        learner = jdl.supervised(nn.Dense(2), jdl.losses.cross_entropy, optax.sgd(0.1), example=data, metrics=metrics)
        return jdl.fit(jdl.jit(jdl.feed(learner, 4)), data, steps=3, log_every=3).rows[-1]

    plain, other = trained(labels.reshape(-1).astype(np.int32)), trained(labels)
    assert plain["train/loss"] == other["train/loss"]
    assert plain["train/accuracy"] == other["train/accuracy"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.zeros(12, np.float32), r"float32\[4\], and class labels are integers: use .astype"),
        (np.zeros((12, 3), np.float32), r"float32\[4, 3\], and class labels are integers: take .argmax\(-1\)"),
        (np.zeros((12, 2), np.int32), r"int32\[4, 2\]; labels for outputs \[4, 3\] are \[4\]"),
    ],
)
def test_targets_that_are_no_labels_are_told_what_they_are(target, message):
    data = {"input": np.zeros((12, 4), np.float32), "target": target}
    learner = jdl.supervised(nn.Dense(3), jdl.losses.cross_entropy, optax.sgd(0.1), example=data)
    with pytest.raises((TypeError, ValueError), match=message):
        jdl.fit(jdl.jit(jdl.feed(learner, 4)), data, steps=1)
