"""A network at a glance: its layers with shapes, parameters and FLOPs, from one abstract trace; no array is made."""

import collections.abc
import dataclasses
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import jdl.nn
from jdl.core.learner import Learner
from jdl.experiment import find as finding
from jdl.nn.layers.mode import mode_argument
from jdl.parallel.flops import of_operation, operations

_Path = tuple[str, ...]
_MARK = "jdl-summary-call-"  # a scope of this name around each call of a module, numbered, tells whose an operation is


class Layer(NamedTuple):
    """A module and all within it."""

    path: str  # "" is the whole model
    kind: str
    output: Any  # shapes and types
    parameters: int
    flops: int  # of the matrix products and convolutions of a forward pass; a multiply-add is two

    @property
    def depth(self) -> int:
        """How many modules it is within."""
        return len(self.path.split("/")) if self.path else 0


class Summary(NamedTuple):
    """What `summarize` finds out about a model, for a batch of one example."""

    name: str
    inputs: Any  # shapes and types
    layers: list[Layer]  # in the order of their first calls; the model itself first
    parameters: int
    bytes: int  # of the parameters
    training_flops: int | None  # forward and backward, all operations, as XLA counts them; None where it cannot

    def rows(self, depth: int | None = None) -> list[tuple[str, str, str, str, str]]:
        """A table down to a depth: the module, indented, its kind, its outputs, its parameters, its FLOPs."""
        return [
            (
                "  " * layer.depth + (layer.path.rpartition("/")[2] or self.name),
                layer.kind,
                shapes(layer.output),
                f"{layer.parameters:,}",
                _large(layer.flops),
            )
            for layer in self._down_to(depth)
        ]

    def totals(self) -> str:
        """The sums, in a sentence."""
        forward = f"{_large(self.layers[0].flops)} FLOPs forward (matrix products and convolutions)"
        training = "not counted for training, since XLA counts the body of a loop once"
        if self.training_flops is not None:
            training = f"{_large(self.training_flops)} forward and backward (all operations, by XLA)"
        return (
            f"{self.parameters:,} parameters, {self.bytes / 1e6:,.1f} MB. One example, {shapes(self.inputs)}: "
            f"{forward}, {training}."
        )

    def as_json(self, depth: int | None = None) -> dict[str, Any]:
        """The same for a program: plain numbers and strings."""
        layers = [{**layer._asdict(), "output": shapes(layer.output)} for layer in self._down_to(depth)]
        sums = {"parameters": self.parameters, "bytes": self.bytes, "flops": self.layers[0].flops}
        training = {"training_flops": self.training_flops}
        return {"model": self.name, "input": shapes(self.inputs), **sums, **training, "layers": layers}

    def _down_to(self, depth: int | None) -> list[Layer]:
        return [layer for layer in self.layers if depth is None or layer.depth <= depth]


def summarize(model: nn.Module, *inputs: Any) -> Summary:
    """The layers of a Linen module for inputs with a batch axis, arrays or `jax.ShapeDtypeStruct`.

    Matrix products and convolutions are counted as papers count them, padding included. Those in a scan count once an
    iteration, those in a loop without a known length once. XLA counts the body of either once: there is no
    `training_flops` then. The optimizer's operations are not among them.
    """
    inputs = _abstract(inputs)
    mode = mode_argument(model)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = dict(jax.eval_shape(partial(model.init, **mode(False)), keys, *inputs))
    calls: dict[_Path, tuple[str, Any]] = {}
    scopes: list[_Path] = []

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        path, method = context.module.path, context.method_name
        if method == "setup":
            return call(*args, **kwargs)
        calls.setdefault(path, (type(context.module).__name__, None))
        scopes.append(path)
        with jax.named_scope(f"{_MARK}{len(scopes) - 1}"):
            outputs = call(*args, **kwargs)
        if method == "__call__" or calls[path][1] is None:
            calls[path] = (calls[path][0], _abstract(outputs))
        return outputs

    with nn.intercept_methods(record):
        jaxpr = jax.make_jaxpr(partial(model.apply, **mode(False)))(variables, *inputs)
    flops = dict.fromkeys(calls, 0)
    loops = False
    for names, operation, times in operations(jaxpr):
        loops = loops or operation.primitive.name in ("scan", "while")
        innermost = int(re.findall(rf"{_MARK}(\d+)", names)[-1])
        for depth in range(len(scopes[innermost]) + 1):
            if scopes[innermost][:depth] in flops:
                flops[scopes[innermost][:depth]] += times * of_operation(operation)
    params: dict[_Path, Any] = flax.traverse_util.flatten_dict(variables.get("params", {}))
    layers = [
        Layer("/".join(path), kind, output, _size(params, path), flops[path])
        for path, (kind, output) in calls.items()
    ]  # fmt: skip
    return Summary(
        type(model).__name__,
        inputs[0] if len(inputs) == 1 else inputs,
        layers,
        _size(params, ()),
        sum(leaf.size * leaf.dtype.itemsize for leaf in params.values()),
        None if loops else _training_flops(model, variables, inputs),
    )


def _abstract(tree: PyTree) -> PyTree:
    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf

    return jax.tree.map(shape, tree)


def _size(params: dict[_Path, Any], path: _Path) -> int:
    return sum(leaf.size for place, leaf in params.items() if place[: len(path)] == path)


