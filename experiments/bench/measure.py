"""How the benchmarks measure: programs take turns, ratios are taken within a round, and the median is judged.

The machine drifts by more than most differences that are looked for, so no number is compared with one of another
minute. Standard library alone, and Python 3.11: a peer's worker runs where no JAX is installed.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A claim: a ratio a round, and the bar that their median is held to."""

    name: str
    ratios: Sequence[float]
    bar: float
    ours: str = ""  # what was measured, in words
    reference: str = ""
    at_most: bool = False  # smaller is better

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ok(self) -> bool:
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar


def seconds(program: Callable[[], object]) -> float:
    """The wall time of one call."""
    begin = time.perf_counter()
    program()
    return time.perf_counter() - begin


def interleaved(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measure gives, once a round, taking turns; every other round goes backwards, against drift."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            found[name].append(measures[name]())
    return found


def compared(name: str, ours: Sequence[float], reference: Sequence[float], bar: float, unit: str = "steps/s") -> Row:
    """The row of two rates, larger being better."""
    ratios = [one / other for one, other in zip(ours, reference, strict=True)]
    return Row(name, ratios, bar, rate(ours, unit), rate(reference, unit))


def rate(rates: Sequence[float], unit: str = "steps/s") -> str:
    """The median rate, in words."""
    return f"{statistics.median(rates):,.4g} {unit}"


class Worker:
    """A program in a process of its own, which measures itself once whenever it is asked (`serve` is its side)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._read()  # it has compiled

    def ask(self) -> None:
        """Let it measure; several workers that are asked run side by side."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """What it measured since it was asked."""
        return float(self._read())

    def __call__(self) -> float:
        self.ask()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with status {self._process.wait()}")
        return line


def serve(measure: Callable[[], float]) -> None:
    """A worker's side: measure at every request until there are no more."""
    measure()  # compiles
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


def show(rows: Iterable[Row], title: str, as_json: bool) -> None:
    """Print the table and, if asked, the rows as JSON on the last line."""
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    table = Table(title=title, title_justify="left")
    for column in ("what", "ours", "reference", "ratio (median)", "range", "bar", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            row.ours,
            row.reference,
            f"{row.ratio:.3g}",
            f"{min(row.ratios):.3g} to {max(row.ratios):.3g} (n={len(row.ratios)})",
            f"{'<=' if row.at_most else '>='} {row.bar:g}",
            "[green]ok[/green]" if row.ok else "[red]MISSED[/red]",
        )
    Console(width=max(140, Console().width)).print(table)
    if as_json:
        print(json.dumps({"rows": [{"name": r.name, "ratio": r.ratio, "bar": r.bar, "ok": r.ok} for r in rows]}))
