"""Experiments that are not there any more say what runs them now."""

import pytest

from jdl.experiment import find


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["{}", "rl/{}", "experiments.rl.{}", "experiments/rl/{}.py"])
@pytest.mark.parametrize("method", ["q_learning", "sarsa", "expected_sarsa"])
def test_a_merged_experiment_says_what_runs_it_now(name, method):
    with pytest.raises(LookupError, match=rf"no experiment .*{method}.*: jdl run td --method {method}$"):
        find.find(name.format(method))


def test_an_experiment_of_the_users_own_keeps_such_a_name(folder):
    source = "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config: ...\ndef main(config, run): ..."
    (folder / "experiments" / "sarsa.py").write_text(source)
    assert find.find("sarsa").main is not None
