"""Search spaces: the fields of an experiment's Config that a study varies, each with a range or a choice.

On a command line "LOW HIGH" is uniform, "log LOW HIGH" uniform in the logarithm, and "A B C" a choice. A choice of two
numbers is "choice A B". A field of a dataclass within the Config is named with a dot, "optimizer.rate".
"""

import dataclasses
import datetime
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; only whole numbers for an int field.

    Attributes:
        low: the smallest number, above 0 if the range is logarithmic.
        high: the largest number, above low.
        logarithmic: whether the logarithm is uniform instead of the number.
    """

    low: int | float
    high: int | float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self}: the range from {self.low} to {self.high} is empty; give LOW, then a larger HIGH")
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"{self}: a logarithmic range starts above 0, not at {self.low}")

    def __str__(self) -> str:
        return f"{'log ' if self.logarithmic else ''}{self.low!r} {self.high!r}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, at least two.

    Attributes:
        values: the values, all different.
    """

    values: tuple[bool | int | float | str, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(self.values)) != len(self.values):
            raise ValueError(f"{self}: a choice has at least 2 values, each of them once")

    def __str__(self) -> str:
        return " ".join(["choice", *map(str, self.values)])


type Dimension = Range | Choice
type Space = dict[str, Dimension]


def uniform(low: int | float, high: int | float) -> Range:
    """Make a dimension of numbers that are all equally likely.

    Args:
        low: the smallest number.
        high: the largest number. For an int field both are whole.

    Raises:
        ValueError: unless low < high.
    """
    return Range(low, high)


def log(low: int | float, high: int | float) -> Range:
    """Make a dimension of positive numbers in which every order of magnitude is equally likely.

    Args:
        low: the smallest number, above 0.
        high: the largest number. For an int field both are whole.

    Raises:
        ValueError: unless 0 < low < high.
    """
    return Range(low, high, logarithmic=True)


def choice(*values: bool | int | float | str) -> Choice:
    """Make a dimension of several values.

    Args:
        values: at least two values, all different; enums by name.

    Raises:
        ValueError: for fewer values, and for one that is given twice.
    """
    return Choice(values)


def fields(config: type) -> dict[str, Any]:
    """List the type of each field of a Config, by name.

    Fields of a dataclass within the Config have dotted names. The type of an optional field is given without its None.

    Args:
        config: the Config, a dataclass.
    """
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind, optional = hints[field.name], False
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kinds = [one for one in typing.get_args(kind) if one is not type(None)]
            optional = len(kinds) < len(typing.get_args(kind))
            kind = kinds[0] if len(kinds) == 1 else kind
        if not optional and dataclasses.is_dataclass(kind):
            found |= {f"{field.name}.{name}": inner for name, inner in fields(typing.cast(type, kind)).items()}
        else:
            found[field.name] = kind
    return found


def parse(text: str, kind: Any) -> Dimension:
    """Read a dimension from its text.

    Args:
        text: "LOW HIGH", "log LOW HIGH", "A B C" or "choice A B".
        kind: the type of the field.

    Raises:
        ValueError: for a text that is neither a range nor a choice, and for a value that is not of the type.
    """
    first, *rest = words = text.split() or [""]
    if first == "log":
        if len(rest) != 2:
            raise ValueError('a logarithmic range is "log LOW HIGH"')
        return log(*(_number(word) for word in rest))
    if first == "choice":
        return Choice(tuple(_value(word, kind) for word in rest))
    if kind in (int, float) and len(words) == 2:
        return uniform(*(_number(word) for word in words))
    if len(words) < 2:
        raise ValueError('write "LOW HIGH", "log LOW HIGH" or, to choose, the values; for a single one use --FIELD')
    return Choice(tuple(_value(word, kind) for word in words))


def values(name: str, text: str, kind: Any) -> tuple[Any, ...]:
    """Read the values of a field from a text, as a sweep takes them.

    Args:
        name: the field, for the message.
        text: the values, with spaces between them.
        kind: the type of the field.

    Raises:
        ValueError: for no value, and for one that the field does not take.
    """
    found = tuple(_value(word, kind) for word in text.split())
    allowed = typing.get_args(kind) if typing.get_origin(kind) is Literal else found
    wrong = [value for value in found if value not in allowed]
    if wrong or not found:
        raise ValueError(f"the grid of {name}, {text!r}: give values among {', '.join(map(str, allowed)) or 'some'}")
    return found


def _number(word: str) -> int | float:
    try:
        return int(word) if word.lstrip("+-").isdecimal() else float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None


def _value(word: str, kind: Any) -> bool | int | float | str:
    """Read one value of a field; enums by name."""
    if _is_enum(kind):
        if word not in kind.__members__:
            raise ValueError(f"{word!r} is not among {', '.join(kind.__members__)}")
        return word
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    if kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            raise ValueError(f"{word!r} is no {kind.__name__}, which the field is") from None
    return word


