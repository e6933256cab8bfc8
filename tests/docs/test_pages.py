"""Every command and snippet of the README and of the documentation, executed, page by page."""

import doctest
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITTEN = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.with_suffix(".ipynb").is_file()]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *WRITTEN]  # a notebook's page is made from it, and tested there
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHOWN = {"text", "toml", "yaml", "json", "mermaid", "output"}  # not executed
IN_CI = ("make train", "make test")  # a test cannot run the tests
COMPUTING = ("README",)  # compiled as a user's programs are; what others run compiles more than it computes
CHECK = doctest.OutputChecker()


def blocks(page):
    return BLOCK.findall(page.read_text())


def commands(block):
    return [line for line in block.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]


def executed(page):
    return [kind for kind, _ in blocks(page) if kind in ("bash", "python")]


def name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if executed(page)], ids=name)
def test_a_page_from_top_to_bottom(page, tmp_path):
    """A block that begins "# file.py" is that file; what is printed is like the block "output" after it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if name(page) in COMPUTING:
        del environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")

    def run(*command):
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    printed = ""
    for kind, block in blocks(page):
        named = re.match(r"# (\w+\.py)\n", block)
        if kind == "python" and named:
            (tmp_path / named[1]).write_text(block)
        elif kind == "python":
            printed = run(sys.executable, "-W", "error", "-c", block)
        elif kind == "bash":
            due = [command for command in commands(block) if command.split("#")[0].strip() not in IN_CI]
            printed = "".join(run("sh", "-c", command) for command in due)
        elif kind == "output":
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert CHECK.check_output(block, printed, flags), f"shown:\n{block}\nprinted:\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_no_block_that_nobody_runs(page):
    for kind, _ in blocks(page):
        assert kind in {"bash", "python", *SHOWN}, kind
    fences = page.read_text().count("\n```")
    assert fences == 2 * len(blocks(page)), "a fence without a language, or within another"


def test_what_a_test_cannot_run_is_run_in_ci():
    script = (ROOT / ".ci" / "run").read_text()
    said = [command.split("#")[0].strip() for _, block in blocks(PAGES[0]) for command in commands(block)]
    made = {target for line in script.splitlines() if line.startswith("make ") for target in line.split("#")[0].split()}
    for command in IN_CI:
        assert command in said
        assert command.removeprefix("make ") in made


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_inline_commands_exist(page):
    for module in re.findall(r"`python -m ([\w.]+)[^`]*`", page.read_text()):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for target in re.findall(r"`(make [^`<]*)`", page.read_text()):
        result = subprocess.run(["make", "-n", *target.split()[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_accelerators_environments_resolve():
    """`make env EXTRA=...` downloads gigabytes; that its packages exist and fit the pins can be seen without."""
    words = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-c", "constraints.txt"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [
        subprocess.Popen([*words, *extras[extra]], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for extra in ("cuda12", "cuda13", "tpu")
    ]
    for one in asked:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
