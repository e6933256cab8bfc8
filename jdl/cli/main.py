"""The command `jdl`: find, run, resume, repeat, look at and compare experiments.

An error is one line; with --traceback, anywhere, also where it came from.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence

import tyro

from jdl.cli.command import Command
from jdl.runtime import processes
from jdl.runtime.preemption import leaving

# Each in a file of its name, which has its COMMAND; read when it is asked for.
COMMANDS = (
    "list", "copy", "run", "tune", "sweep", "launch", "resume", "replay", "runs", "report", "compare", "results",
    "measure", "summary", "plan",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; user errors end it with one message and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with leaving():
            status = dispatch(arguments)
    except (LookupError, ValueError, TypeError, OSError, ImportError) as error:
        if "--traceback" in arguments:
            raise
        message = error.args[0] if isinstance(error, LookupError) and error.args else error
        kind = f"{type(error).__name__}: " if isinstance(error, KeyError | IndexError | TypeError) else ""
        print(f"jdl: {kind}{message} (--traceback shows where)", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("jdl: stopped; `jdl runs` lists the run, `jdl resume RUN` continues it", file=sys.stderr)
        status = 130
    except Exception as error:
        if not processes.several():
            raise
        traceback.print_exc()
        if processes.is_lost(error):
            print(
                "jdl: another process, or the way to it, was lost, so this one stops; start all of them again with "
                "`jdl launch ... resume RUN` to go on from the last checkpoint",
                file=sys.stderr,
            )
        status = 1
    if status and processes.several():
        processes.leave(status)  # the others wait for this one, and notice
    sys.exit(status)


def dispatch(arguments: list[str]) -> int:
    """Do what a command line says; returns the status."""
    arguments = [argument for argument in arguments if argument != "--traceback"]
    verb, *words = arguments or [""]
    if verb in COMMANDS:
        command = _command(verb)
        if command.words and words:
            return command.words(words)
        if command.of_name and words and not words[0].startswith("-"):
            return command.of_name(words[0], words[1:])
    commands = {name: _command(name).run for name in COMMANDS}
    return tyro.extras.subcommand_cli_from_dict(commands, prog="jdl", args=arguments, description=__doc__)


def _command(name: str) -> Command:
    return importlib.import_module(f"jdl.cli.{name}").COMMAND
