"""Layers of a network with shapes, parameters and FLOPs, from one abstract trace: no array is made."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jdl.core.learner import Learner
from jdl.nn.layers.mode import mode_argument
from jdl.parallel.flops import of_operation, operations

_Path = tuple[str, ...]
_MARK = (
    "jdl-summary-call-"  # each call of a module runs in a numbered scope of this name, to find an operation's module
)


class Layer(NamedTuple):
    """A module and all modules within it.

    Attributes:
        path: names of the modules down to this one, as "blocks/layer_0"; "" for the whole model.
        kind: name of the module's class.
        output: shapes and types of the outputs of its first call.
        parameters: number of parameters.
        flops: FLOPs of the matrix products and convolutions of a forward pass; a multiply-add counts as two.
    """

    path: str
    kind: str
    output: Any
    parameters: int
    flops: int

    @property
    def depth(self) -> int:
        """How many modules contain this one."""
        return len(self.path.split("/")) if self.path else 0


class Summary(NamedTuple):
    """The layers of a network and their costs, from `summarize`.

    Attributes:
        name: name of the model's class.
        inputs: shapes and types of the inputs.
        layers: the modules in the order of their first calls; the model itself comes first.
        parameters: number of parameters.
        bytes: size of the parameters.
        training_flops: FLOPs of all operations of a forward and a backward pass, as XLA counts them; None if XLA cannot
            count them.
    """

    name: str
    inputs: Any
    layers: list[Layer]
    parameters: int
    bytes: int
    training_flops: int | None

    def rows(self, depth: int | None = None) -> list[tuple[str, str, str, str, str]]:
        """Write the layers as rows of a table.

        Args:
            depth: the depth of the innermost modules to show, 0 for the model alone; by default all are shown.

        Returns:
            For each module its name, indented by its depth, its class, outputs, parameters and FLOPs.
        """
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
        """Write the parameters, their bytes, the input and the FLOPs of the whole model in two sentences."""
        forward = f"{_large(self.layers[0].flops)} FLOPs forward (matrix products and convolutions)"
        training = "not counted for training, since XLA counts the body of a loop once"
        if self.training_flops is not None:
            training = f"{_large(self.training_flops)} forward and backward (all operations, by XLA)"
        return (
            f"{self.parameters:,} parameters, {_size(self.bytes)}. One example, {shapes(self.inputs)}: {forward}, "
            f"{training}."
        )

    def as_json(self, depth: int | None = None) -> dict[str, Any]:
        """Return the summary for `--json`, with plain numbers and strings, and layers down to a depth."""
        layers = [{**layer._asdict(), "output": shapes(layer.output)} for layer in self._down_to(depth)]
        sums = {"parameters": self.parameters, "bytes": self.bytes, "flops": self.layers[0].flops}
        training = {"training_flops": self.training_flops}
        return {"model": self.name, "input": shapes(self.inputs), **sums, **training, "layers": layers}

    def _down_to(self, depth: int | None) -> list[Layer]:
        return [layer for layer in self.layers if depth is None or layer.depth <= depth]


def summarize(model: nn.Module, *inputs: Any) -> Summary:
    """List the layers of a Linen module with their outputs, parameters and FLOPs.

    Matrix products and convolutions are counted as papers count them, padding included. Those in a scan count once per
    iteration; those in a loop of unknown length count once. XLA counts the body of either once, so with loops there is
    no `training_flops`. The operations of the optimizer are not included.

    Args:
        model: the module.
        inputs: its inputs, arrays or `jax.ShapeDtypeStruct`, with a batch axis. FLOPs are those of this batch.
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
        Layer("/".join(path), kind, output, _parameters(params, path), flops[path])
        for path, (kind, output) in calls.items()
    ]  # fmt: skip
    return Summary(
        type(model).__name__,
        inputs[0] if len(inputs) == 1 else inputs,
        layers,
        _parameters(params, ()),
        sum(leaf.size * leaf.dtype.itemsize for leaf in params.values()),
        None if loops else _training_flops(model, variables, inputs),
    )


def models_of(learner: Learner) -> list[tuple[nn.Module, tuple]]:
    """Find the Linen modules that a learner initializes, without computing anything.

    Returns:
        The modules, each with the shapes and types of the inputs that it is initialized with.
    """
    found = []

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.module.path == () and context.method_name == "__call__":
            found.append((context.module.copy(parent=None, name=None), _abstract(args)))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(learner.init, jax.random.key(0))
    return found


def shapes(tree: PyTree) -> str:
    """Write the types and shapes of the first three arrays of a pytree: "f32[1,1000]"."""
    leaves = [jax.typeof(leaf).str_short(short_dtypes=True) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return ", ".join(leaves[:3]) + (", ..." if len(leaves) > 3 else "")


def _abstract(tree: PyTree) -> PyTree:
    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf

    return jax.tree.map(shape, tree)


def _parameters(params: dict[_Path, Any], path: _Path) -> int:
    return sum(leaf.size for place, leaf in params.items() if place[: len(path)] == path)


def _training_flops(model: nn.Module, variables: dict[str, PyTree], inputs: tuple) -> int | None:
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params: PyTree, rest: PyTree, inputs: tuple) -> jax.Array:
        apply = partial(model.apply, mutable=["intermediates", *rest], rngs={"dropout": jax.random.key(0)})
        outputs, _ = apply({"params": params, **rest}, *inputs, **mode_argument(model)(True))
        leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves), jnp.float32(0))

    # Lower for a TPU: on a CPU some layers have variants with fewer products (`jdl.nn.cpu.winograd`).
    traced = jax.jit(jax.value_and_grad(loss)).trace(variables.get("params", {}), rest, inputs)
    try:
        flops = (traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}).get("flops")
    except (ValueError, NotImplementedError):  # callbacks, and operations that only this platform has
        flops = (traced.lower().cost_analysis() or {}).get("flops")
    return None if flops is None else int(flops)


def _large(number: int) -> str:
    """Write a number with three digits and a unit: "8.18 G"."""
    power = min(4, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.3g} {' kMGT'[power]}".strip()


def _size(count: int) -> str:
    """Write a number of bytes, in MB from a megabyte up."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
