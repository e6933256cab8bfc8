"""What a command takes beside the experiment's own fields, and how its words are read."""

import dataclasses
import sys
from typing import Annotated, Any

import tyro

from jdl.experiment import search_space


def read(
    verb: str, name: str, module: Any, options: type, arguments: list[str], default: Any = None, **more: Any
) -> Any:
    """Parse a command line into `.options` and `.config`.

    Args:
        verb: the command.
        name: what it is about, as the user named it.
        module: has the Config, a docstring, perhaps RENAMED.
        options: the dataclass of the command's own options.
        arguments: the words.
        default: the config that options change, by default that of `module.Config`.
        more: further groups of options, each a type under its name as prefix.
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
    arguments = _by_new_names(arguments, getattr(module, "RENAMED", {}))
    description = (module.__doc__ or "").strip()
    return tyro.cli(command, prog=f"jdl {verb} {name}", args=arguments, description=description)


def _by_new_names(arguments: list[str], renamed: dict[str, str]) -> list[str]:
    """The words of a command line with each field that an experiment has renamed under its new name."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        new = renamed.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if new:
            option = f"--{new.replace('_', '-')}"
            print(f"jdl: {name} is called {option} now; the old name goes with the next version", file=sys.stderr)
            word = option + equals + value
        words.append(word)
    return words


def read_by_field(
    verb: str, name: str, module: Any, options: type, arguments: list[str], group: str, metavar: str, text: str
) -> tuple[Any, dict[str, str]]:
    """What a command line says, as `read`, and what it says of fields by --GROUP.FIELD."""
    fields = search_space.fields(module.Config)
    for word in arguments:
        if word.startswith(f"--{group}."):
            search_space.known(word.removeprefix(f"--{group}.").partition("=")[0].replace("-", "_"), fields)
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
