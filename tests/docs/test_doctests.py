"""The examples of the docstrings: each does what it shows, and stands in the section `Examples:`."""

import ast
import doctest
import importlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
import rl

ROOT = Path(__file__).parents[2]
FILES = [
    file for package in ("jdl", "rl") for file in sorted((ROOT / package).rglob("*.py")) if ">>> " in file.read_text()
]
USUAL = {"jax": jax, "jnp": jnp, "jdl": jdl, "nn": nn, "np": np, "optax": optax, "rl": rl}  # that a reader has imported
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def docstrings(file):
    """Those that have examples, by the name of what they describe; read from the source, whatever wraps a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if ">>> " in text:
                yield getattr(node, "name", "the module"), text


@pytest.mark.parametrize("file", FILES, ids=name)
def test_the_examples_of_a_module_do_what_they_show(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name(file))
    for what, text in docstrings(file):
        case = doctest.DocTestParser().get_doctest(text, USUAL | vars(module), what, str(file), 0)
        written = []
        result = doctest.DocTestRunner(optionflags=FLAGS).run(case, out=written.append)
        assert result.failed == 0, "".join(written)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_examples_stand_in_their_section(file):
    misplaced = []
    for what, text in docstrings(file):
        section = ""
        for line in text.splitlines():
            section = line if line.strip() and not line.startswith(" ") else section
            if ">>> " in line and section != "Examples:":
                misplaced.append(f"{what}: {line.strip()}")
    assert misplaced == []
