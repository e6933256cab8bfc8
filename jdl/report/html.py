"""Parts of an HTML page: sections, tables, tiles and images. A page is one file that holds its images."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jdl.runtime.files import write_bytes
from jdl.training.runs import FIGURE_DPI

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2733; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 17px; margin: 0 0 12px; }
.lead { color: #5b6675; margin: 4px 0 24px; }
section { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 20px 24px; margin: 0 0 18px; }
img { max-width: 100%; height: auto; display: block; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 0 0 18px; }
.tile { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 14px 20px; min-width: 150px; }
.tile b { display: block; font-size: 26px; font-variant-numeric: tabular-nums; }
.tile span { color: #5b6675; font-size: 13px; }
.pair { display: flex; flex-wrap: wrap; gap: 18px; } .pair section { flex: 1 1 420px; min-width: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100%; }
td, th { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #eef0f3; vertical-align: top; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13.5px; }
th { color: #5b6675; font-weight: 500; } td.value { overflow-wrap: anywhere; }
.note { color: #5b6675; font-size: 13px; margin: 10px 0 0; } .warn { color: #a8400f; }
"""


def document(title: str, lead: Sequence[str], body: Sequence[str]) -> str:
    """Write a whole page.

    Args:
        title: the heading.
        lead: facts for the line below the heading.
        body: the page's parts, each HTML.
    """
    heading = f"<h1>{escape(title)}</h1><p class=lead>{escape(' · '.join(lead))}</p>"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main>{heading}{''.join(body)}</main></html>\n"
    )


def section(title: str, content: str) -> str:
    """Frame HTML under a title."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def image(title: str, source: str, text: str) -> str:
    """Write a section with an image and a note below.

    Args:
        title: the section's title, and the text in place of the image for those who cannot see it.
        source: the image as a data URI, from `save` or `read`.
        text: the note.
    """
    return section(title, f"<img src='{source}' alt='{escape(title)}'>{note(text)}")


def pair(sections: Sequence[str]) -> str:
    """Put sections side by side where the window is wide enough."""
    return f"<div class=pair>{''.join(sections)}</div>" if sections else ""


def note(text: str, warn: bool = False) -> str:
    """Write a remark in small print, or as a warning."""
    return f"<p class='{'note warn' if warn else 'note'}'>{escape(text)}</p>"


def code(text: str) -> str:
    """Write a command or a program."""
    return f"<pre>{escape(text)}</pre>"


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Show a few numbers large, each with a title above and a note below.

    Args:
        numbers: title, number and note of each tile.
    """
    shown = (
        f"<div class=tile><span>{escape(title)}</span><b>{escape(value)}</b><span>{escape(text)}</span></div>"
        for title, value, text in numbers
    )
    return f"<div class=tiles>{''.join(shown)}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None) -> str:
    """Write a table of plain text.

    Args:
        head: the titles of the columns.
        rows: the cells, row by row.
        bold: the index of a column to print in bold.
    """
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = []
    for row in rows:
        cells = (f"<b>{escape(cell)}</b>" if place == bold else escape(cell) for place, cell in enumerate(row))
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"


def facts(values: Mapping[str, Any]) -> str:
    """Write a table of names and values, flattened as by `flat`.

    Args:
        values: nested dictionaries of strings and other values that JSON has.
    """
    rows = []
    for name, value in flat(values).items():
        shown = value if isinstance(value, str) else json.dumps(value)
        rows.append(f"<tr><th>{escape(name)}</th><td class=value>{escape(shown)}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else note("Nothing set.")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one, its names joined by dots and preceded by `prefix`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def save(figure: Figure, file: Path) -> str:
    """Save a figure as a PNG file, in a folder that is made if need be.

    Returns:
        The image as a data URI.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
    file.parent.mkdir(exist_ok=True)
    write_bytes(file, buffer.getvalue())
    return _data_uri(buffer.getvalue(), "png")


def read(file: Path) -> str:
    """Read an image file as a data URI; the file's suffix says what it is."""
    return _data_uri(file.read_bytes(), file.suffix.removeprefix("."))


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
