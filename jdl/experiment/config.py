"""Configs as JSON and back."""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def decode(kind: Any, value: Any) -> Any:
    """A config from its JSON, by the types of its fields; raises ValueError naming a field it does not have."""
    if hasattr(kind, "__dataclass_fields__") and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise ValueError(f"{kind.__qualname__} has no field {name!r}; it has {', '.join(hints)}")
        return kind(**{name: decode(hints[name], item) for name, item in value.items()})
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return value if value is None or len(kinds) != 1 else decode(kinds[0], value)
    if kind is tuple or origin is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value
