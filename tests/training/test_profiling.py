"""Where time goes: the trace of a fit, the warning about compilations, the warning about waiting for data."""

import gzip
import json
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.cli import main as cli
from jdl.training import profiling, runs
from jdl.training.profiling import profile


def counting():
    """A learner of nothing that takes any batch."""

    def step(state, batch):
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(batch)) + jnp.zeros(())
        return {"key": state["key"], "step": state["step"] + 1}, {"loss": jdl.metrics.Mean(total, jnp.ones(()))}

    return jdl.jit(jdl.Learner(lambda key: {"key": key, "step": jnp.int32(0)}, step, lambda state, batch: {}))


class Given:
    """A source of given batches, over and over."""

    def __init__(self, *batches):
        self.batches, self.position = batches, 0

    def next(self, state=None):
        self.position += 1
        return self.batches[(self.position - 1) % len(self.batches)]

    def save(self):
        return {"position": self.position}

    def restore(self, saved):
        self.position = int(saved["position"])


class Slow(Given):
    """A source that says of each batch that it was a second late."""

    waited = 0.0

    def next(self, state=None):
        self.waited += 1.0
        return super().next(state)


def lengths(*sizes):
    return Given(*({"ids": np.ones((2, size), np.float32)} for size in sizes))


def fit(source, learner=None, steps=24, **options):
    if "run" in options:
        options.setdefault("checkpoint_every", steps)
    return jdl.fit(learner or counting(), source, steps=steps, log_every=4, **options)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_a_length_of_its_own_for_every_batch_is_warned_of_once():
    (message,) = warned(lambda: fit(lengths(*range(3, 27))))
    assert message.startswith("the step was compiled 9 times, for as many kinds of batch, lastly since batch['ids']")
    assert "came as float32[2,11] after float32[2,10]" in message
    assert "jdl.data.buckets" in message


def test_a_few_buckets_pass_unsaid():
    assert warned(lambda: fit(lengths(*(2**power for power in range(8))), steps=40)) == []


def test_what_was_compiled_in_another_fit_is_not_counted():
    learner = counting()
    for start in (1, 9, 17):
        assert warned(lambda start=start: fit(lengths(*range(start, start + 8)), learner)) == []


def test_a_change_of_type_is_warned_of_at_once():
    one, other = {"x": np.ones(3, np.float32)}, {"x": np.ones(3, np.int32)}
    (message,) = warned(lambda: fit(Given(one, one, other)))
    assert "batch['x'] came as int32[3] after float32[3]" in message
    assert "np.asarray(value, np.float32)" in message


def test_a_number_of_pythons_is_a_type_of_its_own():
    (message,) = warned(lambda: fit(Given({"scale": np.float32(2)}, {"scale": 2.0})))
    assert "batch['scale'] came as float32[] of a Python number after float32[]" in message


