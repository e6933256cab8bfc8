"""Files that are whole at any moment: written under another name, synced, renamed."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a kill, sees the old file or the new one."""
    write_text(path, json.dumps(value, indent=2, default=plain_json) + "\n")


def as_json(value: Any) -> Any:
    """A value as it is read back from JSON."""
    return json.loads(json.dumps(value, default=plain_json))


def plain_json(value: Any) -> Any:
    """A value that JSON has no type for, as one it has."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a config holds {value!r} of type {type(value).__name__}; use numbers, strings, paths and tuples")


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync, rename. Raises OSError naming the folder where it cannot."""
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
