"""The loop: what it logs, when it stops, what it keeps, and that a resumed run ends in the same bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import CASES, Linear, images, vectors

import jdl
from jdl.training import runs
from jdl.training.outcome import Monitor, Outcome


class Scalar(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False)(x)[:, 0]


def linear_data(size=64):
    data = vectors(size)
    return {name: leaf.astype(np.float32) for name, leaf in data.items()}


def linear_learner(rate=0.05, **options):
    return jdl.supervised(Linear(), jdl.losses.squared_error, optax.sgd(rate), example=linear_data(), **options)


def leaves(state):
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_is_a_plain_loop():
    data = linear_data()
    learner = jdl.jit(linear_learner())
    fitted = jdl.fit(learner, jdl.Batches(data, 16, key=3), steps=20, key=5, log_every=5)
    source, state = jdl.Batches(data, 16, key=3), learner.init(jax.random.key(5))
    losses = []
    for _ in range(20):
        state, metrics = learner.step(state, source.next())
        losses.append(float(metrics["loss"].total) / 16)
    same(fitted.state, state)
    assert [row["step"] for row in fitted.rows] == [5, 10, 15, 20]
    logged = [row["train/loss"] for row in fitted.rows]
    np.testing.assert_allclose(logged, np.array(losses).reshape(4, 5).mean(1), rtol=1e-6)


def test_intervals_that_a_call_does_not_divide_are_refused():
    learner = jdl.jit(jdl.scan(jdl.feed(linear_learner(), 16), 10))
    with pytest.raises(ValueError, match=r"steps=25 is no multiple of the learner's 10 updates.*try 20"):
        jdl.fit(learner, linear_data(), steps=25)
    with pytest.raises(ValueError, match=r"evaluate_every=15 .*try 20"):
        jdl.fit(learner, linear_data(), steps=40, validation=linear_data(), evaluate_every=15)


def test_arrays_need_a_learner_that_draws_batches():
    with pytest.raises(ValueError, match="draws no batches"):
        jdl.fit(jdl.jit(linear_learner()), linear_data(), steps=10)


def test_an_unknown_monitor_names_the_metrics():
    learner = jdl.jit(jdl.feed(linear_learner(), 16))
    with pytest.raises(ValueError, match="monitor='accuracy' is no metric of the evaluation; it has loss"):
        jdl.fit(learner, linear_data(), steps=10, validation=linear_data(), monitor="accuracy")


def walking(values):
    """A learner whose evaluation walks through given values; its state is its step."""
    table = jnp.asarray(values, jnp.float32)

    class State(jdl.TrainState):
        pass

    def init(key):
        return {"key": key, "step": jnp.int32(0)}

    def number(state):
        return state["step"]

    def step(state, batch):
        return {"key": state["key"], "step": state["step"] + 1}, {
            "loss": jdl.metrics.Mean(table[0] * 0 + 1.0, 1.0 + table[0] * 0)
        }

    def evaluate(state, batch):
        return {"score": jdl.metrics.Mean(table[number(state) - 1], jnp.ones(()))}

    return jdl.Learner(init, step, evaluate)


def test_early_stopping_keeps_the_best_and_stops():
    learner = jdl.jit(walking([5, 3, 4, 2, 6, 6, 6, 0]))
    fitted = jdl.fit(
        learner, jdl.Whole(None), steps=8, validation={"input": np.zeros(1)}, evaluate_every=1,
        monitor=jdl.Monitor("score", "min", patience=3),
    )  # fmt: skip
    assert int(fitted.state["step"]) == 7
    assert int(fitted.best["step"]) == 4
    assert fitted.ended == ["stopped early at step 7: score no better for 3 evaluations"]


def test_early_stopping_is_each_runs_own():
    tables = jnp.array([[1, 2, 3, 4, 5, 6.0], [1, 0, 0, 0, 0, 0.0]])

    def make(setting):
        one = walking([0.0])
        return one._replace(
            evaluate=lambda state, batch: {"score": jdl.metrics.Mean(setting[state["step"] - 1], jnp.ones(()))}
        )

    fitted = jdl.fit(
        jdl.jit(jdl.population(make, tables)), jdl.Whole(None), steps=6, validation={"input": np.zeros(1)},
        evaluate_every=1, monitor=jdl.Monitor("score", "max", patience=2),
    )  # fmt: skip
    np.testing.assert_array_equal(fitted.state["step"], [6, 3])
    np.testing.assert_array_equal(fitted.best["step"], [6, 1])
    assert fitted.ended[0] == ""
    assert "step 3" in fitted.ended[1]
    assert fitted.rows[-1]["validation/score"] == [6.0, None]


def exploding(data, rates):
    def make(rate):
        return jdl.feed(
            jdl.supervised(Scalar(), jdl.losses.squared_error, optax.sgd(rate), example=data), len(data["input"])
        )

    return jdl.jit(jdl.population(make, jnp.array(rates)))


@pytest.mark.medium
def test_a_diverged_run_keeps_its_last_good_state_and_the_others_go_on(tmp_path):
    data = linear_data()
    with pytest.warns(RuntimeWarning, match=r"run 1 diverged at step 1\d: not finite; its state is kept as of step 10"):
        fitted = jdl.fit(
            exploding(data, [0.1, 40.0]), data, steps=60, log_every=5, checkpoint_every=10, run=tmp_path / "run"
        )
    assert fitted.ended[0] == ""
    assert fitted.ended[1].startswith("diverged at step 1")
    assert all(np.isfinite(leaf).all() for leaf in leaves(fitted.state))
    np.testing.assert_array_equal(fitted.state.step, [60, 10])
    # and the run beside it is what it would have been alone
    alone = jdl.fit(exploding(data, [0.1]), data, steps=60)
    np.testing.assert_allclose(
        fitted.state.params["Dense_0"]["kernel"][0], alone.state.params["Dense_0"]["kernel"][0], rtol=1e-6
    )
    # the step that is named is the first whose loss is not finite
    state, learner = exploding(data, [40.0]).init(jax.random.key(0)), exploding(data, [40.0])
    step, finite = 0, True
    while finite:
        state, metrics = learner.step(state, data)
        step, finite = step + 1, np.isfinite(metrics["loss"].total[0])
    assert fitted.ended[1] == f"diverged at step {step}: not finite"


def test_a_single_diverged_run_stops():
    data = linear_data()
    learner = jdl.jit(jdl.feed(jdl.supervised(Scalar(), jdl.losses.squared_error, optax.sgd(40.0), example=data), 64))
    with pytest.warns(RuntimeWarning, match="the run diverged"):
        fitted = jdl.fit(learner, data, steps=1000, log_every=10)
    assert fitted.rows[-1]["step"] < 100
    assert int(fitted.state.step) == 0  # nothing was saved: the initial state is what is known to be good


def test_callbacks_see_rows_and_stop():
    seen = []

    def callback(row, state):
        seen.append((row["step"], int(state.step)))
        return row["step"] >= 6

    data = linear_data()
    learner = jdl.jit(jdl.feed(linear_learner(), 16))
    fitted = jdl.fit(learner, data, steps=20, log_every=3, callbacks=[callback])
    assert seen == [(3, 3), (6, 6)]
    assert int(fitted.state.step) == 6


def test_average_schedule_and_clipping_match_a_plain_loop():
    data = linear_data()
    schedule = optax.cosine_decay_schedule(0.5, 10)
    learner = jdl.jit(
        jdl.supervised(
            Linear(), jdl.losses.squared_error, optax.sgd(schedule), example=data, clip_norm=0.3, average_decay=0.8
        )
    )
    state = learner.init(jax.random.key(0))
    params = average = jax.tree.map(np.asarray, state.params)

    def loss(params):
        return jnp.mean((Linear().apply({"params": params}, data["input"]) - data["target"]) ** 2)

    for step in range(6):
        state, _ = learner.step(state, data)
        grads = jax.grad(loss)(params)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
        scale = min(1.0, 0.3 / norm) * float(schedule(step))
        params = jax.tree.map(lambda p, g, s=scale: p - s * g, params, grads)
        average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.average, average)
    expected = Linear().apply({"params": average}, data["input"])
    np.testing.assert_allclose(learner.predict(state, data), expected, rtol=1e-5)


RESUMED = {
    "host batches": lambda made: (jdl.jit(made.learner), lambda: jdl.Batches(made.data, 32, key=1)),
    "seeds": lambda made: (jdl.jit(jdl.seeds(jdl.scan(jdl.feed(made.learner, 32), 2), 3)), lambda: made.data),
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.parametrize("name", ["mlp_dropout", "cnn_batch_norm"])
def test_a_resumed_run_ends_in_the_same_bits(name, kind, tmp_path):
    made = CASES[name]()
    made = made._replace(data={k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in made.data.items()})
    learner, source = RESUMED[kind](made)
    options = {"steps": 24, "log_every": 4, "evaluate_every": 6, "checkpoint_every": 10, "validation": made.data}
    options |= {"monitor": jdl.Monitor("loss", "min", patience=50)}
    whole = jdl.fit(learner, source(), run=tmp_path / "whole", **options)

    class Killed(Exception):
        pass

    def kill(row, state):
        if row["step"] >= 18:
            raise Killed

    with pytest.raises(Killed):
        jdl.fit(learner, source(), run=tmp_path / "killed", callbacks=[kill], **options)
    resumed = jdl.fit(learner, source(), run=tmp_path / "killed", resume=True, **options)
    same(resumed.state, whole.state)
    same(resumed.best, whole.best)
    logs = [jdl.Run(tmp_path / run).rows for run in ("whole", "killed")]
    assert runs.differences(*logs) == []
    assert len(logs[0]) == len(whole.rows) > 8


@pytest.mark.medium
def test_resuming_a_finished_run_changes_nothing(tmp_path):
    data = linear_data()
    learner = jdl.jit(jdl.feed(linear_learner(), 16))
    first = jdl.fit(learner, data, steps=10, run=tmp_path / "run")
    again = jdl.fit(learner, data, steps=10, run=tmp_path / "run", resume=True)
    same(first.state, again.state)
    longer = jdl.fit(learner, data, steps=20, run=tmp_path / "run", resume=True)
    assert int(longer.state.step) == 20


def test_evaluation_covers_each_example_once_whatever_the_batch():
    data = images(50)
    learner = jdl.jit(CASES["mlp_dropout"]().learner)
    data = {"input": data["input"].astype(np.float32), "target": data["target"]}
    state = learner.init(jax.random.key(0))
    whole = jdl.evaluate(learner, state, data)
    for size in (7, 25, 49, 64):
        parts = jdl.evaluate(learner, state, data, batch_size=size)
        np.testing.assert_allclose(parts["accuracy"], whole["accuracy"], rtol=1e-12)
        np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-6)


def test_nothing_is_printed_where_nobody_watches(capfd):
    jdl.fit(jdl.jit(jdl.feed(linear_learner(), 16)), linear_data(), steps=10)
    out, err = capfd.readouterr()
    assert out == err == ""


def test_the_progress_bar_shows_speed_and_time_left(capfd):
    jdl.fit(jdl.jit(jdl.feed(linear_learner(), 16)), linear_data(), steps=400, progress=True)
    assert "400/400" in capfd.readouterr().err


def test_loggers_write_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = linear_data()
    run = runs.create(tmp_path / "run", log=("tensorboard",))
    fitted = jdl.fit(
        jdl.jit(jdl.seeds(jdl.feed(linear_learner(), 16), 2)), data, steps=10, log_every=5, checkpoint_every=10, run=run
    )
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss/run_1")
    assert [event.step for event in scalars] == [5, 10]
    np.testing.assert_allclose([e.value for e in scalars], [row["train/loss"][1] for row in fitted.rows], rtol=1e-6)


def test_a_monitors_name_says_which_way_is_better():
    from jdl.training.outcome import Monitor

    ways = {"loss": "min", "accuracy": "max", "fit/r2": "max", "fit/rmse": "min", "c/f1_macro": "max"}
    for name, mode in ways.items():
        assert Monitor.of(name) == Monitor(name, mode)


def test_without_a_checkpoint_a_diverged_run_keeps_its_own_best_or_its_first_state():
    data = linear_data()
    with pytest.warns(RuntimeWarning, match="run 1 diverged at step"):
        fitted = jdl.fit(exploding(data, [0.1, 40.0]), data, steps=60, log_every=20, evaluate_every=20, validation=data)
    assert all(np.isfinite(leaf).all() for leaf in leaves(fitted.state))
    np.testing.assert_array_equal(fitted.state.step, [60, 0])


def test_a_mistake_leaves_no_run_directory_behind(tmp_path):
    learner = jdl.jit(jdl.feed(linear_learner(), 16))
    with pytest.raises(ValueError, match="is no metric"):
        jdl.fit(learner, linear_data(), steps=10, validation=linear_data(), monitor="wrong", run=tmp_path / "run")
    jdl.fit(learner, linear_data(), steps=10, validation=linear_data(), run=tmp_path / "run")


def test_a_run_holds_one_fit_and_its_parts_others(tmp_path):
    learner, run = jdl.jit(jdl.feed(linear_learner(), 16)), runs.create(tmp_path / "run")
    jdl.fit(learner, linear_data(), steps=10, run=run)
    with pytest.raises(ValueError, match=r"already holds a fit .*run\.part"):
        jdl.fit(learner, linear_data(), steps=10, run=run)
    jdl.fit(learner, linear_data(), steps=10, run=run.part("second"))


def test_a_run_that_is_being_trained_is_left_alone(tmp_path):
    learner = jdl.jit(jdl.feed(linear_learner(), 16))
    jdl.fit(learner, linear_data(), steps=10, run=tmp_path / "run")
    with runs.locked(tmp_path / "run"), pytest.raises(OSError, match="being trained by another process"):
        jdl.fit(learner, linear_data(), steps=20, run=tmp_path / "run", resume=True)
    jdl.fit(learner, linear_data(), steps=20, run=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("make", "source", "updates"),
    [
        (lambda one: jdl.feed(one, 10), None, 6),
        (lambda one: jdl.scan(jdl.feed(one, 10), 2), None, 6),
        (lambda one: jdl.feed(jdl.scan(one, 2), 20), None, 6),
        (lambda one: one, 10, 6),
        (lambda one: jdl.scan(one, 2), 20, 6),
    ],
    ids=["feed", "scan feed", "feed scan", "batches", "scan batches"],
)
def test_an_epoch_sees_the_data_once(make, source, updates):
    data = linear_data(60)
    fitted = jdl.fit(jdl.jit(make(linear_learner())), jdl.Batches(data, source) if source else data, epochs=1.0)
    assert fitted.rows[-1]["step"] == updates
    assert int(fitted.state.step) == updates


def test_epochs_of_a_pipeline():
    pytest.importorskip("grain", reason="pipelines need the extra jdl[grain]")
    source = jdl.pipeline(Numbered(25), 5)
    fitted = jdl.fit(jdl.jit(linear_learner()), source, epochs=2.0)
    source.close()
    assert fitted.rows[-1]["step"] == 10


class Numbered:
    """Examples of `linear_data`, read one by one."""

    def __init__(self, size):
        self.data = linear_data(size)

    def __len__(self):
        return len(self.data["target"])

    def __getitem__(self, index):
        return {name: leaf[index] for name, leaf in self.data.items()}


def test_the_best_state_of_a_run_that_diverged_at_once_is_finite():
    data = linear_data()
    with pytest.warns(RuntimeWarning, match=r"run 1 diverged"):
        fitted = jdl.fit(exploding(data, [0.1, 1e20]), data, steps=20, log_every=5, validation=data, evaluate_every=10)
    for leaf in leaves((fitted.best.params, fitted.state.params)):
        assert np.isfinite(leaf).all()


def test_a_nan_is_found_in_whatever_a_state_holds():
    outcome = Outcome(2, Monitor())
    fine = {"number": 1.0, "numpy": np.ones((2, 3)), "least": jnp.full(2, jnp.inf), "key": jax.random.key(0), "step": 3}
    assert outcome.not_finite(fine).tolist() == [False, False]
    assert outcome.not_finite({**fine, "bad": jnp.array([[1, 2], [jnp.nan, 0]])}).tolist() == [False, True]
    assert outcome.not_finite({**fine, "bad": np.array([np.nan, 0])}).tolist() == [True, False]
    assert outcome.not_finite({**fine, "half": jnp.array([1, jnp.nan], jnp.bfloat16)}).tolist() == [False, True]
    assert outcome.not_finite({**fine, "shared": float("nan")}).tolist() == [True, True]
