"""Configs as JSON and back: numbers, strings, paths, dates, enums, tuples, lists, dicts, and dataclasses of these.

Enums are written by name, flags by number, paths and dates as text. If a field may hold several types, a value that
JSON lacks a type for is written together with its type: `{"type": "Path", "value": "runs"}`.
"""

import dataclasses
import datetime
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

_PLAIN = (bool, int, float, str)
_TEXTS: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    Path: (str, Path),
    datetime.datetime: (datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: (datetime.time.isoformat, datetime.time.fromisoformat),
}
_HELD = (
    "numbers, booleans, strings, paths, dates, enums, tuples, lists and dicts of these, and dataclasses of these; the "
    "keys of a dict are strings, whole numbers, floats, paths, dates or enums"
)


def encode(config: Any) -> dict[str, Any]:
    """Convert a config to JSON, field by field.

    Args:
        config: a dataclass whose fields pass `check`.
    """
    return _encode(type(config), config)


def decode(kind: Any, value: Any) -> Any:
    """Convert JSON back to a value of a type.

    Args:
        kind: the type, such as a Config.
        value: the JSON, as `encode` makes it.

    Raises:
        ValueError: if the JSON has a field that the dataclass lacks, or a type that the field does not take.
    """
    kind = _bare(kind)
    if value is None or kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                shown = getattr(kind, "__qualname__", kind)
                raise ValueError(f"{shown} has no field {name!r}; it has {', '.join(hints)}")
        return typing.cast(Any, kind)(**{name: decode(hints[name], item) for name, item in value.items()})
    several = _several(kind)
    if len(several) == 1:
        return decode(several[0], value)
    if several:
        if isinstance(value, Mapping) and value.keys() == {"type", "value"}:
            return decode(_named(several, value["type"]), value["value"])
        return value
    container, inner = _container(kind)
    if container is tuple:
        return tuple(decode(one, item) for one, item in zip(_each(inner, value), value, strict=False))
    if container is list:
        return [decode(inner[0] if inner else Any, item) for item in value]
    if container is dict:
        keys, values = inner or (str, Any)
        return {decode(keys, _key(keys, name)): decode(values, item) for name, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value) if issubclass(kind, enum.Flag) and isinstance(value, int) else kind[value]
    return _TEXTS[kind][1](value) if kind in _TEXTS else value


def check(config: type) -> None:
    """Check that every field of a Config can be converted to JSON and back.

    Raises:
        TypeError: naming the field, for a type that cannot.
    """
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        wrong = _unsupported(hints[field.name])
        if wrong is not None:
            shown = getattr(wrong, "__name__", str(wrong))
            raise TypeError(f"the field {field.name} of {config.__qualname__} holds {shown}; use {_HELD}")


def _encode(kind: Any, value: Any) -> Any:
    kind = _bare(kind)
    if value is None or kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {one.name: _encode(hints[one.name], getattr(value, one.name)) for one in dataclasses.fields(kind)}
    several = _several(kind)
    if len(several) == 1:
        return _encode(several[0], value)
    if several:
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            return value
        name = "list" if isinstance(value, list) else type(value).__name__
        name = next((one.__name__ for one in _TEXTS if isinstance(value, one)), name)
        return {"type": name, "value": _encode(_named(several, name), value)}
    container, inner = _container(kind)
    if container is tuple:
        return [_encode(one, item) for one, item in zip(_each(inner, value), value, strict=False)]
    if container is list:
        return [_encode(inner[0] if inner else Any, item) for item in value]
    if container is dict:
        keys, values = inner or (str, Any)
        return {str(_encode(keys, name)): _encode(values, item) for name, item in value.items()}
    if isinstance(value, enum.Flag):
        return value.value  # those of several members have no name of their own
    if isinstance(value, enum.Enum):
        return value.name
    return _TEXTS[kind][0](value) if kind in _TEXTS else value


def _bare(kind: Any) -> Any:
    """Resolve a type alias, and remove annotations."""
    while isinstance(kind, typing.TypeAliasType) or typing.get_origin(kind) is typing.Annotated:
        kind = kind.__value__ if isinstance(kind, typing.TypeAliasType) else typing.get_args(kind)[0]
    return kind


def _several(kind: Any) -> list[Any]:
    """List the types of a union without None; the list is empty if the type is no union."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return []
    return [
        one
        for part in typing.get_args(kind)
        if part is not type(None)
        for one in _several(_bare(part)) or [_bare(part)]
    ]


def _named(kinds: Sequence[Any], name: str) -> Any:
    for kind in kinds:
        if name in (getattr(kind, "__name__", None), getattr(_container(kind)[0], "__name__", None)):
            return kind
    raise ValueError(f"a value of type {name}, where the config takes {', '.join(map(str, kinds))}")


def _container(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split the type of a container into tuple, list or dict, and the types of its items; (None, ()) for others."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is tuple:
        return tuple, inner
    if origin in (list, Sequence):
        return list if origin is list else tuple, inner if origin is list else (*inner, Ellipsis)
    return (dict, inner) if origin in (dict, Mapping) else (None, ())


def _each(inner: tuple[Any, ...], items: Sequence[Any]) -> list[Any]:
    """List the type of each item of a tuple."""
    if not inner:
        return [Any] * len(items)
    return [inner[0]] * len(items) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)


def _key(kind: Any, name: str) -> Any:
    """Convert the key of a dict back from the text that JSON made of it."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Flag):
        return int(name)
    return kind(name) if kind in (int, float) else name


def _is_key(kind: Any) -> bool:
    """Whether JSON's text for a key of this type can be read back."""
    kind = _bare(kind)
    return kind in (str, int, float) or kind in _TEXTS or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def _unsupported(kind: Any) -> Any:
    """Find a type, here or in what the type contains, that JSON cannot give back; None if there is none."""
    kind = _bare(kind)
    if kind is Any or kind in (*_PLAIN, type(None)) or kind in _TEXTS or typing.get_origin(kind) is Literal:
        return None
    if dataclasses.is_dataclass(kind):
        within: Sequence[Any] = list(typing.get_type_hints(kind).values())
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        return None
    elif _several(kind):
        within = _several(kind)
    elif _container(kind)[0] is dict and _container(kind)[1] and not _is_key(_container(kind)[1][0]):
        return kind
    elif _container(kind)[0] is not None:
        within = [one for one in _container(kind)[1] if one is not Ellipsis]
    else:
        return kind
    return next((wrong for wrong in map(_unsupported, within) if wrong is not None), None)
