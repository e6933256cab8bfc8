"""Runs made by version 0.1, before the files moved and arguments were renamed, load, go on and are repeated.

`xor` is finished, with its checkpoints of steps 400 and 600; `ppo` has its log and result alone.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl.experiment import execute

OLD = Path(__file__).parents[1] / "helpers" / "old_runs"


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_an_old_run_loads(old):
    run = jdl.load(old / "xor")
    assert run.config == {"hidden": 4, "learning_rate": 5.0, "steps": 600}
    outputs = run.predict(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32))
    assert outputs.shape == (2, 4, 1)
    right = (np.asarray(outputs)[..., 0] > 0.5) == np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(right.mean(-1), run.final["accuracy"])
    steps, losses = run.metrics["train/loss"]
    assert steps[-1] == 600
    assert losses.shape == (len(steps), 2)


def test_an_old_run_goes_on(old):
    before = jdl.Run(old / "xor")
    final, rows = before.final, before.rows
    (old / "xor" / "result.json").unlink()
    shutil.rmtree(old / "xor" / "checkpoints" / "00000600")
    again = execute.execute(jdl.Run(old / "xor"))
    assert [row["step"] for row in again.rows] == [row["step"] for row in rows]
    for name, values in final.items():  # another processor may round otherwise
        np.testing.assert_allclose(again.final[name], values, rtol=1e-4)


@pytest.mark.slow
def test_an_old_agents_run_is_repeated(old):
    found = jdl.Run(old / "ppo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its arguments have their old names
        copy, _ = execute.replay(found)
    assert copy.config == found.config
    first, second = found.metrics["train/return"], copy.metrics["train/return"]
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_allclose(second.values[0], first.values[0], rtol=1e-3)


def test_an_old_run_of_a_network_is_repeated(old):
    _, differences = execute.replay(jdl.Run(old / "xor"))
    assert not [line for line in differences if "rows" in line]
