"""Options that are not quite right: old names, first letters, misspelt fields."""

import pytest

from jdl.cli import main as cli

EXPERIMENT = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float = 0.1

@dataclasses.dataclass(frozen=True)
class Config:
    n_step: int = 1
    num_steps: int = 8
    labeled: bool = True
    optimizer: Optimizer = Optimizer()

RENAMED = {"n_steps": "n_step", "labelled": "labeled"}

def main(config, run):
    return {"n_step": float(config.n_step), "labeled": float(config.labeled)}
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)  # the tests' own are set up already
    (tmp_path / "small.py").write_text(EXPERIMENT)

    def run(*words, status=2):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err + output.out
        return output.out + output.err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n-ste", "3"], "there is no option --n-ste; did you mean --n-step? ("),
        (["--n", "3"], "there is no option --n; did you mean --n-step or --num-steps? ("),
        (["--n_s=3"], "did you mean --n-step? ("),
        (["--seed", "3"], "did you mean --seeds or --seed-list? ("),
        (["--optimizer.ra", "3"], "did you mean --optimizer.rate? ("),
        (["--nstep", "3"], "--n-step INT"),
        (["--optimiser.rate", "3"], "--optimizer.rate FLOAT"),
        (["--n-stepz", "3"], "--n-step INT"),
    ],
)
def test_an_option_that_does_not_exist_names_the_nearest(words, message, command):
    assert message in " ".join(command("run", "small.py", *words).split())


def test_old_names_are_understood_with_a_note(command, tmp_path):
    said = command("run", "small.py", "--n-steps", "3", "--no-labelled", "--run-dir", "out", "--json", status=0)
    assert "--n-steps is called --n-step now" in said
    assert "--no-labelled is called --no-labeled now" in said
    assert '"n_step": {"mean": 3.0' in said
    assert '"labeled": {"mean": 0.0' in said
    assert "--n_steps is called --n-step now" in command("run", "small.py", "--n_steps=x")


@pytest.mark.parametrize(("verb", "group"), [("tune", "space"), ("sweep", "grid")])
def test_fields_of_a_group_too(verb, group, command):
    said = command(verb, "small.py", f"--{group}.n-step", "1", f"--{group}.num-stepz=1 2")
    assert f"--{group}.num-stepz: did you mean num_steps" in said
    said = command(verb, "small.py", f"--{group}.n-steps", "x y")
    assert f"--{group}.n-steps is called --{group}.n-step now" in said
    assert "'x' is no " in said


def test_a_command_that_does_not_exist_names_the_nearest(command):
    assert "there is no command 'runz'; did you mean run or runs?" in command("runz")
    assert "`jdl --help` describes them (there are list, copy, run," in command("frobnicate")


def test_a_command_names_options_of_its_own_only(command):
    said = command("runs", "--jsn")
    assert "--json" in said
    assert "jdl runs --help" in said
    assert "compare" not in said
