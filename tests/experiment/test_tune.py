"""The search: what it proposes, what it counts, what it leaves; a population trains what single trials train."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jdl
from jdl import tune
from jdl.cli import main as cli
from jdl.experiment import execute, find, search_space, study
from jdl.report import study as study_report
from jdl.training import runs

optuna = pytest.importorskip("optuna", reason="hyper-parameter search needs jdl[tune]")

MOONS = '''
"""Two moons, a small network."""
import dataclasses
import flax.linen as nn
import numpy as np
import optax
from sklearn.datasets import make_moons
import jdl
from jdl import tune

@dataclasses.dataclass(frozen=True)
class Optimizer:
    weight_decay: float = 1e-4
    nesterov: bool = False

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 20
    width: int = 8
    learning_rate: float = 0.05
    dropout: float = 0.0
    activation: str = "relu"
    optimizer: Optimizer = Optimizer()

SPACE = {"learning_rate": tune.log(1e-3, 1.0), "optimizer.weight_decay": tune.uniform(0.0, 0.01)}

INPUT, TARGET = make_moons(192, noise=0.2, random_state=0)
DATA = {"input": INPUT.astype(np.float32), "target": TARGET.astype(np.int32)}
TRAIN, VALIDATION = ({name: leaf[part] for name, leaf in DATA.items()} for part in (slice(0, 128), slice(128, None)))

class Network(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, train: bool):
        x = getattr(nn, self.config.activation)(nn.Dense(self.config.width)(x))
        x = nn.Dropout(self.config.dropout, deterministic=not train)(x)
        return nn.Dense(2)(x)

def learner(config):
    optimizer = optax.chain(
        optax.add_decayed_weights(config.optimizer.weight_decay),
        optax.sgd(optax.cosine_decay_schedule(config.learning_rate, config.steps), 0.9, config.optimizer.nesterov),
    )
    network = Network(dataclasses.replace(config, learning_rate=0.0, optimizer=Optimizer()))
    metrics = {"accuracy": jdl.metrics.accuracy}
    return jdl.supervised(network, jdl.losses.cross_entropy, optimizer, example=TRAIN, metrics=metrics)

def main(config, run):
    one = lambda config: jdl.scan(jdl.feed(learner(config), 32), 5)
    training = jdl.jit(tune.together(one, config, run))
    fitted = jdl.fit(training, TRAIN, steps=config.steps, run=run, validation=VALIDATION, evaluate_every=5)
    return jdl.evaluate(training, fitted.state, VALIDATION)
'''

# What a trial is worth is a formula of its settings: no training, so that many trials take no time.
FORMULA = '''
"""A parabola, logged five times."""
import dataclasses, math, os, signal
from pathlib import Path

@dataclasses.dataclass(frozen=True)
class Config:
    x: float = 0.0
    rows: int = 5
    kind: str = "a"
    flag: bool = True

def main(config, run):
    if Path("kill").is_file():
        Path("kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.kind == "broken":
        raise RuntimeError("out of order")
    distance = (config.x - 0.3) ** 2
    for step in range(config.rows):
        values = [(distance + seed / 10) * (config.rows - step) for seed in run.seeds]
        run.log({"step": step, "seconds": 0.0, "validation/loss": values, "validation/other": values})
    return {"loss": [math.nan if config.kind == "infinite" else distance + seed / 10 for seed in run.seeds]}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "moons.py").write_text(MOONS)
    (tmp_path / "experiments" / "formula.py").write_text(FORMULA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)
    return tmp_path


def jdl_command(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert (ended.value.code or 0) == status, output.err + output.out
    return output.out if status == 0 else output.err + output.out


def formula(space=None, **options):
    given = {"trials": 6, "metric": "loss"} | options
    return tune.search("formula", tune.Options(**given), space=space or {"x": tune.uniform(-1.0, 1.0)})


# --- the search


def test_the_log_is_shown_to_observers(tmp_path):
    run = runs.create(tmp_path / "run")
    seen = []
    run.observe(seen.append)
    run.log({"step": 1, "train/loss": 0.5})
    assert seen == run.rows == [{"step": 1, "train/loss": 0.5}]


def test_every_trial_is_a_run_and_the_best_is_repeated_by_its_command(folder, capsys):
    output = jdl_command(
        capsys, "tune", "formula", "--trials", 8, "--metric", "loss", "--seeds", 2, "--no-flag", "--json",
        "--space.x", "-1 1", "--space.kind", "choice a b", "--space.rows", "2 4",
    )  # fmt: skip
    found = json.loads(output.splitlines()[-1])
    assert len(found["trials"]) == 8
    for trial in found["trials"]:
        run = jdl.Run(folder / "runs" / "tune" / "formula" / trial["run"])
        assert run.config == {"flag": False} | trial["settings"]
        assert run.seeds == (0, 1)
        np.testing.assert_allclose(trial["value"], (trial["settings"]["x"] - 0.3) ** 2 + 0.05)
        np.testing.assert_allclose(trial["value"], np.mean(run.final["loss"]))
    assert found["best"]["value"] == min(trial["value"] for trial in found["trials"])
    assert (folder / "runs" / "tune" / "formula" / "report.html").is_file()
    _, verb, *words = shlex.split(found["command"])
    again = json.loads(jdl_command(capsys, verb, *words, "--json").splitlines()[-1])
    assert jdl.Run(again["run"]).config == {"flag": False} | found["best"]["settings"]
    assert again["metrics"]["loss"]["mean"] == found["best"]["value"]
    best = f"runs/tune/formula/{found['best']['run']}"
    assert json.loads(jdl_command(capsys, "replay", best, "--json").splitlines()[-1])["agrees"] is True


def test_a_search_is_determined_by_its_seed(folder):
    first, again, other = (formula(name=n, seed=s, trials=3).trials for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert len({trial.settings["x"] for trial in [*first, *other]}) == 6


def test_the_same_command_continues_the_study(folder):
    whole = formula(name="whole", trials=12)
    formula(name="parts", trials=5)
    assert formula(name="parts", trials=12).trials == whole.trials  # the estimator has begun to learn by then
    assert formula(name="parts", trials=12).trials == whole.trials
    with pytest.raises(ValueError, match=r"another search: metric loss, not validation/loss; give another --name"):
        formula(name="parts", metric="validation/loss")


def test_a_killed_search_goes_on_with_the_trial_that_it_was_at(folder):
    whole = formula(name="whole", trials=4)
    formula(name="killed", trials=2)
    (folder / "kill").touch()
    words = ["tune", "formula", "--name", "killed", "--metric", "loss", "--space.x", "-1 1", "--trials", "4"]
    command = [sys.executable, "-m", "jdl", *words]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    directory = folder / "runs" / "tune" / "killed"
    with (directory / "journal.log").open("a") as journal:
        journal.write('{"op_code": 5, "wor')  # as a power failure would leave it
    (directory / "journal.log.lock").symlink_to(directory / "journal.log")
    assert [trial.state for trial in tune.Study(directory).trials] == ["finished"] * 2
    assert jdl.Run(directory / "trial-0002").result is None
    start = time.monotonic()
    killed = formula(name="killed", trials=4)
    assert time.monotonic() - start < 20  # the dead process's lock is not waited for
    assert killed.trials == whole.trials


def test_a_pruned_trial_stops_where_it_fell_behind(folder):
    found = formula(trials=10, metric="validation/loss", pruner="median", sampler="random")
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    finished = [trial for trial in found.trials if trial.state == "finished"]
    assert pruned
    for trial in pruned:
        before = [other for other in finished if other.number < trial.number]
        assert len(before) >= 5
        run = jdl.Run(found.path / trial.run)
        assert run.result is None
        assert len(run.rows) == 1  # the first row tells all of a parabola
        values = [jdl.Run(found.path / other.run).rows[0]["validation/loss"][0] for other in before]
        assert run.rows[0]["validation/loss"][0] > np.median(values)
    assert found.best == min(finished, key=lambda trial: trial.value)
    execute.execute(jdl.Run(found.path / pruned[0].run))  # as `jdl resume` does
    assert len(jdl.Run(found.path / pruned[0].run).final["loss"]) == 1


def test_hyperband_prunes(folder):
    found = formula(trials=9, metric="validation/loss", pruner="hyperband", sampler="random")
    assert {"finished", "pruned"} == {trial.state for trial in found.trials}


def test_a_trial_that_is_not_finite_or_breaks_is_failed_and_the_search_goes_on(folder):
    space = {"kind": tune.choice("a", "infinite", "broken"), "x": tune.uniform(-1.0, 1.0)}
    found = formula(space, trials=6, seed=3)
    notes = {"a": "", "infinite": "loss is not finite", "broken": "RuntimeError: out of order"}
    assert {trial.settings["kind"] for trial in found.trials} == set(notes)
    for trial in found.trials:
        assert trial.note == notes[trial.settings["kind"]]
        assert trial.state == ("failed" if trial.note else "finished")


def test_an_error_before_any_trial_has_finished_stops_the_search(folder):
    config = find.find("formula").Config(kind="broken")
    with pytest.raises(RuntimeError, match="out of order"):
        tune.search("formula", space={"x": tune.uniform(-1.0, 1.0)}, config=config)
    assert [trial.state for trial in tune.Study("runs/tune/formula").trials] == ["failed"]


@pytest.mark.medium
def test_a_diverged_trial_is_failed(folder):
    space = {"learning_rate": tune.choice(0.01, 1e38)}
    with pytest.warns(RuntimeWarning, match="diverged"):
        found = tune.search("moons", tune.Options(trials=2, sampler="random", seed=0), space=space)
    states = {trial.settings["learning_rate"]: trial.state for trial in found.trials}
    assert states == {0.01: "finished", 1e38: "failed"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "validation/accuracy"}, r"the run logs validation/loss, validation/other; give one of those"),
        ({"metric": "score"}, r"--metric score: the run reports validation/loss, validation/other, loss; give one"),
        ({"trials": 0}, r"--trials 0: give at least 1"),
        ({"storage": "nonsense"}, r"--storage: .*give a URL like sqlite:///study.db"),
        ({"population": 2, "pruner": "median"}, r"--population trains settings to the end together"),
        (
            {"population": 2},
            r"--population 2: formula trained 1 run\(s\) where 2 were wanted; in its main, write",
        ),
    ],
)
def test_bad_options(options, message, folder):
    with pytest.raises((ValueError, LookupError), match=message):
        formula(**options)


@pytest.mark.parametrize(("option", "known"), [("sampler", "tpe, random"), ("pruner", "none, median, hyperband")])
def test_an_unknown_sampler_or_pruner(option, known, folder, capsys):
    options = tune.Options()
    object.__setattr__(options, option, "magic")  # past the type checks of the tests, which users do not have
    with pytest.raises(ValueError, match=f"--{option} magic: there are {known}"):
        tune.search("formula", options, space={"x": tune.uniform(-1.0, 1.0)})
    message = jdl_command(capsys, "tune", "formula", f"--{option}", "magic", status=2)
    assert known.split(", ")[-1] in message


def test_a_directory_is_searched_by_one_process(folder):
    (folder / "held").mkdir()
    with runs.locked(folder / "held"), pytest.raises(OSError, match="another process"):
        formula(study_dir=folder / "held")


def test_machines_share_a_study_through_a_database(folder):
    shared = {"name": "shared", "storage": f"sqlite:///{folder}/study.db"}
    formula(trials=3, study_dir=folder / "one", **shared)
    found = formula(trials=5, study_dir=folder / "two", **shared)
    assert [trial.number for trial in found.trials] == list(range(5))
    assert [":" in trial.run for trial in found.trials] == [True] * 3 + [False] * 2
    assert sorted(path.name for path in (folder / "two").glob("trial-*")) == ["trial-0003", "trial-0004"]


def test_a_field_given_as_an_option_is_fixed(folder):
    declared = 'from jdl import tune\nSPACE = {"x": tune.uniform(0.0, 1.0), "rows": tune.choice(2, 3)}\n'
    (folder / "experiments" / "declared.py").write_text(FORMULA + declared)
    found = tune.search("declared", tune.Options(trials=1), config=find.find("declared").Config(x=0.5))
    assert list(found.trials[0].settings) == ["rows"]


# --- several settings in one program


@pytest.mark.slow
def test_a_population_trains_what_single_trials_train(folder):
    options = tune.Options(trials=2, population=2, seeds=2, metric="validation/accuracy")
    fixed = find.find("moons").Config(dropout=0.3)  # with the same masks as alone
    found = tune.search("moons", options, config=fixed)
    module = find.find("moons")
    for trial in found.trials:
        together = jdl.Run(found.path / trial.run)
        config = search_space.replaced(fixed, trial.settings)
        alone = execute.run(module, config, seeds=2, path=folder / f"alone-{trial.number}")
        assert together.config == alone.config
        assert together.metrics.keys() == alone.metrics.keys()
        for name, series in alone.metrics.items():
            np.testing.assert_array_equal(together.metrics[name].steps, series.steps)
            np.testing.assert_allclose(together.metrics[name].values, series.values, rtol=1e-6, atol=1e-6)
        for name, values in alone.final.items():
            np.testing.assert_allclose(together.final[name], values, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(trial.value, alone.metrics["validation/accuracy"].values[-1].mean(), atol=1e-6)
        outputs = jdl.load(together.path).predict(module.VALIDATION["input"])
        np.testing.assert_allclose(outputs, jdl.load(alone.path).predict(module.VALIDATION["input"]), atol=1e-5)
        all_of_them = jdl.load(found.path / "together-0000").predict(module.VALIDATION["input"])
        np.testing.assert_array_equal(all_of_them[trial.number :: 2], outputs)
    assert found.best is not None
    assert found.best.value == max(trial.value for trial in found.trials) > min(trial.value for trial in found.trials)


def test_a_killed_population_goes_on(folder):
    options = tune.Options(trials=3, population=3, metric="validation/accuracy")
    whole = tune.search("moons", options)
    journal = (whole.path / "journal.log").read_text().splitlines(keepends=True)
    first_told = next(place for place, line in enumerate(journal) if '"values":[' in line)
    (whole.path / "journal.log").write_text("".join(journal[: first_told + 1]))  # killed between two trials' ends
    assert [trial.value for trial in tune.search("moons", options).trials] == [trial.value for trial in whole.trials]


@pytest.mark.medium
def test_the_run_of_a_population_is_repeated_whole_and_continued_by_its_search_alone(folder, capsys):
    found = tune.search("moons", tune.Options(trials=2, population=2, metric="validation/accuracy"))
    shared = jdl.Run(found.path / "together-0000")
    refused = jdl_command(capsys, "compare", shared.path, shared.path, status=2)
    assert re.search(r"trains 2 settings, which are no repetitions of one another; give its trials", refused)
    copy, differences = execute.replay(shared)
    assert differences == []
    assert len(copy.final["loss"]) == 2
    assert copy.path.name == "together-0000-replay"
    assert "replay" not in jdl_command(capsys, "runs", found.path, "--json")
    message = r"together-0000 trains 2 trials of a search in one program; continue the search with"
    (shared.path / "environment.json").write_text(json.dumps({"command": ["jdl", "tune", "moons", "--seeds", "1"]}))
    assert re.search(message + " `jdl tune moons --seeds 1`", jdl_command(capsys, "resume", shared.path, status=2))
    (shared.path / "result.json").unlink()
    module = find.find("moons")
    config = search_space.replaced(module.Config(), found.trials[0].settings)
    with pytest.raises(ValueError, match=message):  # the folder's config and seeds are these
        execute.begun(module, config, (0,), shared.path)


def test_a_single_trial_that_branches_on_a_traced_value_is_told_so_as_anywhere(folder):
    branching = FORMULA.replace('raise RuntimeError("out of order")', "jax.jit(lambda x: 1 if x > 0 else 0)(1.0)")
    (folder / "experiments" / "branching.py").write_text(
        branching.replace("import dataclasses", "import jax, dataclasses")
    )
    space = {"x": tune.uniform(-1.0, 1.0)}
    with pytest.raises(jax.errors.TracerBoolConversionError):  # and not by words on --population
        tune.search("branching", space=space, config=find.find("branching").Config(kind="broken"))


def test_a_field_that_cannot_be_traced(folder):
    space = {"dropout": tune.uniform(0.1, 0.5)}
    options = tune.Options(trials=2, population=2)
    with pytest.raises(TypeError, match=r"branches on one of learning_rate, optimizer.weight_decay, dropout"):
        tune.search("moons", options, space=space)
    with pytest.raises(ValueError, match=r"--population: width is no floating-point field; fix it, or search without"):
        tune.search("moons", options, space={"width": tune.uniform(4, 8)})


# --- what it leaves


def test_the_report_holds_figures_trials_and_the_command(folder, capsys):
    space = {"kind": tune.choice("a", "infinite"), "x": tune.uniform(-1.0, 1.0)}
    found = formula(space, trials=9)
    path = study_report.write(found)
    page = path.read_text()
    assert page.count("<img") == 3
    assert found.command is not None
    assert found.command in page
    assert "loss is not finite" in page
    for name in ("optimization_history", "importances", "parallel_coordinates"):
        assert (found.path / "figures" / f"{name}.png").stat().st_size > 3000
    assert found.importances is not None
    np.testing.assert_allclose(sum(found.importances.values()), 1)
    path.unlink()
    assert str(path) in jdl_command(capsys, "report", "runs/tune/formula").replace("\n", "")
    assert path.read_text() == page


def test_importances_agree_with_a_function_of_one_field(folder):
    space = {"x": tune.uniform(-1.0, 1.0), "rows": tune.uniform(2, 9)}
    found = formula(space, trials=20, sampler="random")
    assert found.importances is not None
    assert found.importances["x"] > 0.8


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no study directory .*`jdl tune` makes one"):
        tune.Study(tmp_path)


def test_the_last_finite_value_of_each_run_counts():
    series = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    np.testing.assert_array_equal(study.last_values(series), [3.0, 2.0, np.nan])
    np.testing.assert_array_equal(study.last_values(series[:, 0]), [3.0])


def test_the_metric_as_rows_come_in_is_that_of_the_whole_log(tmp_path):
    run = runs.create(tmp_path / "run", seeds=(0, 1))
    rows = [[4.0, 3.0], None, [2.0, None], [1.0, None], [None, None]]
    logged = study.Logged(run, "validation/loss")
    for place, values in enumerate(rows):
        row = {"step": place, "train/loss": [0.0, 0.0]} | ({"validation/loss": values} if values else {})
        run.log(row)
        expected = None
        if values:
            series = run.metrics["validation/loss"].values
            expected = (len(series) - 1, study.last_values(series).mean())
        assert logged(row) == expected
    assert study.Logged(run, "validation/loss")(row) == (3, 2.0)  # one that comes later, to a resumed run


def test_help_shows_the_space(folder, capsys):
    output = jdl_command(capsys, "tune", "moons", "--help")
    assert "--space.optimizer.weight-decay RANGE" in output
    assert "log 0.001 1.0" in output
    assert "usage: jdl tune" in jdl_command(capsys, "tune", "--help")
    message = jdl_command(capsys, "tune", "moons", "--space.rate", "0 1", status=2)
    assert "the space has 'rate', which the Config lacks; its fields are steps, width, learning_rate" in message
