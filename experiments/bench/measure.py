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
from pathlib import Path
from typing import Any, NamedTuple

_DISTURBANCE = 0.05  # the share of the machine that others may use during a round
_PATIENCE = 20.0  # seconds to wait for a quiet moment


class Row(NamedTuple):
    """A claim: a ratio a round, and the bar that their median is held to."""

    name: str
    ratios: Sequence[float]
    bar: float
    ours: str = ""  # what was measured, in words
    reference: str = ""
    at_most: bool = False  # smaller is better
    noise: float | None = None  # how unsteady the machine was (`experiments.bench.noise`)
    note: str = ""

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
    """What each measure gives, once a round, taking turns; every other round goes backwards, against drift.

    A round in which other programs took more than `_DISTURBANCE` of the machine is measured again, up to `rounds`
    times in all; then the least disturbed ones count, and a line on the error stream says so.
    """
    found: list[tuple[float, dict[str, float]]] = []
    while len(found) < 2 * rounds and sum(share <= _DISTURBANCE for share, _ in found) < rounds:
        order = list(measures)[:: -1 if len(found) % 2 else 1]
        _wait_for_quiet()
        before = _ticks()
        values = {name: measures[name]() for name in order}
        found.append((_foreign_share(before, _ticks()), values))
    found.sort(key=lambda pair: pair[0])
    if found[rounds - 1][0] > _DISTURBANCE:
        worst = f"{found[rounds - 1][0]:.0%}"
        print(f"{', '.join(measures)}: others used up to {worst} of the machine meanwhile", file=sys.stderr)
    return {name: [values[name] for _, values in found[:rounds]] for name in measures}


class _Ticks(NamedTuple):
    """Processor time since boot: of everybody, of this process group, and how much there was."""

    everybody: int
    ours: int
    all: int


def _ticks() -> _Ticks:
    try:
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:  # no Linux: nobody is seen
        return _Ticks(0, 0, 0)
    idle = times[3] + times[4]
    group, ours = os.getpgid(0), 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group:
            ours += sum(int(field) for field in fields[11:15])  # itself and its children that ended
    return _Ticks(sum(times) - idle, ours, sum(times))


def _foreign_share(before: _Ticks, after: _Ticks) -> float:
    """The share of the machine that programs of others used in between."""
    busy = (after.everybody - before.everybody) - (after.ours - before.ours)
    return max(0.0, busy / max(1, after.all - before.all))


def _wait_for_quiet() -> None:
    """Wait while others use the machine, `_PATIENCE` seconds at most."""
    begin = time.monotonic()
    while time.monotonic() - begin < _PATIENCE:
        before = _ticks()
        time.sleep(0.3)
        if _foreign_share(before, _ticks()) <= _DISTURBANCE:
            return


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


def stepping(step: Callable[[Any], Any], state: Any, each: int, least: float) -> Callable[[], float]:
    """Measures how many a second a step makes that makes `each`, over at least so many seconds; the state goes on."""

    def measure() -> float:
        nonlocal state
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < least:
            state = step(state)
            done += each
        return done / (time.perf_counter() - begin)

    return measure


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
    for column in ("what", "ours", "reference", "ratio (median)", "range", "bar", "noise", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            row.ours,
            row.reference,
            f"{row.ratio:.3g}",
            f"{min(row.ratios):.3g} to {max(row.ratios):.3g} (n={len(row.ratios)})",
            f"{'<=' if row.at_most else '>='} {row.bar:g}",
            "" if row.noise is None else f"{row.noise:.0%}",
            ("[green]ok[/green]" if row.ok else "[red]MISSED[/red]") + (f"; {row.note}" if row.note else ""),
        )
    Console(width=max(140, Console().width)).print(table)
    if as_json:
        fields = ("name", "ratio", "bar", "ok", "noise", "note")
        print(json.dumps({"rows": [{name: getattr(row, name) for name in fields} for row in rows]}))
