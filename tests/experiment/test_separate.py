"""Seeds in processes of their own."""

import json

import numpy as np
import pytest

import jdl

# The second seed trains for fewer calls than a profile leaves out.
EXPERIMENT = '''
"""Irises, each seed in a process."""
import dataclasses
import optax
import jdl

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 30

def main(config, run):
    if len(run.seeds) > 1:
        return jdl.separately(run)
    data = jdl.data.iris()
    one = jdl.supervised(jdl.nn.MLP((4, 3)), jdl.losses.cross_entropy, optax.sgd(0.1), example=data.train)
    training = jdl.jit(jdl.seeds(jdl.scan(jdl.feed(one, 16), 3), run.seeds))
    steps = config.steps if run.seeds == (0,) else 6
    return jdl.evaluate(training, jdl.fit(training, data.train, steps=steps, run=run).state, data.test)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "irises.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.medium
def test_each_seed_is_profiled_in_its_process(folder, capsys):
    with jdl.profile(3):
        run = jdl.run("irises", seeds=2, path="out")
    assert np.shape(run.final["loss"]) == (2,)
    times = json.loads((folder / "out" / "seed-0" / "profile" / "times.json").read_text())
    assert times["calls"] == 3
    assert list((folder / "out" / "seed-0" / "profile").rglob("*.trace.json.gz"))
    shown = capsys.readouterr().err
    assert "seed-0: 3 calls of 3 update(s), " in shown
    assert "waiting for the device" in shown
    assert "seed-1: there is no profile; " in shown
    assert "there is no profile: the fit made 2 calls" in (folder / "out" / "seed-1" / "output.txt").read_text()
