"""The notebooks run from top to bottom, and are stored without what they printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)


@each
def test_a_notebook_is_stored_without_outputs(notebook):
    stored = json.loads(notebook.read_text())
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert notebook.stat().st_size < 30_000
    # What an editor adds of its own, such as the version of somebody's Python.
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    assert stored["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in stored["cells"])


@each
def test_each_cell_has_a_name_of_its_own_and_text_before_it(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    names = [cell["id"] for cell in cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z-]+", name) for name in names), names  # editors draw ids at random
    for before, cell in zip([{"cell_type": ""}, *cells], cells, strict=False):
        assert {before["cell_type"], cell["cell_type"]} >= {"markdown"}, f"cell {cell['id']!r} has no text before it"


@each
def test_a_notebook_uses_public_names_alone(notebook):
    source = "".join("".join(cell["source"]) + "\n" for cell in json.loads(notebook.read_text())["cells"])
    assert not re.findall(r"(?:from|import) (?:jdl|rl)\.\S+|\b(?:jdl|rl)\.[\w.]*\b_\w+", source)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@each
def test_a_notebook_runs_from_top_to_bottom(notebook, tmp_path):
    """Its page lies in docs afterwards, where `make docs` takes it instead of executing the notebook again."""
    command = [sys.executable, ROOT / "docs" / "make_notebooks.py", notebook.stem]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1100)
    assert result.returncode == 0, result.stderr
    page = notebook.with_suffix(".md").read_text()
    pictures = re.findall(r"\]\(\.\./(pictures/\S+)\)", page)
    assert pictures
    assert all((ROOT / "docs" / picture).stat().st_size > 1000 for picture in pictures)
    assert "```output" in page
