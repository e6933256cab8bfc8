"""`jdl summary`: finds the network that a name means, makes it with arguments from the command line, and shows it."""

import collections.abc
import dataclasses
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
import tyro
from jaxtyping import PyTree

import jdl.nn
from jdl.cli.command import of_name
from jdl.cli.console import console, print_json, show_table
from jdl.cli.options import read
from jdl.experiment import find as finding
from jdl.report.network import Summary, models_of, summarize


@dataclasses.dataclass(frozen=True)
class Options:
    """What to show, whatever the model."""

    input: str = ""
    """the shape of one example, as 224,224,3; for a model with a vocabulary, the number of tokens"""
    depth: int | None = None
    """show modules within modules down to this depth; 0 shows the model alone"""
    json: bool = False
    """print the result as one JSON object, on the last line"""


_TAKEN = {field.name for field in dataclasses.fields(Options)}


def summary(name: str, arguments: list[str]) -> int:
    """Show a network's layers, parameters and FLOPs: its name, then --constructor-argument VALUE, --input 224,224,3.

    Args:
        name: a network of jdl.nn (ResNet50, GPT, ...), path/to/file.py:ClassName, or an experiment
    """
    target = find(name)
    chosen = read("summary", name, target, Options, arguments)
    options = chosen.options
    if options.depth is not None and options.depth < 0:
        raise ValueError(f"--depth {options.depth}: 0 shows the model alone, 1 the modules right within it too")
    models = target.summaries(chosen.config, options.input)
    for model in models:
        columns = ("module", "kind", "output", "parameters", "FLOPs")
        show_table(columns, model.rows(options.depth), fold=("module", "kind", "output"))
        console.print(model.totals(), soft_wrap=True, markup=False)
    if options.json:
        print_json({"models": [model.as_json(options.depth) for model in models]})
    return 0


class Target:
    """The models that a name on the command line stands for.

    Attributes:
        Config: a dataclass of the options that the models take.
        summaries: summarizes the models, given a Config and the text of `--input`.
    """

    def __init__(self, Config: type, summaries: Callable[[Any, str], list[Summary]], doc: str | None) -> None:
        self.Config, self.summaries, self.__doc__ = Config, summaries, doc


def networks() -> dict[str, Callable[..., nn.Module]]:
    """Return the classes and functions of `jdl.nn` that make networks and layers, by name."""
    return {name: value for name, value in vars(jdl.nn).items() if name in jdl.nn.__all__ and _makes_module(value)}


def find(name: str) -> Target:
    """Find what a name on the command line means.

    Args:
        name: a network of `jdl.nn`, a class or a module in a file (`path/to/file.py:Name`), or an experiment, which
            stands for the models of its learner.

    Raises:
        LookupError: if there is no such network; the message lists those there are.
        ValueError: if the network needs an argument that cannot be given on a command line.
    """
    known = networks()
    if name in known:
        return _of_network(name, known[name])
    file, colon, member = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _of_network(member, _in_file(Path(file), member))
    if name not in finding.names() and not name.endswith(".py") and "." not in name:
        raise LookupError(
            f"there is no network {name!r}; jdl.nn has {', '.join(sorted(known))}; "
            f"./experiments has {', '.join(finding.names()) or 'none'}; or give path/to/file.py:ClassName"
        )
    return _of_experiment(name, finding.find(name))


def example_input(model: Any, input: str = "") -> PyTree:
    """Make the shapes and types of a batch of one example that a model takes.

    A model with a `vocab_size` takes token ids, by default `context` of them. Any other takes numbers, by default in
    the shape of its class attribute `example_shape`. A model with `example_parts` takes a dict with such an array under
    each of these keys.

    Args:
        model: a Linen module.
        input: the shape of one example without the batch axis, as "224,224,3"; "" for the default.

    Raises:
        ValueError: for a text that is no shape, and if the model has no default.
    """
    ids = hasattr(model, "vocab_size")
    if input:
        shape = _shape(input)
    elif ids and hasattr(model, "context"):
        shape = (model.context,)
    elif hasattr(model, "example_shape"):
        shape = model.example_shape
    else:
        name = type(model).__name__
        raise ValueError(f"give --input, the shape of one example of {name}, as 224,224,3 (without the batch)")
    one = jax.ShapeDtypeStruct((1, *shape), np.int32 if ids else np.float32)
    return dict.fromkeys(model.example_parts, one) if hasattr(model, "example_parts") else one


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"--input {text}: give the shape of one example, as 224,224,3 (without the batch)")
    return shape


