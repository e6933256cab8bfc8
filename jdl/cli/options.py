"""Reading the words after a command's name: the command's own options, and the fields of an experiment's Config."""

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from jdl.experiment import search_space


def read(
    verb: str, name: str, module: Any, options: type, arguments: list[str], default: Any = None, **more: Any
) -> Any:
    """Parse a command line into `.options` and `.config`. `--help`, and options that do not fit, end the process.

    Args:
        verb: the command.
        name: what the command is about, as the user named it.
        module: has the Config and a docstring. It may have RENAMED, the new names of fields by their old names; an old
            name is understood, with a note.
        options: the dataclass of the command's own options.
        arguments: the words.
        default: the config that the options change, by default `module.Config()`.
        more: further groups of options, each a dataclass; its options begin with the group's name, `--GROUP.FIELD`.

    Raises:
        ValueError: for a Config with a field that is an option of the command, and for an option that is cut short.
    """
    taken = {field.name for field in dataclasses.fields(options)} | more.keys()
    clash = taken & {field.name for field in dataclasses.fields(module.Config)}
    if clash:
        raise ValueError(f"the Config of {name} has fields that `jdl {verb}` uses; rename {', '.join(sorted(clash))}")
    field = dataclasses.field() if default is None else dataclasses.field(default_factory=lambda: default)
    command = dataclasses.make_dataclass(
        "command",
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("config", Annotated[module.Config, tyro.conf.arg(name="")], field),
            *more.items(),
        ],
        kw_only=True,
    )
    arguments = _by_new_names(arguments, getattr(module, "RENAMED", {}), ("--", "--no-"))
    _check_whole(arguments, [*search_space.fields(options), *search_space.fields(module.Config)])
    description = (module.__doc__ or "").strip()
    return tyro.cli(command, prog=f"jdl {verb} {name}", args=arguments, description=description)


def read_by_field(
    verb: str, name: str, module: Any, options: type, arguments: list[str], group: str, metavar: str, text: str
) -> tuple[Any, dict[str, str]]:
    """Parse a command line as `read` does, with a further option `--GROUP.FIELD` for each field of the Config.

    Args:
        verb: the command.
        name: what the command is about, as the user named it.
        module: as in `read`. Its SPACE, if it has one, is shown as the help of the options of a group "space".
        options: the dataclass of the command's own options.
        arguments: the words.
        group: the name of the group.
        metavar: what the help calls the value of such an option.
        text: the help of the group.

    Returns:
        What `read` returns, and the texts given for fields.

    Raises:
        ValueError: as `read`, and for a field that the Config lacks; the message names the nearest.
    """
    fields = search_space.fields(module.Config)
    arguments = _by_new_names(arguments, getattr(module, "RENAMED", {}), (f"--{group}.",))
    for word in arguments:
        if word.startswith(f"--{group}."):
            _check_field(word, word.removeprefix(f"--{group}.").partition("=")[0].replace("-", "_"), fields)
    places = {field.replace(".", "__"): field for field in fields}  # as Python names
    declared = getattr(module, "SPACE", {}) if group == "space" else {}
    asked = []
    for place, field in places.items():
        shown = tyro.conf.arg(name=field, metavar=metavar, help=str(declared.get(field, "")))
        asked.append((place, Annotated[str | None, shown], None))
    chosen = read(
        verb, name, module, options, arguments,
        **{group: dataclasses.make_dataclass(group, asked, namespace={"__doc__": text})},
    )  # fmt: skip
    texts = {field: getattr(getattr(chosen, group), place) for place, field in places.items()}
    return chosen, {field: text for field, text in texts.items() if text is not None}


def _by_new_names(arguments: Sequence[str], renamed: Mapping[str, str], prefixes: Sequence[str]) -> list[str]:
    """Replace the old names of fields in a command line by their new names, and say so."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        for prefix in prefixes:
            new = renamed.get(name.removeprefix(prefix).replace("-", "_")) if name.startswith(prefix) else None
            if new:
                option = prefix + new.replace("_", "-")
                print(f"jdl: {name} is called {option} now; the old name goes with the next version", file=sys.stderr)
                word = option + equals + value
        words.append(word)
    return words


def _check_whole(arguments: Sequence[str], fields: Sequence[str]) -> None:
    """Raise ValueError for an option that is cut short; tyro would suggest any option with these letters in it."""
    names = ["--" + field.replace("_", "-") for field in fields]
    groups = {name.rpartition(".")[0] for name in names}
    for word in arguments:
        given = word.partition("=")[0].replace("_", "-")
        meant = [name for name in names if name.startswith(given)]
        if given.startswith("--") and given != "--" and meant and given not in [*names, *groups]:
            nearest = sorted(meant, key=len)
            raise ValueError(f"there is no option {given}; did you mean {' or '.join(nearest)}?")


def _check_field(word: str, field: str, fields: Mapping[str, Any]) -> None:
    try:
        search_space.known(field, fields)
    except ValueError as error:
        nearest = difflib.get_close_matches(field, fields, 3)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise ValueError(f"{word.partition('=')[0]}: {hint}{error}") from None
