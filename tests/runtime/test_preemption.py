"""A process that is told to end saves, says so by its status, and goes on to the same bits when it is started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest

import jdl
from jdl.cli import main as cli
from jdl.runtime import preemption
from jdl.training import runs

KILLABLE = Path(__file__).parents[1] / "helpers" / "small_experiments" / "killable.py"
DATA = {"input": np.linspace(-1, 1, 64, dtype=np.float32).reshape(32, 2), "target": np.ones((32, 1), np.float32)}


class ToldAt(jdl.Batches):
    """Batches, with SIGTERM sent to this process when the n-th is asked for."""

    def __init__(self, *numbers):
        super().__init__(DATA, 8)
        self._numbers = numbers

    def next(self, state=None):
        if self.position in self._numbers:
            self._numbers = tuple(number for number in self._numbers if number != self.position)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().next(state)


def fit(path, *told, **options):
    learner = jdl.jit(jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optax.adam(0.1), example=DATA))
    return jdl.fit(
        learner, ToldAt(*told), steps=30, log_every=10, checkpoint_every=15, validation=DATA, evaluate_every=10,
        run=path, resume=True, **options,
    )  # fmt: skip


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.medium
@pytest.mark.parametrize("told", [(3,), (9,), (14,), (3, 5), (29,), (12, 25)])
def test_a_fit_that_is_told_to_end_goes_on_to_the_same_bits(told, tmp_path, capsys):
    whole = fit(tmp_path / "whole")
    for number in told:
        with pytest.raises(jdl.Preempted) as ended:
            fit(tmp_path / "run", number)
        assert ended.value.code == jdl.REQUEUE == 75
        assert f"is saved as of step {number + 1}" in capsys.readouterr().err
        assert (tmp_path / "run" / "checkpoints" / f"{number + 1:08d}").is_dir()
    again = fit(tmp_path / "run")
    assert without_times(again.rows) == without_times(whole.rows)
    assert runs.differences(runs.Run(tmp_path / "run").rows, runs.Run(tmp_path / "whole").rows) == []
    np.testing.assert_array_equal(again.state.params["kernel"], whole.state.params["kernel"])
    np.testing.assert_array_equal(again.best.params["kernel"], whole.best.params["kernel"])


def test_a_state_that_has_just_diverged_is_not_saved(tmp_path):
    learner = jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optax.sgd(np.inf), example=DATA)
    with pytest.raises(jdl.Preempted):
        jdl.fit(jdl.jit(learner), ToldAt(3), steps=30, log_every=10, run=tmp_path / "run", checkpoint_every=10)
    assert not any((tmp_path / "run" / "checkpoints").glob("*"))


def test_without_a_run_a_signal_is_the_processs_own():
    def handler(*_):
        seen.append(1)

    seen = []
    before = signal.signal(signal.SIGTERM, handler)
    try:
        learner = jdl.jit(jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optax.adam(0.1), example=DATA))
        assert len(jdl.fit(learner, ToldAt(3), steps=10, log_every=10).rows) == 1
        assert seen == [1]
        with preemption.noticed():
            assert signal.getsignal(signal.SIGTERM) is not handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.medium
def test_the_same_command_goes_on_with_its_run_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["run", str(KILLABLE), "--steps", "50", "--pause", "0", "--run-dir", "run"]

    def main(*more, status):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, *more])
        assert ended.value.code == status
        return capsys.readouterr()

    main(status=0)
    finished = Path("run/result.json").read_text()
    assert "the run directory run exists" in main(status=2).err
    Path("run/result.json").unlink()
    error = main("--width", "16", "--seed-list", "3", status=2).err
    assert "run holds an unfinished run that is another: seeds [0] there, [3] here; width 32 there, 16 here" in error
    main(status=0)
    again = json.loads(Path("run/result.json").read_text())["metrics"]
    assert again == json.loads(finished)["metrics"]


@pytest.mark.slow
def test_a_requeued_command_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "jdl", "run", str(KILLABLE), "--seeds", "2", "--run-dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    told = 0
    for _ in range(20):
        process = subprocess.Popen([*command, str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        log = tmp_path / "run" / "metrics.jsonl"
        lines = len(log.read_text().splitlines()) if log.is_file() else 0
        while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > lines + 20):
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == jdl.REQUEUE, errors
        told += b"told to end (SIGTERM)" in errors
    assert told >= 2
    assert runs.differences(runs.Run(tmp_path / "run").rows, runs.Run(tmp_path / "whole").rows) == []
    assert runs.Run(tmp_path / "run").final == runs.Run(tmp_path / "whole").final