def from_text(texts: Mapping[str, str], config: type) -> Space:
    """Read a space from the text of each field.

    Args:
        texts: the texts, by field.
        config: the Config.

    Raises:
        ValueError: for a field that the Config lacks, and for a wrong text; the message names field and text.
    """
    kinds = fields(config)
    space: Space = {}
    for name, text in texts.items():
        try:
            space[name] = parse(text, kinds[known(name, kinds)])
        except ValueError as error:
            raise ValueError(f"the space of {name}, {text!r}: {error}") from None
    return space


def checked(space: Mapping[str, Any], config: type) -> Space:
    """Check a space against a Config, and convert its bounds and values to the types of the fields.

    Args:
        space: the dimensions, by field.
        config: the Config.

    Raises:
        ValueError: for an empty space, for a field that the Config lacks, and for an int field with bounds that are
            not whole.
        TypeError: for a dimension that the type of the field does not allow.
    """
    kinds = fields(config)
    if not space:
        raise ValueError(
            f"there is nothing to search: give --space.FIELD, or SPACE in the experiment; fields: {', '.join(kinds)}"
        )
    return {name: _typed(name, dimension, kinds[known(name, kinds)]) for name, dimension in space.items()}


def known(name: str, kinds: Mapping[str, Any]) -> str:
    """Check that a Config has a field, and return the field's name.

    Args:
        name: the field's dotted name.
        kinds: `fields(Config)`.

    Raises:
        ValueError: if it does not; the message lists the fields.
    """
    if name not in kinds:
        raise ValueError(f"the space has {name!r}, which the Config lacks; its fields are {', '.join(kinds)}")
    return name


def _typed(name: str, dimension: Any, kind: Any) -> Dimension:
    shown = getattr(kind, "__name__", str(kind))
    if isinstance(dimension, Range):
        if kind not in (int, float):
            raise TypeError(f"the space of {name} is a range, and the field is {shown}; use jdl.tune.choice(...)")
        low, high = kind(dimension.low), kind(dimension.high)
        if (low, high) != (dimension.low, dimension.high):
            raise ValueError(f"the space of {name}, {dimension}: the field is int; give whole numbers")
        return Range(low, high, dimension.logarithmic)
    if not isinstance(dimension, Choice):
        raise TypeError(f"the space of {name} is {dimension!r}; write jdl.tune.uniform, log or choice")
    if kind is float:
        dimension = Choice(tuple(float(value) if type(value) is int else value for value in dimension.values))
    allowed = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    if _is_enum(kind):
        dimension = Choice(tuple(value.name if isinstance(value, enum.Enum) else value for value in dimension.values))
        allowed = tuple(typing.cast(type[enum.Enum], kind).__members__)
    for value in dimension.values:
        if value not in allowed if allowed else type(value) is not kind:
            raise TypeError(f"the space of {name}, {dimension}: {value!r} is not what the field holds, {shown}")
    return dimension


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Ask an Optuna trial for a value of each field.

    Args:
        trial: the Optuna trial; one that has been asked before gives the same values again.
        space: the dimensions, by field.

    Returns:
        The values, by field.
    """
    settings = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choice):
            settings[name] = trial.suggest_categorical(name, dimension.values)
        else:
            ask = trial.suggest_int if isinstance(dimension.low, int) else trial.suggest_float
            settings[name] = ask(name, dimension.low, dimension.high, log=dimension.logarithmic)
    return settings


def value_of(config: Any, name: str) -> Any:
    """Return the value of a config's field, given the field's dotted name."""
    return functools.reduce(getattr, name.split("."), config)


def replaced[T](config: T, settings: Mapping[str, Any]) -> T:
    """Return a copy of a config with other values in some fields.

    Args:
        config: the config.
        settings: the values, by the dotted names of their fields; enums may be given by name.
    """
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        value = replaced(getattr(config, first), {rest: value}) if rest else value
        kind = fields(type(config)).get(first)
        if _is_enum(kind) and isinstance(value, str):
            value = typing.cast(Any, kind)[value]
        config = dataclasses.replace(typing.cast(Any, config), **{first: value})
    return config


def options(config: Any) -> list[str]:
    """Return the words of a command line that make this config.

    Args:
        config: the config; a field that has its default needs no words.

    Raises:
        ValueError: if a field that differs from its default holds a dataclass, which no option can give.
    """
    default = type(config)()
    words: list[str] = []
    for name in fields(type(config)):
        value = value_of(config, name)
        if value == value_of(default, name):
            continue
        *outer, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*outer, last if value else f"no-{last}"]))
        elif dataclasses.is_dataclass(value):
            raise ValueError(f"the field {name} holds {value}, which no option of a command line gives")
        else:
            pairs = [part for pair in value.items() for part in pair] if isinstance(value, dict) else None
            several = pairs if pairs is not None else value if isinstance(value, tuple | list) else (value,)
            words += ["--" + ".".join([*outer, last]), *(_word(one) for one in several)]
    return words


def _word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, str | Path) else repr(value)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)