def _makes_module(value: Any) -> bool:
    """Whether a value is a class of modules, a partial of one, or a function annotated to return a module."""
    kind = value.func if isinstance(value, partial) else value
    if inspect.isfunction(kind):
        kind = kind.__annotations__.get("return")
    return isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module


def _in_file(file: Path, member: str) -> Any:
    if not file.is_file():
        raise LookupError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"summarized_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    sys.path.append(str(file.parent.absolute()))
    spec.loader.exec_module(module)
    found = {
        name: value for name, value in vars(module).items() if isinstance(value, nn.Module) or _makes_module(value)
    }
    if member not in found:
        raise LookupError(f"{file} has no Linen module {member!r}; it has {', '.join(found) or 'none'}")
    return found[member]


def _of_experiment(name: str, module: types.ModuleType) -> Target:
    if not hasattr(module, "learner") or len(inspect.signature(module.learner).parameters) != 1:
        raise LookupError(
            f"the experiment {name} has no learner(config), by which its models could be found; "
            "give the network itself: path/to/file.py:ClassName"
        )

    def summaries(config: Any, input: str) -> list[Summary]:
        if input:
            raise ValueError(f"--input {input}: the inputs of an experiment are those of its data; leave it out")
        models = models_of(module.learner(config))
        if not models:
            raise LookupError(f"the learner of {name} initializes no Linen module")
        return [summarize(model, *inputs) for model, inputs in models]

    return Target(module.Config, summaries, module.__doc__)


def _of_network(name: str, network: Any) -> Target:
    """Describe a network to be made with arguments from the command line, or a module that is made already."""
    make = (lambda: network) if isinstance(network, nn.Module) else network
    kind = network.func if isinstance(network, partial) else network
    chosen: list[Any] = []
    places = {}  # fields of the command's dataclass, by the arguments that they hold
    for parameter in inspect.signature(make).parameters.values():
        if parameter.name in ("parent", "name") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        hint, required = typing.get_type_hints(kind)[parameter.name], parameter.default is parameter.empty
        if not _can_be_typed(hint) and not required:
            continue
        if not _can_be_typed(hint):
            raise ValueError(
                f"{name} needs {parameter.name}, which cannot be given on a command line; make the module in a file "
                "and give that: path/to/file.py:name"
            )
        place = parameter.name
        if place in _TAKEN:  # by the command: the argument is --model.NAME
            place, hint = f"model_{place}", typing.Annotated[hint, tyro.conf.arg(name=f"model.{place}")]
        places[parameter.name] = place
        default = dataclasses.field() if required else dataclasses.field(default=parameter.default)
        chosen.append((place, hint, default))
    config = dataclasses.make_dataclass(name, chosen, frozen=True, kw_only=True)

    def summaries(config: Any, input: str) -> list[Summary]:
        values = {field: getattr(config, place) for field, place in places.items()}
        model = make(**values)
        return [summarize(model, example_input(model, input))._replace(name=name)]

    return Target(config, summaries, kind.__doc__)


def _can_be_typed(hint: Any) -> bool:
    """Whether a value of the type can be written on a command line: a number, a word, or several of them."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return all(_can_be_typed(part) for part in parts)
    if origin in (tuple, list, collections.abc.Sequence):
        return all(part in (int, float, bool, str, Ellipsis) for part in parts)
    return origin is Literal or hint in (int, float, bool, str, type(None))


COMMAND = of_name(summary)
