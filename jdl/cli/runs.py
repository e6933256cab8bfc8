"""`jdl runs`."""

from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import print_json, show_interval, show_table, summary_of
from jdl.training.runs import Run

_METRICS = 3  # final metrics that are shown of each run


def list_runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), json: Json = False) -> int:
    """List the runs in a folder: seeds, state, and the first final metrics with their 95% intervals.

    Args:
        folder: where to look, at any depth
    """
    found = [Run(file.parent) for file in sorted(folder.rglob("config.json"))]
    found = [run for run in found if "part" not in run.description]
    if json:
        print_json({"runs": [summary_of(run) for run in found]})
        return 0
    rows = []
    for run in found:
        metrics = [f"{name} {show_interval(interval)}" for name, interval in list(run.intervals.items())[:_METRICS]]
        place = str(run.path.relative_to(Path.cwd(), walk_up=True))
        rows.append((place, str(len(run.seeds)), _progress(run), "\n".join(metrics)))
    show_table(("run", "seeds", "state", "final metrics"), rows, fold=("run",))
    return 0


def _progress(run: Run) -> str:
    if run.result is not None:
        return "finished"
    steps = [row["step"] for row in run.rows]
    return f"at step {steps[-1]}" if steps else "started"


COMMAND = Command(list_runs)
