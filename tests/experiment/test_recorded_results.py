"""Results are kept as records, and tables are what the records say."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from jdl.cli.main import main
from jdl.experiment import find, records

EXPERIMENT = '''
"""A number.

Run:       jdl run number
Result:
"""
import dataclasses
import jdl

@dataclasses.dataclass(frozen=True)
class Config:
    size: float = 1.0
    fetch: bool = False

SMOKE = {"size": 0.5}
RECORDS = {
    "": jdl.Record(seeds=3, bars={"value": ">= 2"}, beside="two"),
    "large": jdl.Record({"size": 10.0}, seeds=2, bars={"value": "<= 1"}),
}

def main(config, run):
    return {"value": [config.size + 1.0 + seed for seed in run.seeds], "other": config.size}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # Python takes a compiled file for a changed one of the same size and second.
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("jdl.runtime.cores.ask_for_devices", lambda count: True)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "experiments" / "sums"
    place.mkdir(parents=True)
    (place / "number.py").write_text(EXPERIMENT)
    (place / "README.md").write_text("# Sums\n\n<!-- results -->\n<!-- end -->\n\nMore.\n")
    return tmp_path


def jdl_(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert (ended.value.code or 0) == status, output.err + output.out
    return output.out if status == 0 else output.err


def rows(capsys):
    return {row["name"]: row for row in json.loads(jdl_(capsys, "results", "--json").splitlines()[-1])["rows"]}


def test_a_run_is_kept_and_listed(folder, capsys):
    before = rows(capsys)
    assert before["number"] == {
        "name": "number", "domain": "sums", "metric": "value", "mean": None, "low": None, "high": None, "values": [],
        "bar": 2.0, "ok": False, "stale": True,
    }  # fmt: skip
    jdl_(capsys, "run", "number", "--seeds", 3, "--record")
    kept = json.loads((folder / "experiments" / "sums" / "results" / "number.json").read_text())
    assert kept["command"] == "jdl run number --seeds 3"
    assert kept["metrics"]["value"] == [2.0, 3.0, 4.0]
    assert {"config", "seconds", "date", "devices", "versions", "git", "fingerprint"} <= kept.keys()
    row = rows(capsys)["number"]
    assert row["mean"] == 3.0
    assert row["low"] < 3.0 < row["high"]
    assert row["ok"] is True
    assert row["stale"] is False
    assert "reached" in jdl_(capsys, "results", "sums")


def test_a_record_is_stale_once_the_program_changes_and_not_for_words(folder, capsys):
    file = folder / "experiments" / "sums" / "number.py"
    jdl_(capsys, "run", "number", "--seeds", 3, "--record")
    for unchanged in (
        EXPERIMENT.replace("A number.", "A number, explained."),
        EXPERIMENT.replace("    size:", "    # how large\n    size:"),
        EXPERIMENT.replace(">= 2", ">= 1"),
    ):
        file.write_text(unchanged)
        assert rows(capsys)["number"]["stale"] is False
    for changed in (
        EXPERIMENT.replace("+ 1.0", "+ 1.5"),
        EXPERIMENT.replace("seeds=3", "seeds=4"),
        EXPERIMENT.replace("size: float = 1.0", "size: float = 2.0"),
    ):
        file.write_text(changed)
        assert rows(capsys)["number"]["stale"] is True


def test_settings_that_are_tuned_for_others_make_no_record_stale(folder, capsys):
    file = folder / "experiments" / "sums" / "number.py"
    tuned = EXPERIMENT + "\nSMALL = {'rate': 1}\nTUNED = {'1.0': SMALL, 'other': SMALL}\n"
    file.write_text(tuned)
    jdl_(capsys, "run", "number", "--seeds", 3, "--record")
    for unchanged in (
        tuned.replace("'other': SMALL", "'other': {'rate': 2}"),
        tuned.replace("'other': SMALL", "'other': SMALL, 'third': {}"),
        tuned.replace("SMALL", "LITTLE"),
    ):
        file.write_text(unchanged)
        assert rows(capsys)["number"]["stale"] is False
    for changed in (
        tuned.replace("'rate': 1", "'rate': 2"),
        tuned.replace("'1.0': SMALL, ", ""),
        tuned + "print(SMALL)\n",
    ):
        file.write_text(changed)
        assert rows(capsys)["number"]["stale"] is True


def test_what_is_not_declared_is_named_by_its_options(folder, capsys):
    jdl_(capsys, "run", "number", "--size", 4, "--fetch", "--record")
    assert (folder / "experiments" / "sums" / "results" / "number-size-4.0.json").is_file()
    module = find.find("number")
    assert records.of_config(module, module.Config(size=10.0, fetch=True)).name == "number-large"


@pytest.mark.medium
def test_tables_are_written_from_records_and_held_against_them(folder, capsys):
    readme = folder / "experiments" / "sums" / "README.md"
    jdl_(capsys, "measure", "number")
    assert "results differ from their records" in jdl_(capsys, "results", "--check", status=2)
    jdl_(capsys, "results", "--write")
    jdl_(capsys, "results", "--check")
    text = readme.read_text()
    assert "| `jdl run number --seeds 3` | 0 s | value 3 [" in text
    assert "(bar >= 2) | two |" in text
    assert "| `jdl run number --size 10.0 --seeds 2` |  | value not measured (bar <= 1) |" in text
    assert text.endswith("<!-- end -->\n\nMore.\n")
    assert "Result:    value 3 [" in (folder / "experiments" / "sums" / "number.py").read_text()
    readme.write_text(text.replace("value 3 ", "value 4 "))
    assert "README.md; run `make results`" in jdl_(capsys, "results", "--check", status=2)
    jdl_(capsys, "run", "number", "--size", 10, "--seeds", 2, "--record")
    jdl_(capsys, "results", "--write")
    assert "(bar <= 1, missed)" in readme.read_text()


def test_a_page_shows_an_experiments_results_and_says_what_is_stale(folder, capsys):
    (folder / "docs").mkdir()
    page = folder / "docs" / "page.md"
    example = "```text\n<!-- results -->\nas in a README\n<!-- end -->\n```\n"
    page.write_text(f"<!-- results of number -->\n<!-- end -->\n{example}")
    jdl_(capsys, "measure", "number")
    jdl_(capsys, "results", "--write")
    assert "| `jdl run number --seeds 3` | 0 s | value 3 [" in page.read_text()
    assert page.read_text().endswith(example)
    assert "stale" not in page.read_text()
    source = folder / "experiments" / "sums" / "number.py"
    source.write_text(source.read_text().replace("+ 1.0", "+ 2.0"))
    assert "page.md" in jdl_(capsys, "results", "--check", status=2)
    jdl_(capsys, "results", "--write")
    assert "| two; stale: the experiment has changed since |" in page.read_text()
    page.write_text("<!-- results of numbers -->\n<!-- end -->\n")
    assert "has a table of numbers; the records are" in jdl_(capsys, "results", "--check", status=2)


def test_what_is_stale_is_measured_again_and_nothing_else(folder, capsys):
    assert "number: not measured yet" in jdl_(capsys, "measure", "--list")
    jdl_(capsys, "measure", "number")
    assert list(rows(capsys)["number"]["values"]) == [2.0, 3.0, 4.0]
    listed = jdl_(capsys, "measure", "--list")
    assert "number:" not in listed
    assert "number-large: not measured yet" in listed
    assert "there is no record 'sum'" in jdl_(capsys, "measure", "sum", status=2)


def test_a_stopped_measurement_goes_on_unless_the_experiment_has_changed(folder, capsys, monkeypatch):
    run, source = folder / "runs" / "records" / "number", folder / "experiments" / "sums" / "number.py"
    jdl_(capsys, "run", "number", "--seeds", 3, "--run-dir", run)
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda words: asked.append(Path(words[-1])) or SimpleNamespace(returncode=0))
    jdl_(capsys, "measure", "number")  # beside the finished one
    (run / "result.json").unlink()
    jdl_(capsys, "measure", "number")
    source.write_text(source.read_text().replace("+ 1.0", "+ 2.0"))
    jdl_(capsys, "measure", "number")
    assert [one.name for one in asked] == ["number-2", "number", "number-2"]


@pytest.mark.parametrize("bar", ["0.9", "> 1", ">= x"])
def test_a_bar_that_is_none(bar):
    with pytest.raises(ValueError, match=r'a bar is ">= 0\.93" or "<= 1.88"'):
        records.parsed(bar)


def test_smoke_takes_the_smallest_sizes_and_options_still_count(folder, capsys):
    found = json.loads(jdl_(capsys, "run", "number", "--smoke", "--json").splitlines()[-1])
    assert found["metrics"]["other"]["values"] == [0.5]
    found = json.loads(jdl_(capsys, "run", "number", "--smoke", "--size", 7, "--json").splitlines()[-1])
    assert found["metrics"]["other"]["values"] == [7.0]
    assert "give one of them" in jdl_(capsys, "run", "number", "--smoke", "--record", status=2)
