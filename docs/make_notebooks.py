"""The notebooks as pages of the documentation: each is executed and written as Markdown; `make docs` calls it.

    python docs/make_notebooks.py [NAME ...]

A page lies beside its notebook and is not committed. Anything that a notebook writes to stderr, such as a warning, is
an error.
"""

import argparse
import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

DOCS = Path(__file__).parent
NOTEBOOKS = {file.stem: file for file in sorted((DOCS / "notebooks").glob("*.ipynb"))}
KINDS = {"image/png": "png", "image/gif": "gif"}
SECONDS = 900  # for one cell, on a busy machine


def main() -> None:
    """Write the pages that are missing or older than their notebooks, or those that were named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to execute, whatever their page's age")
    arguments = parser.parse_args()
    for name, file in NOTEBOOKS.items():
        page = file.with_suffix(".md")
        old = not page.is_file() or page.stat().st_mtime < file.stat().st_mtime
        if name in arguments.names or (old and not arguments.names):
            text = written(executed(file), name, DOCS / "pictures")
            page.write_text(text)


def executed(file: Path) -> Any:
    """The notebook with its outputs; it runs in an empty folder."""
    notebook = nbformat.read(file, 4)
    quiet = ["--log-level=ERROR"]  # a kernel that is only ours need not warn of its open port
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=quiet).execute()
    return notebook


def written(notebook: Any, name: str, pictures: Path) -> str:
    """The page of an executed notebook; its pictures go into a folder."""
    pictures.mkdir(parents=True, exist_ok=True)
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise RuntimeError(f"{name}, cell {cell.id!r}, wrote to stderr:\n{output.text}")
            parts.append(_shown(output, f"{name}_{cell.id}", pictures))
    title, rest = parts[0].split("\n", 1)
    parts[0] = f"{title}\n\nThis page is the notebook [`{name}.ipynb`]({name}.ipynb), executed.\n{rest}"
    return "\n\n".join(parts) + "\n"


def _shown(output: Any, name: str, pictures: Path) -> str:
    data = output.get("data", {})
    for kind, ending in KINDS.items():
        if kind in data:
            (pictures / f"{name}.{ending}").write_bytes(base64.b64decode(data[kind]))
            return f"![What the cell draws](../pictures/{name}.{ending})"
    text = output.text if "text" in output else data["text/plain"]
    return f"```output\n{re.sub(r'\x1b\[[0-9;]*m', '', text).rstrip()}\n```"


if __name__ == "__main__":
    main()
