"""`jdl measure`."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command
from jdl.cli.console import console
from jdl.experiment import execute
from jdl.experiment.records import Declared, declared

_RUNS = Path("runs") / "records"


def measure(only: Annotated[tuple[str, ...], tyro.conf.Positional] = (), list: bool = False) -> int:
    """Measure the recorded results that are stale, one after another; the same command goes on where it was stopped.

    Args:
        only: records, or folders of experiments, to measure, stale or not
        list: show what would be measured, and how long it took last time
    """
    records = declared()
    known = {record.name for record in records} | {record.domain for record in records}
    for name in only:
        if name not in known:
            raise LookupError(f"there is no record {name!r}; there are {', '.join(sorted(known))}")
    due = [one for one in records if (one.name in only or one.domain in only if only else one.stale)]
    if list:
        for record in due:
            console.print(f"{record.name}: {_last(record)}", markup=False)
        return 0
    failed = [record.name for record in due if _run(record) != 0]
    console.print(f"{len(due) - len(failed)} measured" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(record: Declared) -> int:
    """Measure a record in a process of its own, because JAX keeps the memory of every run; returns the status."""
    console.print(f"{record.name}: {_last(record)}", markup=False)
    words = [sys.executable, "-m", "jdl", *record.words, "--record", "--run-dir", str(_folder(record))]
    return subprocess.run(words).returncode


def _folder(record: Declared) -> Path:
    """A new folder, or that of the same run if it was stopped."""
    folder, number = _RUNS / record.name, 2
    while _is_another(record, folder):
        folder, number = _RUNS / f"{record.name}-{number}", number + 1
    return folder


def _is_another(record: Declared, folder: Path) -> bool:
    """Whether a folder holds a finished run, which stays, or a stopped one of another source or config."""
    try:
        execute.begun(record.module, record.config, range(record.record.seeds), folder)
    except FileExistsError:
        return True
    return (folder / "result.json").is_file()


def _last(record: Declared) -> str:
    seconds = (record.measured or {}).get("seconds")
    return "not measured yet" if seconds is None else f"{seconds:.0f} s last time"


COMMAND = Command(measure)
