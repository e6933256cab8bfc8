"""Every experiment goes through all of it at its smallest size; what it declares of its results is sound."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jdl.data.sources import images
from jdl.data.sources.stamps import DEBIAN_FOLDER as STAMPS
from jdl.experiment import find, records, search_space

ROOT = Path(__file__).parents[2]
EXPERIMENTS = [one for one in find.experiments() if one.domain != "bench"] if Path("experiments").is_dir() else []
FIGURES = {
    "overfitting": "Overfitting and its cures",
    "embeddings": "Projections of features",
    "transfer": "Accuracy by labeled pictures",
    "alphazero": "A game with itself",
    "memory_lengths": "Share of right answers by length",
}
FASHION = "fashion_mnist", "capsules", "overfitting", "embeddings"


def skip_without_data(name):
    if name in FASHION and not images.DEBIAN_FOLDER.is_dir():
        pytest.skip("no Fashion-MNIST: apt-get install dataset-fashion-mnist")
    needs = {
        "offline": "minari",
        "icu_sepsis": "icu_sepsis",
        "prices": "skfolio",  # of which a file is read, nothing is imported
        "highway": "highway_env",
        "car_racing": "Box2D",
    }
    if (package := needs.get(name)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if name == "transfer" and not (STAMPS.is_dir() or "JDL_STAMPS" in os.environ):
        pytest.skip("no Tux Paint stamps: apt-get install tuxpaint-stamps-default")


def run(tmp_path, *arguments, limit=580):
    result = subprocess.run(
        [sys.executable, "-m", "jdl", "run", *arguments, "--run-dir", str(tmp_path / "run"), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])["metrics"]


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 15
    assert len({one.name for one in EXPERIMENTS}) == len(EXPERIMENTS)


# Pages of the documentation are executed: what one of them runs at its smallest size is not run again.
PAGES = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
@pytest.mark.timeout(600)  # three EfficientNets compile for two minutes, on a busy machine for five
@pytest.mark.parametrize("name", [one.name for one in EXPERIMENTS if f"\njdl run {one.name} --smoke" not in PAGES])
def test_an_experiment_runs_from_end_to_end(tmp_path, name):
    skip_without_data(name)
    seeds = (
        1 if name == "car_racing" else 2
    )  # its seeds are processes, as rl.experiment makes them of PPO's (test_load)
    found = run(tmp_path, name, "--smoke", "--seeds", str(seeds))
    assert found
    assert all(np.isfinite(score["values"]).all() for score in found.values() if len(score["values"]) == seeds)
    report = (tmp_path / "run" / "report.html").read_text()
    assert FIGURES.get(name, "") in report


@pytest.mark.parametrize("found", EXPERIMENTS, ids=lambda one: one.name)
def test_what_an_experiment_declares_is_sound(found):
    module = find.find(str(found.file))
    assert search_space.replaced(module.Config(), module.SMOKE) != module.Config()
    declared = [one for one in records.declared(found.domain) if one.experiment == found.name]
    assert declared
    for one in declared:
        assert one.name == one.path.stem
        assert records.of_config(module, one.config).variant == one.variant
        assert all(records.parsed(bar) for bar in one.record.bars.values())
        if one.measured is not None:
            assert {*one.record.bars, *one.shown} <= one.intervals.keys()
