"""Every command and snippet of the README, executed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
IN_CI = ("make train", "make test")  # a test cannot run the tests


def commands():
    lines = [line.split("#")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_from_top_to_bottom(tmp_path):
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "JDL_COMPILATION_CACHE": "on",
    }  # fmt: skip
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")

    def run(*command, **options):
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, **options
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    # What the snippets print.
    expected = iter(
        [
            r"\(8, 3, 1\)",
            r"^[01]$",
            r"^True$",
            r"^\[\d+\.\d* +\d+\.\d*\]",
            r"^True$",
            r"^40$",
            r"\(None, .data.\)",
        ]
    )
    for kind, block in BLOCKS:
        named = re.match(r"# (\w+\.py)\n", block)
        if kind == "python" and named:
            (tmp_path / named[1]).write_text(block)
            assert len([line for line in block.splitlines()[2:] if line.strip()]) <= 25
        elif kind == "python":
            printed = run(sys.executable, "-W", "error", "-c", block)
            assert re.search(next(expected), printed), printed
        else:
            for line in block.splitlines():
                command = line.split("#")[0].strip()
                if command and command not in IN_CI:
                    run("sh", "-c", command)
    report = (tmp_path / "runs" / "wide" / "report.html").read_text()
    assert "data:image/png;base64" in report


def test_what_a_test_cannot_run_is_run_in_ci():
    script = (ROOT / ".ci" / "run").read_text()
    for command in IN_CI:
        assert command in commands()
        assert re.search(rf"^{command}$", script, re.MULTILINE)


def test_inline_commands_exist():
    modules = re.findall(r"`python -m ([\w.]+)`", README)
    assert modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    for target in re.findall(r"`(make [^`]*)`", README):
        result = subprocess.run(["make", "-n", *target.split()[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_the_accelerators_environments_resolve(extra):
    """`make env EXTRA=...` downloads gigabytes; that its packages exist and fit the pins can be seen without."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-c", "constraints.txt", f".[{extra}]"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
