"""The package as a user installs it: built, in a fresh environment, outside the clone."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import jdl

ROOT = Path(__file__).parents[2]


def run(*command, cwd, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PYTHON"))}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | more, capture_output=True, text=True, timeout=580
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_brings_all_it_takes(tmp_path):
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    assert wheel.name.startswith(f"jdl-{jdl.__version__}-")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {"jdl/py.typed", "rl/py.typed", "jdl/experiments/basics/digits.py"} <= set(inside)
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not any("bench" in name or name.startswith(("tests", "docs")) for name in inside)

    venv.create(tmp_path / "fresh", with_pip=True)
    binaries, place = tmp_path / "fresh" / "bin", tmp_path / "elsewhere"
    place.mkdir()
    run(binaries / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=place)
    listed = run(binaries / "jdl", "list", cwd=place)
    assert "digits" in listed
    assert "ppo" in listed
    run(binaries / "jdl", "run", "digits", "--seeds", "2", "--epochs", "2", "--run-dir", "out", cwd=place)
    assert (place / "out" / "report.html").is_file()
    run(binaries / "jdl", "copy", "digits", cwd=place)
    run(binaries / "jdl", "run", "digits.py", "--smoke", cwd=place)
    version = run(binaries / "python", "-c", "import jdl; print(jdl.__version__)", cwd=place)
    assert version.strip() == jdl.__version__


def test_the_wheel_takes_the_experiments_of_every_domain():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    taken = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    domains = {file.parent.name for file in ROOT.glob("experiments/*/*.py")} - {"bench"}
    assert {Path(name).name for name in taken if Path(name).suffix == ""} == domains


def test_the_version_is_one_everywhere():
    assert f'version = "{jdl.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {jdl.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_an_experiment_is_copied_and_nothing_written_over(tmp_path, monkeypatch, capsys):
    from jdl.cli.main import main

    (tmp_path / "experiments" / "sums").mkdir(parents=True)
    source = (ROOT / "experiments" / "basics" / "xor.py").read_text()
    (tmp_path / "experiments" / "sums" / "xor.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    for status in (0, 2):
        with pytest.raises(SystemExit) as ended:
            main(["copy", "xor"])
        assert (ended.value.code or 0) == status
        assert Path("xor.py").read_text() == source
    assert "xor.py exists; give another file by --to" in capsys.readouterr().err
