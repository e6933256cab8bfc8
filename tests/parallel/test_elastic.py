"""A checkpoint of one layout goes on in any other: modes, and numbers of devices."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from test_modes import case

import jdl
import rl
from jdl.cli import main as cli
from jdl.training.checkpoint.checkpoints import Checkpoints

LAYOUTS = [("single", ""), ("pmap", "2"), ("data", "4"), ("fsdp", "8"), ("tensor", "1x4"), ("fsdp+tensor", "4x2")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state trained under each layout, and the folder that it was saved in."""
    found = {}
    for mode, mesh in LAYOUTS:
        learner, data = case("mlp")
        learner = jdl.jit(jdl.scan(jdl.feed(jdl.distribute(learner, mode, mesh), 32), 5))
        state, _ = learner.step(learner.init(jax.random.key(0)), data)
        folder = tmp_path_factory.mktemp("saved")
        checkpoints = Checkpoints(folder)
        checkpoints.save(5, state)
        checkpoints.close()
        found[mode, mesh] = state, folder
    return found


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("after", LAYOUTS, ids="-".join)
def test_any_layout_goes_on_from_any_other(after, saved):
    learner, data = case("mlp")
    learner = jdl.jit(jdl.scan(jdl.feed(jdl.distribute(learner, *after), 32), 5), donate=False)
    like = learner.init(jax.random.key(1))
    ends = []
    for state, folder in saved.values():
        restored = Checkpoints(folder).restore(like)
        assert restored is not None
        assert restored.step == 5
        same(restored.tree, state)
        for leaf, wanted in zip(jax.tree.leaves(restored.tree), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        ends.append(learner.step(restored.tree, data)[0].params)
    assert len(learner.step.signatures) == 1
    for end in ends[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, ends[0])


EXPERIMENT = """
import dataclasses
import flax.linen as nn
import numpy as np
import optax
import jdl
import rl
from jdl import cli

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 20
    devices: jdl.Mode = "auto"
    mesh: str = ""

RANDOM = np.random.default_rng(0)
DATA = {"input": RANDOM.normal(size=(64, 64)).astype(np.float32)}
DATA["target"] = DATA["input"] @ np.ones((64, 32), np.float32)

def main(config, run):
    learner = jdl.supervised(nn.Dense(32), jdl.losses.squared_error, optax.adam(0.1), example=DATA)
    learner = jdl.jit(jdl.feed(jdl.distribute(learner, config.devices, config.mesh), 32))
    fitted = jdl.fit(learner, DATA, steps=config.steps, run=run, checkpoint_every=10)
    (run.path / "where.txt").write_text(str(fitted.state.params["kernel"].sharding))
    return {"loss": jdl.evaluate(learner, fitted.state, DATA)["loss"]}
"""


def command(*arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == status


@pytest.mark.medium
def test_a_run_goes_on_over_other_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert jax.device_count() == 8
    Path("wide.py").write_text(EXPERIMENT)
    command("run", "wide.py", "--devices", "data", "--mesh", "5", "--run-dir", "whole", status=2)  # a batch of 32
    assert not Path("whole").exists()
    assert "does not divide over 5 devices" in capsys.readouterr().err
    command("run", "wide.py", "--run-dir", "whole")
    command("run", "wide.py", "--devices", "data", "--mesh", "8", "--steps", "10", "--run-dir", "moved")
    file = Path("moved/config.json")
    file.write_text(file.read_text().replace('"steps": 10', '"steps": 20'))  # as if it had been stopped in the middle
    Path("moved/result.json").unlink()
    command("resume", "moved", "--devices", "fsdp", "--mesh", "4")
    assert "'data': 4" in Path("moved/where.txt").read_text()
    whole, moved = jdl.load("whole"), jdl.load("moved")
    assert moved.config == {"steps": 20, "devices": "fsdp", "mesh": "4"}
    assert moved.description["before"] == [{"until": 10, "devices": "data", "mesh": "8"}]
    np.testing.assert_allclose(moved.final["loss"], whole.final["loss"], rtol=1e-4)
    capsys.readouterr()
    command("resume", "moved", "--mesh", "2", status=2)
    assert "moved is finished; --devices and --mesh are for a run that goes on" in capsys.readouterr().err
    Path("moved/result.json").unlink()
    command("resume", "moved", "--mesh", "16", status=2)
    assert "needs 16 devices, and there are 8" in capsys.readouterr().err
    for mistake in (["--devices", "zero"], ["--mesh", "8x"], ["--devices", "single", "--mesh", "4"], ["--mesh", "0"]):
        command("resume", "moved", *mistake, status=2)
    command("resume", "moved", "--mesh", "2")  # nothing is lost by the mistakes
    command("resume", "moved")


@pytest.mark.slow
@pytest.mark.parametrize("started", ["1", "8"])
def test_one_file_goes_on_over_any_number_of_devices(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wide.py").write_text(EXPERIMENT)
    command("run", "wide.py", "--run-dir", "whole")
    command("run", "wide.py", "--devices", "fsdp", "--mesh", started, "--steps", "10", "--run-dir", "begun")
    file = Path("begun/config.json")
    file.write_text(file.read_text().replace('"steps": 10', '"steps": 20'))
    Path("begun/result.json").unlink()
    whole = jdl.load("whole")
    for count in ("1", "2", "4", "8"):
        shutil.copytree("begun", f"over{count}")
        command("resume", f"over{count}", "--devices", "fsdp", "--mesh", count)
        over = jdl.load(f"over{count}")
        assert [row["step"] for row in over.rows] == [row["step"] for row in whole.rows]
        np.testing.assert_allclose(over.metrics["train/loss"].values, whole.metrics["train/loss"].values, rtol=1e-4)
        np.testing.assert_allclose(over.final["loss"], whole.final["loss"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "steps"), [("pmap", 2), ("fsdp", 20)])  # within the replay's capacity, around it
def test_a_replay_goes_on_in_any_layout(devices, steps, tmp_path):
    env = rl.envs.cartpole()
    network = rl.networks.MLP(lambda x: x, (16,))
    algorithm = rl.dqn(
        env.observation_space, env.action_space, network, num_envs=8, capacity=1024, batch_size=32, learning_starts=64
    )
    learner = rl.on_device(algorithm, env, 8)
    spread = jdl.jit(jdl.scan(jdl.distribute(learner, devices, 8), steps))
    state, _ = spread.step(spread.init(jax.random.key(0)), None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(steps, state)
    checkpoints.close()
    for mode, mesh in (("single", ""), ("fsdp", "8"), ("data", "4"), ("pmap", "2")):
        like = jdl.jit(jdl.distribute(learner, mode, mesh)).init(jax.random.key(1))
        restored = Checkpoints(tmp_path).restore(like)
        assert restored is not None
        same(restored.tree, state)
