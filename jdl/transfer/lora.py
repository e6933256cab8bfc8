"""LoRA: fine-tune a model by adding low-rank matrices to its dense kernels, which stay fixed.

model = jdl.lora.LoRA(jdl.nn.GPT(50257), rank=8, patterns=("query/kernel$", "value/kernel$"))
learner = jdl.supervised(model, loss, optax.adamw(1e-4), example=data, variables={"base": loaded["params"]})
...
plain = jdl.lora.merge(model, {"params": state.params, **state.collections})
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jdl.core.learner import fold
from jdl.core.precision import compute_type
from jdl.nn.layers.mode import mode_argument


class LoRA(nn.Module):
    """A model whose dense kernels `W [in, out]` become `W + alpha / rank A B`, with A `[in, rank]`, B `[rank, out]`.

    The collection "params" holds only A and B. The model's own parameters are in the collection "base", which no
    optimizer sees. B starts at zero, so that the adapted model starts equal to the original. Stacked kernels
    `[layers, in, out]`, which scanned layers have, get stacked A and B. The sum is computed at every call, which
    costs a matrix product of rank `rank` per kernel. For a new head whose weights are all trained, use
    `Classifier(LoRA(body, 8), num_classes)`.

    Attributes:
        model: the model to adapt
        rank: rank of the added matrices
        patterns: regular expressions for the kernels to adapt, searched for in paths such as
            "blocks/layer_0/attention/query/kernel"
        alpha: scale of the added matrices; by default the rank, for a factor of 1

    Raises:
        ValueError: when initialized, for a rank below 1 and for a pattern that matches no dense kernel

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2022, section 4.1.
    """

    model: nn.Module
    rank: int
    patterns: tuple[str, ...] = ("kernel$",)
    alpha: float | None = None

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False, **options: Any) -> Any:
        """Call the adapted model, with the model's inputs and outputs."""
        model = self.model.clone(parent=None)
        arguments = {**options, **mode_argument(model)(train)}
        assert self.scope is not None
        rngs = {name: self.make_rng(name) for name in self.scope.rngs}
        if self.is_initializing():
            outputs, changed = self._draw(lambda: model.init_with_output(rngs, *inputs, **arguments))
        else:
            plain = merge(self, self.variables)
            plain["params"] = compute_type(plain["params"])
            mutable = flax.core.scope.subtract_filters(self.scope.mutable, ["params", "base"])
            outputs, changed = model.apply(plain, *inputs, rngs=rngs, mutable=mutable, **arguments)
        for collection, tree in changed.items():
            for name, value in tree.items():
                self.put_variable(collection, name, value)
        return outputs

    def check_inputs(self, inputs: Any) -> None:
        """Run the model's check, if it has one."""
        if hasattr(self.model, "check_inputs"):
            self.model.check_inputs(inputs)  # type: ignore[operator]

    def _draw(self, init: Callable[[], tuple[Any, Mapping[str, PyTree]]]) -> tuple[Any, dict[str, PyTree]]:
        """Return the model's initial outputs and variables, its parameters as "base", A and B as "params"."""
        if self.rank < 1:
            raise ValueError(f"LoRA(rank={self.rank}): a rank is at least 1; 4 to 16 are usual")
        kernels: dict[str, None] = {}  # an ordered set

        def note(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
            if isinstance(context.module, nn.Dense):
                kernels["/".join((*context.module.path, "kernel"))] = None
            return call(*arguments, **options)

        with nn.intercept_methods(note):
            outputs, drawn = init()
        for pattern in self.patterns:
            if not any(re.search(pattern, path) for path in kernels):
                raise ValueError(
                    f"LoRA: the pattern {pattern!r} matches no dense kernel; there are {', '.join(kernels) or 'none'}"
                )
        base: dict[str, Any] = flax.traverse_util.flatten_dict(drawn["params"], sep="/")
        chosen = [path for path in kernels if any(re.search(pattern, path) for pattern in self.patterns)]
        key = self.make_rng("params")
        adapters = {path: self._adapter(fold(key, path), base[path]) for path in chosen}
        params = flax.traverse_util.unflatten_dict(adapters, sep="/")
        return outputs, {**drawn, "base": drawn["params"], "params": params}

    def _adapter(self, key: Array, kernel: Float[Array, "*layers inputs outputs"]) -> dict[str, Array]:
        *layers, inputs, outputs = kernel.shape
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)  # single precision for a half-precision base
        noise = jax.random.normal(key, (*layers, inputs, self.rank), dtype)
        return {"A": noise / np.sqrt(inputs), "B": jnp.zeros((*layers, self.rank, outputs), dtype)}


def merge(model: LoRA, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Merge the adapted kernels into variables of the plain model, for export and serving.

    Args:
        model: the adapted model
        variables: `{"params": state.params, **state.collections}`; for a `LoRA` within another model, take its part
            with `jdl.transfer.take`

    Raises:
        ValueError: for variables without the collections "params" and "base", such as those of another model
    """
    if "base" not in variables or "params" not in variables:
        raise ValueError(
            f'a LoRA has the collections "params" (A and B) and "base" (the model\'s own), given were '
            f"{', '.join(sorted(variables)) or 'none'}; pass {{'params': state.params, **state.collections}}"
        )
    base: dict[str, Any] = flax.traverse_util.flatten_dict(variables["base"], sep="/")
    adapters: dict[str, Any] = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    factor = 1.0 if model.alpha is None else model.alpha / model.rank
    for path in [path.removesuffix("/A") for path in adapters if path.endswith("/A")]:
        added = factor * (adapters[f"{path}/A"] @ adapters[f"{path}/B"])
        base[path] = (base[path] + added).astype(base[path].dtype)
    rest = {name: tree for name, tree in variables.items() if name not in ("params", "base")}
    return {"params": flax.traverse_util.unflatten_dict(base, sep="/"), **rest}
