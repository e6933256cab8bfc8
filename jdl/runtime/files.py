"""Atomic file writes: a file is written under a temporary name, synced, then renamed."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees either the old file or the new one, even if this process is killed."""
    write_text(path, json.dumps(value, indent=2, default=plain_json) + "\n")


def as_json(value: Any) -> Any:
    """Return a value as it would be read back from JSON."""
    return json.loads(json.dumps(value, default=plain_json))


def plain_json(value: Any) -> Any:
    """Convert a path to a string; the `default` argument of `json.dumps`.

    Raises:
        TypeError: for another type that JSON lacks.
    """
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a config holds {value!r} of type {type(value).__name__}; use numbers, strings, paths and tuples")


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it.

    Raises:
        OSError: if it cannot be written; the message names the path.
    """
    temporary = path.with_name(path.name + ".writing")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        message = f"{path} could not be written ({error.strerror}); free space there or choose another folder"
        raise OSError(message) from error
