"""`jdl list`."""

from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import print_json, show_table
from jdl.experiment import find


def list_experiments(folder: Annotated[str, tyro.conf.Positional] = "", json: Json = False) -> int:
    """List the experiments in ./experiments (without such a folder, those installed with jdl), a line for each.

    Args:
        folder: only those of one folder, as rl
    """
    found = find.experiments(folder)
    if not found:
        raise LookupError(f"there is no folder ./{find.FOLDER} with experiments here; change to one that has it")
    if json:
        print_json({"experiments": {one.name: one.description for one in found}})
        return 0
    show_table(("folder", "experiment", "what it is"), [(one.domain, one.name, one.description) for one in found])
    return 0


COMMAND = Command(list_experiments)
