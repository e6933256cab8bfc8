"""`jdl results`."""

from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import console, print_json, show_interval, show_table
from jdl.experiment import find
from jdl.experiment.records import Declared, Row, declared, file_of
from jdl.report.results import line_written, written


def results(
    folder: Annotated[str, tyro.conf.Positional] = "", write: bool = False, check: bool = False, json: Json = False
) -> int:
    """List the recorded results of the experiments, each with its interval, its bar and whether it is up to date.

    Args:
        folder: list only those of the experiments in this folder, such as rl
        write: write the tables of READMEs and documentation and the result in each experiment's docstring
        check: fail if one of them differs from the records
    """
    records = declared(folder)
    if write or check:
        return _tables(folder, records, write)
    rows = [row for record in records for row in record.rows()]
    if json:
        print_json({"rows": [row._asdict() for row in rows]})
        return 0
    table = [
        (
            row.name,
            row.metric,
            "not measured" if row.mean is None else show_interval((row.mean, row.low, row.high)),
            "; ".join(filter(None, [_bar(record.record.bars.get(row.metric, ""), row), _state(record, row)])),
        )
        for record in records
        for row in record.rows()
    ]
    show_table(("record", "metric", "mean or IQM", "bar"), table, fold=("record", "metric", "bar"))
    console.print("means or interquartile means over the seeds, with 95% intervals", soft_wrap=True)
    return 0


def _bar(bar: str, row: Row) -> str:
    return bar if not bar or row.mean is None else f"{bar} {'reached' if row.ok else 'MISSED'}"


def _state(record: Declared, row: Row) -> str:
    return "stale" if row.stale else "carried over" if "carried" in (record.measured or {}) else ""


def _tables(folder: str, records: list[Declared], write: bool) -> int:
    """Write the tables of READMEs and documentation and the results in docstrings, or see that they are right."""
    root = find.home()
    readmes = [root / folder / "README.md"] if folder else sorted(root.rglob("README.md"))
    pages = [] if folder else sorted((root.parent / "docs").rglob("*.md"))
    wrong: list[Path] = []

    def settle(file: Path, made: str) -> None:
        if made != file.read_text():
            wrong.append(file)
            if write:
                file.write_text(made)

    for module in {record.module for record in records}:
        first = next(record for record in records if record.module is module)
        settle(file_of(module), line_written(first))
    for readme in filter(Path.is_file, readmes):
        domain = "" if readme.parent == root else readme.parent.relative_to(root).as_posix()
        settle(readme, written(readme, records, domain))
    for page in pages:
        settle(page, written(page, records))
    if write:
        console.print(f"{len(wrong)} files written" if wrong else "everything was up to date")
    elif wrong:
        raise ValueError(f"results differ from their records in {', '.join(map(str, wrong))}; run `make results`")
    return 0


COMMAND = Command(results)
