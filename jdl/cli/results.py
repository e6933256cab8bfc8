"""`jdl results`."""

from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import console, print_json, show_interval, show_table
from jdl.experiment import find
from jdl.experiment.records import declared, file_of
from jdl.report.results import line_written, written


def results(
    folder: Annotated[str, tyro.conf.Positional] = "", write: bool = False, check: bool = False, json: Json = False
) -> int:
    """List the recorded results of the experiments, each with its interval, its bar and whether it is up to date.

    Args:
        folder: only those of one folder, as rl
        write: write the READMEs' tables and the line in each experiment's docstring from the records
        check: fail where one of them differs from its records
    """
    records = declared(folder)
    if write or check:
        return _tables(folder, records, write)
    rows = [row for record in records for row in record.rows()]
    if json:
        print_json({"rows": [row._asdict() for row in rows]})
        return 0
    state = {True: "reached", False: "MISSED", None: ""}
    table = [
        (
            row.name,
            row.metric,
            "not measured" if row.mean is None else show_interval((row.mean, row.low, row.high)),
            record.record.bars.get(row.metric, ""),
            state[row.ok if row.mean is not None else None],
            "stale" if row.stale else "carried over" if "carried" in (record.measured or {}) else "",
        )
        for record in records
        for row in record.rows()
    ]
    show_table(("record", "metric", "mean or IQM, 95% interval", "bar", "", "state"), table)
    return 0


def _tables(folder: str, records: list, write: bool) -> int:
    root = find.home()
    readmes = [root / folder / "README.md"] if folder else sorted(root.rglob("README.md"))
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
        settle(readme, written(readme, [record for record in records if record.domain == domain]))
    if write:
        console.print(f"{len(wrong)} files written" if wrong else "everything was up to date")
    elif wrong:
        raise ValueError(f"results differ from their records in {', '.join(map(str, wrong))}; run `make results`")
    return 0


COMMAND = Command(results)
