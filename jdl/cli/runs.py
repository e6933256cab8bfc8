"""`jdl runs`."""

from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import print_json, progress, show_interval, show_table, summary_of
from jdl.training.runs import Run


def list_runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), json: Json = False) -> int:
    """List the runs in a folder: experiment, seeds, state, final metrics.

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
        shown = "  ".join(f"{name} {show_interval(interval)}" for name, interval in list(run.intervals.items())[:3])
        rows.append((str(run.path.relative_to(Path.cwd(), walk_up=True)), str(len(run.seeds)), progress(run), shown))
    show_table(("run", "seeds", "state", "final metrics (mean, 95% interval)"), rows)
    return 0


COMMAND = Command(list_runs)