def test_a_leaf_that_comes_and_goes_is_named():
    batches = [{"x": np.ones(size + 1, np.float32)} for size in range(8)]
    (message,) = warned(lambda: fit(Given(*batches, {"x": np.ones(8, np.float32), "mask": np.ones(8, np.float32)})))
    assert "the batch had ['mask'], ['x'] after ['x']" in message


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is four seconds after the last."""
    times = iter(range(0, 10**6, 4))
    monkeypatch.setattr(profiling, "time", types.SimpleNamespace(perf_counter=lambda: float(next(times))))


BATCH = {"x": np.ones(2, np.float32)}


def test_waiting_for_data_is_warned_of_once(clock):
    # Four batches, so four seconds late, in each interval of four seconds.
    (message,) = warned(lambda: fit(Slow(BATCH)))
    assert message.startswith("training waited for data 100% of the time")
    assert "workers=" in message


@pytest.mark.parametrize("source", [Given(BATCH), jdl.Batches({"x": np.ones((8, 2), np.float32)}, 4), jdl.Whole(None)])
def test_sources_that_do_not_say_how_long_they_waited_are_left_alone(source, clock):
    assert warned(lambda: fit(source)) == []


def test_waiting_in_the_warm_up_or_a_little_passes_unsaid(clock):
    class Rare(Given):
        waited = 0.0

        def next(self, state=None):
            self.waited += 100.0 if self.position < 4 else 0.15  # 15% of an interval
            return super().next(state)

    assert warned(lambda: fit(Rare(BATCH))) == []


def test_a_short_fit_is_not_judged(clock):
    assert warned(lambda: fit(Slow(BATCH), steps=12)) == []


def traces(folder):
    files = folder.rglob("*.trace.json.gz")
    return [json.loads(gzip.decompress(file.read_bytes()))["traceEvents"] for file in files]


def test_a_profile_has_the_calls_that_were_asked_for(tmp_path, capsys):
    plain = fit(lengths(3))
    with profile(6):
        fitted = fit(lengths(3), run=tmp_path / "run")
    assert [row["train/loss"] for row in fitted.rows] == [row["train/loss"] for row in plain.rows]
    times = json.loads((tmp_path / "run" / "profile" / "times.json").read_text())
    assert times["calls"] == times["updates"] == 6
    assert set(times["seconds"]) >= {"waiting for data", "dispatch", "waiting for the device"}
    assert min(times["seconds"].values()) >= 0
    (events,) = traces(tmp_path / "run" / "profile")
    names = [event.get("name", "") for event in events]
    assert names.count("source.next") == 6
    assert sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "step") == [
        5,
        6,
        7,
        8,
        9,
        10,
    ]
    shown = capsys.readouterr().err
    assert "6 calls of 1 update(s)" in shown
    assert "ui.perfetto.dev" in shown


def test_a_profile_adds_its_times_up(tmp_path, monkeypatch):
    """By a clock that is a second later at each look: what each part took is how often it was looked at."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(profiling, "time", types.SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    with profile(6):
        learner, every = jdl.jit(jdl.scan(counting(), 2)), {"log_every": 48, "checkpoint_every": 48}
        jdl.fit(learner, jdl.Whole(None), steps=48, run=tmp_path / "run", **every)
    times = json.loads((tmp_path / "run" / "profile" / "times.json").read_text())
    assert times["updates"] == 12
    assert times["seconds"] == {
        "waiting for data": 6.0, "dispatch": 6.0, "waiting for the device": 1.0,
        "the loop: logging, evaluation, checkpoints": 27.0 - 13.0,  # 2 looks a part, and the start and the end
    }  # fmt: skip


def test_a_fit_that_ends_first_has_a_shorter_profile(tmp_path):
    with profile(100):
        fit(lengths(3), run=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "profile" / "times.json").read_text())["calls"] == 24 - 5
    with profile(1), pytest.warns(RuntimeWarning, match=r"no profile: the fit made 4 calls .* the first 5"):
        fit(lengths(3), run=tmp_path / "short", steps=4)


def test_a_fit_that_fails_ends_its_trace(tmp_path):
    def fail(row, state):
        if row["step"] == 8:
            raise ArithmeticError

    with profile(100):
        with pytest.raises(ArithmeticError):
            fit(lengths(3), run=tmp_path / "failed", callbacks=[fail])
        fit(lengths(3), run=tmp_path / "after")  # or the profiler would say that it is at work


def test_nothing_is_traced_unasked_or_without_a_run(tmp_path):
    fit(lengths(3), run=tmp_path / "run")
    assert not (tmp_path / "run" / "profile").exists()
    with profile(2):
        fit(lengths(3))


def test_a_profiled_run_resumes(tmp_path):
    with profile(2):
        fit(lengths(3, 4), run=tmp_path / "run")
        fit(lengths(3, 4), run=tmp_path / "run", steps=48, resume=True)
    whole = fit(lengths(3, 4), steps=48, run=tmp_path / "whole")
    assert runs.differences(jdl.Run(tmp_path / "run").rows, whole.rows) == []
    assert len(traces(tmp_path / "run" / "profile")) >= 1


def test_less_than_a_call_is_refused():
    with pytest.raises(ValueError, match=r"profile\(-1\): trace at least 1 call"), profile(-1):
        pass


EXPERIMENT = """
import dataclasses
import jdl

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 24

def main(config, run):
    import test_profiling
    test_profiling.fit(test_profiling.lengths(3), steps=config.steps, run=run)
    return {"score": 1.0}
"""


def test_the_command_profiles_an_experiment_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)  # the tests' own are set up already
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(tmp_path / "tiny.py"), "--profile", "3", "--run-dir", out])
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    assert "3 calls of 1 update(s)" in shown.err
    assert len(traces(tmp_path / "out" / "profile")) == 1
    with pytest.raises(SystemExit):
        cli.main(["run", str(tmp_path / "tiny.py"), "--profile", "-3", "--run-dir", out + "2"])
    assert "trace at least 1 call" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()
