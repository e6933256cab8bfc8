"""The experiments reach what they promise. Minutes each: `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jdl.core.statistics import interquartile_mean
from jdl.data.sources import images
from jdl.data.sources.stamps import DEBIAN_FOLDER as STAMPS

ROOT = Path(__file__).parents[2]


def run(tmp_path, *arguments, limit=900):
    result = subprocess.run(
        [sys.executable, "-m", "jdl", "run", *arguments, "--run-dir", str(tmp_path / "run"), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])["metrics"]


@pytest.mark.slow
def test_xor_ends_with_all_four_right(tmp_path):
    assert run(tmp_path, "xor", "--seeds", "8")["accuracy"]["values"] == [1.0] * 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_digits_reaches_98_5_percent(tmp_path):
    accuracy = run(tmp_path, "digits", "--seeds", "8")["accuracy"]
    assert len(accuracy["values"]) == 8
    assert accuracy["mean"] >= 0.985


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tabular_stands_beside_scikit_learn(tmp_path):
    scores = run(tmp_path, "tabular", "--seeds", "8")
    for table in ("breast_cancer (accuracy)", "wine (accuracy)", "diabetes (R²)"):
        peers = {name: score["mean"] for name, score in scores.items() if name.startswith(table) and "jdl" not in name}
        assert len(peers) == 4
        assert scores[f"{table}/jdl MLP"]["high"] >= max(peers.values()) - 0.05, (table, peers)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("arguments", "bar"),
    [(["--network", "mlp", "--no-augmentation", "--seeds", "3"], 0.89), ([], 0.93)],
)
def test_fashion_mnist_reaches_its_bars(tmp_path, arguments, bar):
    fashion_mnist_or_skip()
    assert run(tmp_path, "fashion_mnist", *arguments, limit=1100)["accuracy"]["mean"] >= bar


def fashion_mnist_or_skip():
    if not images.DEBIAN_FOLDER.is_dir():
        pytest.skip("no Fashion-MNIST: apt-get install dataset-fashion-mnist")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_gpt_reaches_nanogpts_figure_on_shakespeare(tmp_path):
    found = run(tmp_path, "char_lm", "--fetch")
    assert found["validation loss"]["mean"] <= 1.88
    assert len((tmp_path / "run" / "sample.txt").read_text()) == 63


SMALL = {
    "char_lm": ["--network", "gru", "--steps", "40", "--warmup", "4", "--fetch"],
    "sentiment": ["--network", "lstm", "--train-sentences", "320", "--epochs", "1", "--fetch"],
    "capsules": ["--epochs", "1", "--steps-per-call", "50", "--channels", "4"],
    "overfitting": ["--images", "200", "--steps", "60"],
    "embeddings": ["--epochs", "1", "--images", "400", "--autoencoder-epochs", "1"],
    "transfer": ["--labeled", "1", "--steps", "4", "--steps-per-call", "2", "--fetch"],
}
FIGURES = {
    "overfitting": "Overfitting and its cures",
    "embeddings": "Projections of features",
    "transfer": "Accuracy by labeled pictures",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_runs_from_end_to_end(tmp_path, name):
    if name in ("capsules", "overfitting", "embeddings"):
        fashion_mnist_or_skip()
    if name == "transfer" and not (STAMPS.is_dir() or "JDL_STAMPS" in os.environ):
        pytest.skip("no Tux Paint stamps: apt-get install tuxpaint-stamps-default")
    found = run(tmp_path, name, "--seeds", "2", *SMALL[name])
    assert all(np.isfinite(score["values"]).all() for score in found.values())
    report = (tmp_path / "run" / "report.html").read_text()
    assert FIGURES.get(name, "") in report


@pytest.mark.slow
@pytest.mark.timeout(1900)
@pytest.mark.parametrize(
    ("arguments", "bar"),
    [
        (["ppo", "--env", "CartPole-v1"], 475),
        (["a2c", "--env", "CartPole-v1"], 475),
        (["reinforce", "--env", "CartPole-v1"], 475),
        (["dqn", "--env", "CartPole-v1"], 475),
        (["ppo", "--env", "Acrobot-v1"], -90),
        (["dqn", "--env", "Acrobot-v1"], -90),
        (["dqn", "--env", "MountainCar-v0"], -115),
        (["ppo", "--env", "LunarLander-v3", "--runner", "host"], 230),
        (["dqn", "--env", "LunarLander-v3", "--runner", "host"], 150),
        (["ppo", "--env", "Pendulum-v1"], -200),
    ],
)
def test_agents_learn(tmp_path, arguments, bar):
    if "LunarLander-v3" in arguments:
        pytest.importorskip("Box2D", reason="the box2d extra is not installed")
    values = run(tmp_path, *arguments, "--seeds", "10", limit=1800)["return"]["values"]
    assert interquartile_mean(np.array(values)[:, None]) >= bar


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["q_learning", "sarsa", "expected_sarsa"])
@pytest.mark.parametrize("env", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_tables_come_within_2_percent_of_the_optimum(tmp_path, method, env):
    found = run(tmp_path, method, "--env", env, "--seeds", "10", "--num-episodes", "50")
    exact, optimum = found["return (exact)"]["mean"], found["return (optimum)"]["mean"]
    assert exact >= optimum - 0.02 * abs(optimum)
