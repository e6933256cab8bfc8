"""`jdl list`."""

from typing import Annotated

import tyro

from jdl.cli.command import Command, Json
from jdl.cli.console import print_json, show_table
from jdl.experiment import find


def list_experiments(folder: Annotated[str, tyro.conf.Positional] = "", json: Json = False) -> int:
    """List the experiments in ./experiments, or, where there is no such folder, those installed with jdl.

    Args:
        folder: list only the experiments of this folder, such as rl
    """
    found = find.experiments(folder)
    if not found:
        raise LookupError(f"there is no folder ./{find.FOLDER} with experiments here; change to one that has it")
    if json:
        print_json({"experiments": {one.name: one.description for one in found}})
        return 0
    rows = [(one.domain, one.name, one.description) for one in found]
    show_table(("folder", "experiment", "description"), rows, fold=("description",))
    return 0


COMMAND = Command(list_experiments)
