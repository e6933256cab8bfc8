"""What libraries written in C++ print on standard output, filtered: `--json` promises that only results are there."""

import atexit
import os
import sys
import threading
from collections.abc import Callable

_STDOUT = 1


def drop_lines(prefix: bytes) -> Callable[[], None]:
    """Drop the lines that begin with `prefix` from what this process writes directly to file descriptor 1.

    Python's own `sys.stdout` is left alone: it goes on writing to where the descriptor pointed. Everything else that
    writes to the descriptor, such as C++ code and child processes, passes through a thread.

    Args:
        prefix: the beginning of the lines to drop.

    Returns:
        a function that undoes it; it is also called when the interpreter ends. Nothing happens if `sys.stdout` does not
        write to descriptor 1, as in notebooks.
    """
    try:
        if sys.stdout.fileno() != _STDOUT:
            return lambda: None
    except (AttributeError, OSError):  # no file: a notebook, or a test that captures
        return lambda: None
    sys.stdout.flush()
    python_stdout, kept = sys.stdout, os.dup(_STDOUT)
    sys.stdout = os.fdopen(
        os.dup(_STDOUT), "w", encoding=python_stdout.encoding, errors=python_stdout.errors, buffering=1
    )
    reading, writing = os.pipe()
    os.dup2(writing, _STDOUT)
    os.close(writing)
    thread = threading.Thread(target=_forward, args=(reading, kept, prefix), daemon=True, name="jdl-output")
    thread.start()
    undone = threading.Event()

    def undo() -> None:
        if undone.is_set():
            return
        undone.set()
        sys.stdout.flush()
        os.dup2(kept, _STDOUT)  # closes the pipe's end, so the thread comes to its end
        sys.stdout = python_stdout
        thread.join(timeout=1)  # a child process may still hold the pipe

    atexit.register(undo)
    return undo


def _forward(reading: int, out: int, prefix: bytes) -> None:
    """Copy lines from one descriptor to another until the first is closed, without those that begin with a prefix."""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not line.startswith(prefix):
                os.write(out, line)
