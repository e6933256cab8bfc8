"""What a command of `jdl` is."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

type Json = Annotated[bool, tyro.conf.arg(help="print the result as one JSON object, on the last line")]
type RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")]


class Command(NamedTuple):
    """A command: a function whose arguments are its words, or one that takes a name and reads the other words itself.

    Its options may depend on what is named: `jdl run NAME` takes every field of the experiment's Config.
    """

    run: Callable[..., int]  # its docstring is the help; returns the status
    of_name: Callable[[str, list[str]], int] | None = None
    words: Callable[[list[str]], int] | None = None  # all of them, where another command follows


def of_name(run: Callable[[str, list[str]], int]) -> Command:
    """A command that takes a name and then words of its own; the help is the docstring of `run`."""

    def named(name: Annotated[str, tyro.conf.Positional]) -> int:
        return run(name, [])

    named.__doc__ = run.__doc__
    return Command(named, run)
