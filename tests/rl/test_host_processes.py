"""Agents on the host, trained by several processes with a part of the environments each, as by one with all."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jdl.training import runs

pytestmark = pytest.mark.slow
COMMON = ["--runner", "host", "--vectorization", "sync", "--num-episodes", "2"]
OPTIONS = {
    "ppo": ["--total-steps", "4096", "--num-steps", "64", "--normalize-observations", "True"],
    "dqn": ["--total-steps", "2048", "--warm-up", "200"],
}


def jdl_(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "jdl", *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)


def assert_same_training(one, other):
    assert [row["step"] for row in one.rows] == [row["step"] for row in other.rows]
    for name, series in other.metrics.items():
        np.testing.assert_allclose(one.metrics[name].values, series.values, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("name", "count"), [("ppo", 4), ("dqn", 2)])
def test_processes_train_as_one_with_all_environments(name, count, tmp_path):
    jdl_("run", name, *COMMON, *OPTIONS[name], "--run-dir", tmp_path / "alone")
    launch = ["launch", "--processes", count]
    jdl_(*launch, "run", name, *COMMON, *OPTIONS[name], "--run-dir", tmp_path / "run")
    run, alone = runs.Run(tmp_path / "run"), runs.Run(tmp_path / "alone")
    assert_same_training(run, alone)
    if name == "dqn":
        return  # goes on as PPO does
    (run.path / "result.json").unlink()
    newest = max(run.checkpoint_folder.glob("[0-9]*"))
    (newest / "manifest.json").unlink()  # the one before is gone on from
    jdl_("resume", run.path)  # four processes' run by one
    assert_same_training(run, alone)


def test_one_seed_has_the_devices_of_all_processes(tmp_path):
    options = ["ppo", "--total-steps", "2048", "--num-episodes", "2"]  # on the device, devices=auto
    jdl_("run", *options, "--run-dir", tmp_path / "alone")
    jdl_("launch", "--processes", 2, "run", *options, "--run-dir", tmp_path / "run")
    run = runs.Run(tmp_path / "run")
    assert run.environment["devices"]["count"] == 2
    assert_same_training(run, runs.Run(tmp_path / "alone"))
