"""`jdl copy`."""

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from jdl.cli.command import Command
from jdl.cli.console import console
from jdl.experiment import find


def copy(name: Annotated[str, tyro.conf.Positional], to: Path | None = None) -> int:
    """Copy an experiment into this folder, to change it: `jdl copy digits`, then `jdl run digits.py`.

    Args:
        name: the experiment, as for `jdl run`
        to: the file to write, by default NAME.py in this folder
    """
    source = Path(str(find.find(name).__file__))
    target = to or Path(source.name)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another file by --to, or move it away")
    shutil.copyfile(source, target)
    console.print(f"{target} is a copy of {name}; run it with `jdl run {target}`", soft_wrap=True, markup=False)
    return 0


COMMAND = Command(copy)
