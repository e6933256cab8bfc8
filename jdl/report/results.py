"""Results as text, from the records: tables in READMEs, and a line in each experiment's docstring.

In a README, `<!-- results -->` begins a table of all records of its folder. There and in a page of the documentation,
`<!-- results of dqn -->` begins a table of all records of the experiment "dqn", and `<!-- results: tabular -->` one of
the record "tabular" alone, whose metrics have names of the form "column/row". `<!-- end -->` ends each.
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jdl.experiment.records import Declared, file_of

_RESULT = re.compile(r"^Result:.*(?:\n {11}.*)*", re.MULTILINE)
_MARKED = re.compile(r"(<!-- results(?:(:| of) (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def written(page: Path, records: Sequence[Declared], domain: str | None = None) -> str:
    """Fill in the tables of a README or of a page of the documentation.

    Args:
        page: the file, which stays as it is.
        records: the records that its tables may name.
        domain: the README's folder, "" for that of all folders; None for a page of the documentation.

    Returns:
        The text of the page with the tables of the records.

    Raises:
        LookupError: for a table of an experiment or a record that does not exist.
    """

    def table(marked: re.Match[str]) -> str:
        start, kind, name, end = marked.groups()
        named = [one for one in records if name == (one.name if kind == ":" else one.experiment)]
        if kind is None and domain is None:
            return marked[0]  # it belongs to no folder: a page that shows what READMEs have
        if kind is None:
            return start + _of_all([one for one in records if one.domain == domain]) + end
        if not named:
            raise LookupError(f"{page} has a table of {name}; the records are {[one.name for one in records]}")
        return start + (_of_one(named[0]) if kind == ":" else _of_all(named)) + end

    return _MARKED.sub(table, page.read_text())


def line_written(record: Declared) -> str:
    """Fill in the line "Result:" in the docstring of an experiment.

    Args:
        record: the experiment's first record.

    Returns:
        The source of the experiment with that line; the file stays as it is.
    """
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
        notes += ["stale: the experiment has changed since"] * (record.measured is not None and record.stale)
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
    """Write a number with four significant digits, or as a whole number from 10,000 up."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
