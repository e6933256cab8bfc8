"""The type of a command of `jdl`, and of arguments that several commands take."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

type Json = Annotated[bool, tyro.conf.arg(help="print the result as one JSON object, on the last line")]
type RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")]


class Command(NamedTuple):
    """A command of `jdl`.

    Attributes:
        run: the command, as a function that returns its exit status. Its arguments are those of the command line, and
            its docstring is the help.
        of_name: for a command whose options depend on a name, such as `jdl run NAME`, which takes every field of the
            experiment's Config: reads the name and the words after it.
        words: for a command that another command follows (`jdl launch`): reads all words.
    """

    run: Callable[..., int]
    of_name: Callable[[str, list[str]], int] | None = None
    words: Callable[[list[str]], int] | None = None


def of_name(run: Callable[[str, list[str]], int]) -> Command:
    """Make a command whose options depend on the name that comes first.

    Args:
        run: the command, given the name and the words after it. Its docstring is the help.
    """

    def named(name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]) -> int:
        return run(name, [])

    named.__doc__ = run.__doc__
    return Command(named, run)
