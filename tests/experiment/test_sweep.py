"""A grid of runs on Ray: ordinary run directories, workers that die, runs that fail, mistakes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jdl.cli import main as cli
from jdl.experiment import find, sweep
from jdl.training import runs

KILLABLE = Path(__file__).parents[1] / "helpers" / "small_experiments" / "killable.py"
SMALL = """
import dataclasses
import jdl

@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.5
    kind: str = "sum"

def main(config, run):
    if config.rate == 3:
        raise RuntimeError("three is too much")
    return {"value": [config.rate * seed for seed in run.seeds]}
"""


def command(*arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert ended.value.code == status


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SMALL)
    return "small.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid.rates", "1 2"], "'rates', which the Config lacks; its fields are rate, kind"),
        (["--grid.rate", "one"], "'one' is no float"),
        (["--grid.rate", "1 1"], "each of them once"),
        (["--grid.rate", ""], "give values among"),
        (["--seeds", 0], "--seeds 0: give at least 1"),
        (["--retries", -1], "neither is negative"),
    ],
)
def test_sweeps_that_cannot_be(small, arguments, message, capsys):
    command("sweep", small, *arguments, status=2)
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_that_holds_another_sweep(small, capsys):
    options = sweep.Options(sweep_dir=Path("swept"))
    module = find.find(small)
    given = {"experiment": small, "config": module.Config(), "options": options}
    Path("swept").mkdir()
    sweep._describe(Path("swept"), {**given, "grid": {"rate": (1.0, 2.0)}})
    command("sweep", small, "--grid.rate", "1 3", "--sweep-dir", "swept", status=2)
    error = capsys.readouterr().err
    assert "holds another sweep: grid {'rate': [1.0, 2.0]} there, {'rate': [1.0, 3.0]} here" in error


@pytest.mark.slow
def test_a_grid_becomes_runs_and_the_same_command_goes_on(small, capfd):
    grid = ["--grid.rate", "1 3", "--seeds", 2, "--split-seeds", "--sweep-dir", "swept", "--json"]
    jax.devices()  # as in a notebook: Ray starts beside a JAX that runs
    command("sweep", small, *grid, status=1)
    shown = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [run["seeds"] for run in shown["runs"]] == [[0], [1]] * 2
    assert [result["metrics"].get("value", [])[:1] for result in shown["results"]] == [[0.5], []]
    assert [run["failure"] for run in shown["runs"]] == [""] * 2 + ["RuntimeError: three is too much"] * 2
    assert runs.Run("swept/0001").config["rate"] == 1
    assert runs.Run("swept/0001").final == {"value": [1.0]}
    assert "three is too much" in Path("swept/output/0002.txt").read_text()
    before = Path("swept/0001/result.json").stat().st_mtime_ns
    Path("small.py").write_text(SMALL.replace("config.rate == 3", "False"))
    command("sweep", small, *grid)
    shown = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [result["metrics"]["value"][:1] for result in shown["results"]] == [[0.5], [1.5]]
    assert Path("swept/0001/result.json").stat().st_mtime_ns == before
    found = sweep.sweep(small, {"rate": (1.0, 3.0)}, sweep.Options(2, True, sweep_dir=Path("swept")), command=cli.main)
    assert [list(one["value"]) for _, one in sweep.finals(found)] == [[0, 1], [0, 3]]
    assert not np.diff([len(one.seeds) for one in found]).any()


def holder(lock):
    """The process that holds a run's lock, None where none does."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and lock.is_file() and words[5].endswith(f":{lock.stat().st_ino}"):
            return int(words[4])
    return None


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.diagnosis)])
def test_a_run_whose_worker_dies_is_started_again_and_ends_in_the_same_bits(how, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-m", "jdl", "run", KILLABLE, "--width", "8", "--pause", "0", "--run-dir", "alone"]
    subprocess.run(words, check=True, capture_output=True, timeout=300, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    run, ended = tmp_path / "swept" / "0000", []

    def kill():
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not ended:
            if (run / "checkpoints" / "00000100").is_dir() and (worker := holder(run / "lock")):
                os.kill(worker, how)
                ended.append(worker)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    command("sweep", KILLABLE, "--grid.width", "8", "--pause", "0.05", "--sweep-dir", "swept")
    killer.join()
    assert ended
    output = (tmp_path / "swept" / "output" / "0000.txt").read_text()
    assert ("told to end (SIGTERM)" in output) == (how == signal.SIGTERM)
    one, two = runs.Run("alone"), runs.Run(run)
    assert len(two.environment["resumed"]) == 1
    assert runs.differences(one.rows, two.rows) == []
    assert one.final == two.final


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_listens_is_told_at_once(prefix, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    options = sweep.Options(address=f"{prefix}127.0.0.1:1", sweep_dir=tmp_path / "swept")
    with pytest.raises(ConnectionError, match=r"there is no Ray cluster at .*127.0.0.1:1 .*leave --address out"):
        sweep.sweep(small, {"rate": (1.0,)}, options, command=cli.main)
    assert time.monotonic() - begun < 60
