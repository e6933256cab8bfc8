"""`jdl report`."""

from pathlib import Path

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import console, print_json
from jdl.experiment.study import Study, is_study
from jdl.training.runs import Run


def report(runs: tyro.conf.Positional[tuple[Path, ...]], /, json: Json = False) -> int:
    """Write the report of each run, or of each study of `jdl tune`, again, and print the path of the page."""
    from jdl.report import run, study  # matplotlib takes a second to import

    written = [str(study.write(Study(path)) if is_study(path) else run.write_report(Run(path))) for path in runs]
    if json:
        print_json({"reports": written})
    else:
        console.print("\n".join(written), soft_wrap=True, markup=False)
    return 0


COMMAND = Command(report)
