"""The command `jdl`: find, run, resume, repeat, look at and compare experiments.

An error is one line; with --traceback, anywhere, also where it came from.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import tyro

from jdl.cli.command import Command

# Each is the COMMAND of the file of its name, which is imported only when the command is given.
COMMANDS = (
    "list", "copy", "run", "tune", "sweep", "launch", "resume", "replay", "runs", "report", "compare", "results",
    "measure", "summary", "plan", "play",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its status; errors of the user print one message, status 2.

    Args:
        arguments: the words after `jdl`, by default those of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "plan" in arguments[:2]:
        # XLA compares ways to divide a product over devices, and warns of a bad one that it does not choose. It reads
        # the variable when JAX is imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jdl.runtime import processes
    from jdl.runtime.preemption import leaving

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
        processes.leave(status)  # so that the processes that wait for this one notice
    sys.exit(status)


def dispatch(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: the words after `jdl`.

    Returns:
        The exit status.

    Raises:
        LookupError: for a command that does not exist.
    """
    arguments = [argument for argument in arguments if argument != "--traceback"]
    verb, *words = arguments or [""]
    if verb in COMMANDS:
        command = _command(verb)
        if command.words and words:
            return command.words(words)
        if command.of_name and words and not words[0].startswith("-"):
            return command.of_name(words[0], words[1:])
        return tyro.cli(command.run, prog=f"jdl {verb}", args=words)
    if verb and not verb.startswith("-"):
        nearest = difflib.get_close_matches(verb, COMMANDS)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`jdl --help` describes them"
        raise LookupError(f"there is no command {verb!r}; {hint} (there are {', '.join(COMMANDS)})")
    commands = {name: _command(name).run for name in COMMANDS}
    return tyro.extras.subcommand_cli_from_dict(commands, prog="jdl", args=arguments, description=__doc__)


def _command(name: str) -> Command:
    return importlib.import_module(f"jdl.cli.{name}").COMMAND