def _training_flops(model: nn.Module, variables: dict[str, PyTree], inputs: tuple) -> int | None:
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params: PyTree, rest: PyTree, inputs: tuple) -> jax.Array:
        apply = partial(model.apply, mutable=["intermediates", *rest], rngs={"dropout": jax.random.key(0)})
        outputs, _ = apply({"params": params, **rest}, *inputs, **mode_argument(model)(True))
        leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves), jnp.float32(0))

    # As another platform computes it: a CPU has ways of its own with fewer products (`jdl.nn.cpu.winograd`).
    traced = jax.jit(jax.value_and_grad(loss)).trace(variables.get("params", {}), rest, inputs)
    try:
        flops = (traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}).get("flops")
    except (ValueError, NotImplementedError):  # callbacks, and what this platform alone has
        flops = (traced.lower().cost_analysis() or {}).get("flops")
    return None if flops is None else int(flops)


def models_of(learner: Learner) -> list[tuple[nn.Module, tuple]]:
    """The Linen modules that a learner initializes, each with the inputs it is given; nothing is computed."""
    found = []

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.module.path == () and context.method_name == "__call__":
            found.append((context.module.copy(parent=None, name=None), _abstract(args)))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(learner.init, jax.random.key(0))
    return found


class Target:
    """What a name stands for: `Config`, a dataclass of what may be chosen, and `summaries(config, input)`."""

    def __init__(self, Config: type, summaries: Callable[[Any, str], list[Summary]], doc: str | None) -> None:
        self.Config, self.summaries, self.__doc__ = Config, summaries, doc


def networks() -> dict[str, Callable[..., nn.Module]]:
    """What makes the networks and layers of `jdl.nn`, by name."""
    return {name: value for name, value in vars(jdl.nn).items() if name in jdl.nn.__all__ and _makes_module(value)}


def _makes_module(value: Any) -> bool:
    """Whether it is a class of modules, one with some arguments given, or a function annotated with one."""
    kind = value.func if isinstance(value, partial) else value
    if inspect.isfunction(kind):
        kind = kind.__annotations__.get("return")
    return isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module


def find(name: str) -> Target:
    """A network of `jdl.nn`, one in a file (`path/to/file.py:Name`), or the models of an experiment's learner.

    Raises LookupError, with the names there are, for another.
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


def _in_file(file: Path, member: str) -> Any:
    if not file.is_file():
        raise LookupError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"summarized_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
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


_OPTIONS = ("depth", "input", "json")  # of the command; a constructor's argument of such a name is --model.NAME


def _of_network(name: str, network: Any) -> Target:
    """A network that is made with arguments from the command line, or a module that is made already."""
    import tyro

    make = (lambda: network) if isinstance(network, nn.Module) else network
    kind = network.func if isinstance(network, partial) else network
    chosen: list[Any] = []
    places = {}  # in the command's dataclass
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
        if place in _OPTIONS:
            place, hint = f"model_{place}", typing.Annotated[hint, tyro.conf.arg(name=f"model.{place}")]
        places[parameter.name] = place
        default = dataclasses.field() if required else dataclasses.field(default=parameter.default)
        chosen.append((place, hint, default))
    config = dataclasses.make_dataclass(name, chosen, frozen=True, kw_only=True)

    def summaries(config: Any, input: str) -> list[Summary]:
        values = {field: getattr(config, place) for field, place in places.items()}
        model = make(**values)
        return [summarize(model, _example(model, input))._replace(name=name)]

    return Target(config, summaries, kind.__doc__)


def _can_be_typed(hint: Any) -> bool:
    """Whether a value of the type can be written on a command line: a number, a word, or several."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return all(_can_be_typed(part) for part in parts)
    if origin in (tuple, list, collections.abc.Sequence):
        return all(part in (int, float, bool, str, Ellipsis) for part in parts)
    return origin is Literal or hint in (int, float, bool, str, type(None))


_SHAPES = {"LeNet5": (32, 32, 1), "CapsNet": (28, 28, 1), "WideResNet": (32, 32, 3)}  # of the papers


def _example(model: nn.Module, input: str) -> PyTree:
    """One example: ids for a model with a vocabulary, else numbers; raises ValueError where a shape must be given."""
    name, ids = type(model).__name__, hasattr(model, "vocab_size")
    if input:
        try:
            sizes = tuple(int(size) for size in input.split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"--input {input}: give the shape of one example, as 224,224,3 (without the batch)")
    elif ids and hasattr(model, "context"):
        sizes = (model.context,)
    else:
        images, *_ = list(inspect.signature(type(model).__call__).parameters.values())[1:]
        takes_images = getattr(images.annotation, "dim_str", "") == "batch height width channels"
        sizes = _SHAPES.get(name, (224, 224, 3) if takes_images else ())
        if not sizes:
            raise ValueError(f"give --input, the shape of one example of {name}, as 224,224,3 (without the batch)")
    one = jax.ShapeDtypeStruct((1, *sizes), np.int32 if ids else np.float32)
    return {"source": one, "target": one} if isinstance(model, jdl.nn.EncoderDecoder) else one


def shapes(tree: PyTree) -> str:
    """A pytree of shapes in a line: "f32[1,1000]"."""
    leaves = [jax.typeof(leaf).str_short(short_dtypes=True) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return ", ".join(leaves[:3]) + (", ..." if len(leaves) > 3 else "")


def _large(number: int) -> str:
    """Three digits and a unit: "8.18 G"."""
    power = min(4, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.3g} {' kMGT'[power]}".strip()
