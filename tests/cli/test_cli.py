"""The command, as a user types it: every verb, its help, its JSON, and its answers to mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jdl
from jdl.cli import main as cli
from jdl.experiment import find

ROOT = Path(__file__).parents[2]
TINY = """
\"\"\"A line through noise.\"\"\"
import dataclasses
import flax.linen as nn
import numpy as np
import optax
import jdl

@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float = 0.1

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 20
    offset: float = 0.0
    optimizer: Optimizer = Optimizer()

RANDOM = np.random.default_rng(0)
DATA = {"input": RANDOM.normal(size=(32, 2)).astype(np.float32)}
DATA["target"] = DATA["input"] @ np.ones((2, 1), np.float32)

def learner(config):
    return jdl.supervised(nn.Dense(1), jdl.losses.squared_error, optax.sgd(config.optimizer.rate), example=DATA)

def main(config, run):
    training = jdl.jit(jdl.seeds(jdl.feed(learner(config), 8), run.seeds))
    fitted = jdl.fit(training, DATA, steps=config.steps, run=run, validation=DATA)
    scores = jdl.evaluate(training, fitted.state, DATA)
    return {"loss": scores["loss"] + config.offset}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jdl_command(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert (ended.value.code or 0) == status, output.err + output.out
    return output.out if status == 0 else output.err + output.out


def last_json(output):
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(autouse=True)
def eight_devices(monkeypatch):
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)  # the tests' own are set up already


def test_run_prints_a_table_and_writes_a_report(folder, capsys):
    output = jdl_command(capsys, "run", "tiny", "--seeds", 3, "--run-dir", "out")
    assert "loss" in output
    assert "3 seed" in output
    assert "report.html" in output
    assert (folder / "out" / "report.html").is_file()


@pytest.mark.medium
def test_run_json_is_the_contract(folder, capsys):
    summary = last_json(jdl_command(capsys, "run", "tiny", "--seeds", 2, "--json"))
    assert set(summary) == {"run", "seconds", "metrics"}
    loss = summary["metrics"]["loss"]
    assert set(loss) == {"mean", "low", "high", "values"}
    assert len(loss["values"]) == 2
    np.testing.assert_allclose(loss["mean"], np.mean(loss["values"]))
    assert loss["low"] <= loss["mean"] <= loss["high"]


def test_config_fields_are_options_also_nested_ones(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--steps", 5, "--optimizer.rate", 0.5, "--run-dir", "out")
    assert jdl.Run("out").config == {"steps": 5, "offset": 0.0, "optimizer": {"rate": 0.5}}
    assert jdl.Run("out").rows[-1]["step"] == 5


def test_an_unknown_field_names_the_nearest(folder, capsys):
    message = jdl_command(capsys, "run", "tiny", "--stepz", 5, status=2)
    assert "--stepz" in message
    assert "--steps" in message


def test_a_value_of_the_wrong_type_names_the_field(folder, capsys):
    message = jdl_command(capsys, "run", "tiny", "--steps", "many", status=2)
    assert "--steps" in message
    assert "many" in message
    assert "INT" in message.upper()


def test_what_fails_before_it_trains_leaves_no_folder(folder, capsys):
    assert "steps=0" in jdl_command(capsys, "run", "tiny", "--steps", 0, "--run-dir", "out", status=2)
    assert "profile(0): trace at least 1 call" in jdl_command(capsys, "run", "tiny", "--profile", 0, status=2)
    assert not (folder / "out").exists()
    assert not any((folder / "runs").glob("*/*"))
    (folder / "experiments" / "tiny.py").write_text(
        TINY.replace("return {", "raise OSError({").replace("offset}", "offset})")
    )
    jdl_command(capsys, "run", "tiny", "--run-dir", "out", status=2)
    assert jdl.Run("out").rows  # what was trained stays


def test_an_unknown_experiment_names_the_nearest(folder, capsys):
    message = jdl_command(capsys, "run", "tinny", status=2)
    assert "there is no experiment 'tinny'; did you mean tiny?" in message


@pytest.mark.parametrize("name", ["experiments/tiny.py", "tiny"])
def test_experiments_are_found_by_name_and_file(name, folder):
    assert find.find(name).Config().steps == 20


def test_experiments_are_found_by_dotted_path(folder, monkeypatch):
    package = folder / "somewhere"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(folder))
    assert find.find("somewhere.other").Config().steps == 20


