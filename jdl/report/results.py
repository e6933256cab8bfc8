"""Results where people read them, written from the records: tables in READMEs, a line in each experiment's docstring.

`<!-- results -->` begins the table of all records of the README's folder, `<!-- results: tabular -->` that of one
record whose metrics are called "column/row"; `<!-- end -->` ends either.
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jdl.experiment.records import Declared, file_of

_RESULT = re.compile(r"^Result:.*(?:\n {11}.*)*", re.MULTILINE)
_MARKED = re.compile(r"(<!-- results(?:: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def written(readme: Path, records: Sequence[Declared]) -> str:
    """A README with its tables as the records have them.

    Args:
        readme: the file.
        records: those of the README's folder.

    Raises:
        LookupError: for a table of a record that does not exist.
    """

    def table(marked: re.Match[str]) -> str:
        if marked[2] is None:
            return marked[1] + _of_all(records) + marked[3]
        for record in records:
            if record.name == marked[2]:
                return marked[1] + _of_one(record) + marked[3]
        raise LookupError(f"{readme} has a table of {marked[2]}; the records there are {[r.name for r in records]}")

    return _MARKED.sub(table, readme.read_text())


def line_written(record: Declared) -> str:
    """The experiment's source with the line "Result:" of its docstring as its first record has it."""
    results = [f"{row.metric} {_interval((row.mean, row.low, row.high))}" for row in record.rows()]
    took = (record.measured or {}).get("seconds")
    text = (
        f"{'; '.join(results)} ({record.record.seeds} seeds, {_time(took)})" if took is not None else "not measured yet"
    )
    wrapped = textwrap.fill("Result:    " + text, 118, subsequent_indent=" " * 11, break_long_words=False)
    source = file_of(record.module).read_text()
    return _RESULT.sub(lambda _: wrapped, source, count=1)


def _of_all(records: Sequence[Declared]) -> str:
    rows = []
    for record in records:
        results = []
        for row in record.rows():
            sign = record.record.bars.get(row.metric, "")
            missed = ", missed" if row.ok is False and row.mean is not None else ""
            held = f" (bar {sign}{missed})" if sign else ""
            results.append(f"{row.metric} {_interval((row.mean, row.low, row.high))}{held}")
        measured = record.measured or {}
        notes = [f"IQM over {record.record.seeds} seeds"] * (record.record.statistic == "iqm")
        notes += [record.record.beside] * bool(record.record.beside)
        command = f"`jdl {' '.join(record.words)}`"
        rows.append((command, _time(measured.get("seconds")), "; ".join(results), "; ".join(notes)))
    return _markdown(("command", "time", "result, mean and 95% interval over seeds", "beside"), rows)


def _of_one(record: Declared) -> str:
    pairs = {name: name.split("/", 1) for name in record.intervals if "/" in name}
    columns = list(dict.fromkeys(column for column, _ in pairs.values()))
    by_row: dict[str, dict[str, str]] = {}
    for name, (column, row) in pairs.items():
        by_row.setdefault(row, {})[column] = _interval(record.intervals[name])
    rows = [(row, *(found.get(column, "") for column in columns)) for row, found in by_row.items()]
    return _markdown(("", *columns), rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return (
        "\n"
        + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
        + "\n"
    )


def _interval(interval: Sequence[Any]) -> str:
    mean, low, high = (None if value is None or value != value else float(value) for value in interval)
    if mean is None:
        return "not measured"
    return f"{_number(mean)}" if low is None or high is None else f"{_number(mean)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    """Four significant digits, and none that the number does not need."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
