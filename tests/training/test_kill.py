"""A run that is killed at any moment, also while a checkpoint is being written, resumes to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jdl.training import runs
from jdl.training.checkpoint import checkpoints

EXPERIMENT = Path(__file__).parents[1] / "helpers" / "small_experiments" / "killable.py"
PATIENCE = 120  # seconds that a process may take to do what is waited for


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jdl", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(command("run", EXPERIMENT, "--seeds", 2, "--pause", 0, "--run-dir", path))
    return runs.Run(path)


def kill_and_resume(path, kills, chance):
    """Start a run, kill it `kills` times, each time resume it, and let the last one finish."""
    process = command("run", EXPERIMENT, "--seeds", 2, "--run-dir", path)
    log, checkpoints = path / "metrics.jsonl", path / "checkpoints"
    in_writes = 0
    for number in range(kills):
        in_a_write = number % 2 == 0
        deadline = time.monotonic() + PATIENCE
        lines = len(log.read_bytes().splitlines()) if log.is_file() else 0
        wanted = lines + chance.randrange(1, 5)
        while process.poll() is None and time.monotonic() < deadline:
            if in_a_write and any(checkpoints.glob("*.writing")):
                in_writes += 1
                break
            if not in_a_write and log.is_file() and len(log.read_bytes().splitlines()) >= wanted:
                time.sleep(chance.random() * 0.02)
                break
            time.sleep(0.0005)
        assert process.poll() is None, f"it ended before it was killed: {process.communicate()[0]}"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        process = command("resume", path)
    finish(process)
    return in_writes


def assert_same(path, undisturbed):
    run = runs.Run(path)
    assert runs.differences(run.rows, undisturbed.rows) == []
    assert run.result["metrics"] == undisturbed.result["metrics"]
    last = f"{600:08d}/arrays"
    one, other = (checkpoints._load_arrays(r.checkpoint_folder / last) for r in (run, undisturbed))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow  # a resumed fit is held to the same bits in test_fit.py, too
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2])
def test_many_kills(seed, tmp_path, undisturbed):
    in_writes = kill_and_resume(tmp_path / "run", 8, random.Random(seed))
    assert in_writes > 0
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_replay_agrees_to_the_bit(undisturbed):
    output = finish(command("replay", undisturbed.path, "--json"))
    assert json.loads(output.strip().splitlines()[-1])["agrees"] is True