def test_a_module_that_is_no_experiment_says_what_it_lacks(folder, capsys):
    (folder / "experiments" / "empty.py").write_text("x = 1\n")
    assert "has no Config and no main" in jdl_command(capsys, "run", "empty", status=2)


def test_a_config_must_be_frozen(folder, capsys):
    (folder / "experiments" / "loose.py").write_text(TINY.replace("(frozen=True)\nclass Config", "\nclass Config"))
    assert "frozen dataclass" in jdl_command(capsys, "run", "loose", status=2)


def test_less_than_one_seed(folder, capsys):
    assert "--seeds 0: give at least 1 run" in jdl_command(capsys, "run", "tiny", "--seeds", 0, status=2)


def test_a_run_directory_that_exists(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--run-dir", "out")
    message = jdl_command(capsys, "run", "tiny", "--run-dir", "out", status=2)
    assert message.count("\n") == 1
    assert "jdl resume out" in message


def test_resume_of_a_finished_run_is_the_same(folder, capsys):
    first = last_json(jdl_command(capsys, "run", "tiny", "--run-dir", "out", "--json"))
    again = last_json(jdl_command(capsys, "resume", "out", "--json"))
    assert first["metrics"] == again["metrics"]


@pytest.mark.medium
def test_replay_agrees_and_finds_what_differs(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--seeds", 2, "--run-dir", "out")
    assert last_json(jdl_command(capsys, "replay", "out", "--json"))["agrees"] is True
    log = folder / "out" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[3]["train/loss"][1] += 1e-7
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 metrics differ" in jdl_command(capsys, "replay", "out", status=1)


def test_an_unfinished_run_has_nothing_to_agree_with(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--run-dir", "out")
    (folder / "out" / "result.json").unlink()
    assert "jdl resume" in jdl_command(capsys, "replay", "out", status=2)


def test_resume_says_what_has_changed_and_adds_up_the_time(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--run-dir", "out")
    (folder / "out" / "result.json").unlink()
    file = folder / "out" / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"python": "3.1"}))
    log = folder / "out" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"seconds": ', '"seconds": 100'))
    with pytest.raises(SystemExit):
        cli.main(["resume", "out"])
    assert "the environment has changed since the run was made: python was 3.1" in capsys.readouterr().err
    run = jdl.load("out")
    assert run.environment["resumed"][0]["python"] != "3.1"
    assert run.result["seconds"] > 100


SIBLINGS = {
    "experiments/__init__.py": "",
    "experiments/helper.py": "RATE = 0.1",
    "experiments/relative.py": TINY.replace("import jdl\n", "import jdl\nfrom .helper import RATE\n", 1),
    "elsewhere/beside.py": "RATE = 0.1",
    "elsewhere/plain.py": TINY.replace("import jdl\n", "import jdl\nfrom beside import RATE\n", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relative", "elsewhere/plain.py"])
def test_a_copy_finds_the_modules_that_the_original_stood_among(name, folder):
    (folder / "elsewhere").mkdir()
    for file, text in SIBLINGS.items():
        (folder / file).write_text(text)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for arguments in (["run", name, "--run-dir", "out"], ["replay", "out"]):  # each a process of its own
        command = [sys.executable, "-m", "jdl", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr


def test_list_passes_over_what_is_no_experiment(folder, capsys):
    (folder / "experiments" / "helper.py").write_text("raise RuntimeError('imported')")
    (folder / "experiments" / "broken.py").write_text("def main(:")
    (folder / "experiments" / "needy.py").write_text("import absent_package\n" + TINY)
    found = last_json(jdl_command(capsys, "list", "--json"))["experiments"]
    assert found.keys() == {"tiny", "needy", "broken"}
    assert "cannot be read as Python" in found["broken"]


def test_runs_lists_them(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--seeds", 2)
    output = jdl_command(capsys, "runs")
    assert "finished" in output
    assert "tiny" in output
    assert "loss" in output
    assert len(last_json(jdl_command(capsys, "runs", "--json"))["runs"]) == 1


@pytest.mark.medium
def test_report_of_several_runs(folder, capsys):
    for name in ("a", "b"):
        jdl_command(capsys, "run", "tiny", "--run-dir", name)
    reports = last_json(jdl_command(capsys, "report", "a", "b", "--json"))["reports"]
    assert [Path(path).is_file() for path in reports] == [True, True]


@pytest.mark.medium
def test_compare_gives_the_difference_and_the_probability(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--seeds", 4, "--run-dir", "a")
    jdl_command(capsys, "run", "tiny", "--seeds", 4, "--offset", 0.5, "--run-dir", "b")
    (line,) = last_json(jdl_command(capsys, "compare", "a", "b", "--json"))["comparisons"]
    assert line["metric"] == "loss"
    np.testing.assert_allclose(line["difference"]["mean"], 0.5, atol=1e-6)
    np.testing.assert_allclose(line["probability_larger"]["mean"], 1.0)
    assert "compared with a" in jdl_command(capsys, "compare", "a", "b")
    assert "at least 2 run directories" in jdl_command(capsys, "compare", "a", status=2)


@pytest.mark.parametrize("verb", ["list", "run", "resume", "replay", "runs", "report", "compare", "tune", "summary"])
def test_every_verb_has_help(verb, folder, capsys):
    assert "usage: jdl" in jdl_command(capsys, verb, "--help")


def test_help_of_an_experiment_shows_its_config(folder, capsys):
    output = jdl_command(capsys, "run", "tiny", "--help")
    assert "--optimizer.rate" in output
    assert "--seeds" in output
    assert "A line through noise" in output


def test_list_shows_the_experiments_of_the_folder(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    found = last_json(jdl_command(capsys, "list", "--json"))["experiments"]
    assert {"xor", "digits", "fashion_mnist", "tabular"} <= set(found)
    assert all(found.values())


@pytest.mark.slow
def test_a_plan_is_not_mixed_with_what_xla_considers(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)  # JAX sets it, and a process that it starts inherits it
    words = ["plan", "char_lm", "--devices", "fsdp+tensor", "--mesh", "4x2", "--batch-size", "64"]
    result = subprocess.run(
        [sys.executable, "-m", "jdl", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert result.returncode == 0, result.stderr
    assert "all-reduce" in result.stdout
    assert "rematerialization" not in result.stderr


def test_load_in_a_notebook(folder, capsys):
    jdl_command(capsys, "run", "tiny", "--seeds", 3, "--run-dir", "out")
    run = jdl.load("out")
    module = find.find("tiny")
    steps, values = run.metrics["train/loss"]
    assert values.shape == (len(steps), 3)
    outputs = np.asarray(run.predict(module.DATA["input"]))
    assert outputs.shape == (3, 32, 1)
    errors = ((outputs - module.DATA["target"]) ** 2).mean((1, 2))
    best = run.metrics["validation/loss"].values.min(0)
    np.testing.assert_allclose(errors, best, rtol=1e-4)
    assert run.config["steps"] == 20
    assert run.seeds == (0, 1, 2)


def test_a_loaded_script_run_needs_its_learner(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    module = find.find(str(tmp_path / "tiny.py"))
    learner = jdl.feed(module.learner(module.Config()), 8)
    fitted = jdl.fit(jdl.jit(learner), module.DATA, steps=10, run=tmp_path / "run")
    with pytest.raises(LookupError, match="give its learner"):
        jdl.load(tmp_path / "run").predict(module.DATA["input"])
    outputs = jdl.load(tmp_path / "run", learner).predict(module.DATA["input"])
    np.testing.assert_array_equal(outputs, learner.predict(fitted.state, module.DATA))


@pytest.mark.medium
def test_run_from_python(folder):
    run = jdl.run("tiny", seeds=[4], path="out")
    alone = run.result["metrics"]["loss"][0]
    several = jdl.run("tiny", seeds=5, path="several").result["metrics"]["loss"]
    assert several[4] == alone  # run 4 of five, repeated alone, to the bit


def test_play_is_of_the_experiment(folder, capsys):
    game = "def play(config, run, game, index, first):\n    print(game, config.steps, run.seeds[index], first)\n"
    quick = "def main(config, run):\n    return {'loss': [0.0 for _ in run.seeds]}\n"
    (folder / "experiments" / "played.py").write_text(f"{TINY}\n{quick}\n{game}")
    jdl_command(capsys, "run", "played", "--seed-list", 3, 5, "--run-dir", "a")
    assert jdl_command(capsys, "play", "chess", "a", "--seed", 5, "--second") == "chess 20 5 False\n"
    assert jdl_command(capsys, "play", "chess", "a") == "chess 20 3 True\n"
    wrong = jdl_command(capsys, "play", "chess", "a", "--seed", 1, status=2)
    assert "--seed 1: the seeds of a are 3, 5" in wrong
    jdl_command(capsys, "run", "tiny", "--steps", 1, "--run-dir", "b")
    assert "plays no game" in jdl_command(capsys, "play", "chess", "b", status=2)
