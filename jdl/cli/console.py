"""Output that several commands share: tables, intervals, JSON, the result of a run."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jdl.runtime import processes
from jdl.training.runs import Run

console = Console()

_NARROWEST = 14  # characters that a folded column keeps
_BORDERS = 3  # characters that a table adds to each column, and one more in all


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], fold: Collection[str] = ()) -> None:
    """Print a table.

    A terminal that is too narrow for it folds the columns named in `fold`, never numbers; if that does not suffice,
    each row is printed as a list of its cells. Where the output is no terminal, a row is always one line.

    Args:
        columns: the headings.
        rows: the cells, row by row. A cell may have several lines.
        fold: headings of the columns that hold text.
    """
    if not console.is_terminal:
        rows = [["  ".join(cell.splitlines()) for cell in row] for row in rows]
    widths = [
        max(cell_len(line) for cell in cells for line in [*cell.splitlines(), ""])
        for cells in zip(columns, *rows, strict=True)
    ]
    if console.is_terminal:
        room = console.width - _BORDERS * len(columns) - 1
        folded = [place for place, name in enumerate(columns) if name in fold]
        while sum(widths) > room:
            widest = max(folded, key=widths.__getitem__, default=None)
            if widest is None or widths[widest] <= _NARROWEST:
                _show_records(columns, rows)
                return
            widths[widest] -= 1
        rows = [[_folded(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    table = Table()
    for name, width in zip(columns, widths, strict=True):
        table.add_column(Text(name), width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    whole = sum(widths) + _BORDERS * len(columns) + 1
    (console if console.is_terminal else Console(file=console.file, width=whole)).print(table)


def _folded(cell: str, width: int) -> str:
    """Break the lines of a cell that are too long, after spaces and the signs that join the parts of names."""
    lines = []
    for line in cell.splitlines():
        lines.append("")
        for part in re.findall(r"\s*[^\s/_-]*[/_-]*", line):
            if lines[-1].strip() and cell_len(lines[-1] + part) > width:
                lines.append("")
                part = part.lstrip()
            lines[-1] += part
    return "\n".join(lines)


def _show_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as its first cell, and below it the others with their headings."""
    heading, *names = columns
    longest = max(map(len, names), default=0)
    for first, *cells in rows:
        lines = [f"{heading} {first}"]
        for name, cell in zip(names, cells, strict=True):
            lines += [f"  {name:{longest}}  {line}" for line in cell.splitlines()[:1]]
            lines += [f"  {'':{longest}}  {line}" for line in cell.splitlines()[1:]]
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON, on a line of its own."""
    print(json.dumps(value))


def number_or_none(value: Any) -> float | None:
    """Convert a number for JSON, which has null in place of NaN and infinity."""
    number = float(value)
    return number if np.isfinite(number) else None


def show_interval(interval: Sequence[Any], sign: bool = False) -> str:
    """Write a mean and its interval: "0.93 [0.92, 0.94]"; the mean alone where there is no interval.

    Args:
        interval: mean, low and high; None counts as NaN.
        sign: write a plus sign before positive numbers.
    """
    mean, low, high = (np.nan if value is None else float(value) for value in interval)
    spec = "+.4g" if sign else ".4g"
    return f"{mean:{spec}}" if low != low else f"{mean:{spec}} [{low:{spec}}, {high:{spec}}]"


def show_setting(value: Any) -> str:
    """Write the value of a hyper-parameter, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(finished: Run, as_json: bool) -> int:
    """Write the report of a finished run and show its result.

    Returns:
        The exit status of the command.
    """
    from jdl.report.run import write_report  # matplotlib takes a second to import

    if not processes.first():
        return 0
    path = write_report(finished)
    summary = summary_of(finished)
    rows = [(name, show_interval(interval)) for name, interval in finished.intervals.items()]
    show_table(("metric", f"mean of {len(finished.seeds)} seed(s), 95% interval"), rows, fold=("metric",))
    console.print(f"{summary['seconds']:.1f} s; report: {path}", soft_wrap=True, markup=False)
    if as_json:
        print_json(summary)
    return 0


def summary_of(run: Run) -> dict[str, Any]:
    """Return a run's path, seconds and final metrics with their intervals and values, for `--json`."""
    metrics = {
        name: {
            **{k: number_or_none(v) for k, v in interval._asdict().items()},
            "values": [number_or_none(v) for v in run.final[name]],
        }
        for name, interval in run.intervals.items()
    }
    return {"run": str(run.path), "seconds": (run.result or {}).get("seconds"), "metrics": metrics}
