"""`jdl launch`."""

import tyro

from jdl.cli.command import Command
from jdl.cli.main import dispatch
from jdl.runtime import launch as launching


def launch() -> int:
    """Run a command as several processes of one program: jdl launch --processes 2 run NAME ..."""
    return of_words(["--help"])


def of_words(arguments: list[str]) -> int:
    """Read the options of `launch`, then start the processes.

    Args:
        arguments: the options, then the command that the processes run.

    Returns:
        The exit status.

    Raises:
        ValueError: if no command follows the options.
    """
    start = next((i for i, word in enumerate(arguments) if word in ("run", "resume") or word.endswith(".py")), None)
    said = arguments if start is None else arguments[:start]
    options = tyro.cli(launching.Options, prog="jdl launch", args=said, description=launching.__doc__)
    if start is None:
        raise ValueError("launch takes a command: `jdl launch --processes 2 run NAME`, `resume RUN`, or a script.py")
    return launching.launch(options, arguments[start:], dispatch)


COMMAND = Command(launch, words=of_words)
