"""Transfer learning: which trained weights a model starts from, which of its parameters move, and how fast.

    body = jdl.pretrained.load("model.safetensors", jdl.pretrained.BERT, like)
    variables = jdl.transfer.graft(body, "encoder/encoder")  # of Classifier(Pooled(BERT(...)))
    optimizer = jdl.transfer.freeze(optax.adamw(2e-5), "tokens|positions|types")
    learner = jdl.supervised(model, loss, optimizer, example=data, variables=variables)

Patterns are regular expressions, searched for in "encoder/blocks/layer_0/attention/query/kernel" and the like. Layers
that are scanned are one parameter with a leading axis: a pattern cannot tell them apart.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jdl.evaluate import padded_batches
from jdl.nn.mode import mode_argument

# A number, or, for layers that are scanned, one for each along the leading axis.
Factor = float | Float[Array, ""] | Sequence[float]


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """The optimiser for all parameters but those that match: these never change, and take no optimiser state.

    Weight decay does not reach them either. Their gradients still count for `clip_norm=`, and batch normalisation of a
    frozen body still follows the batches: `jdl.nn.Classifier(frozen=True)` stops both.
    Raises ValueError for a pattern that matches no parameter.
    """

    def labels(params: PyTree) -> PyTree:
        paths, structure = _paths(params)
        _check_patterns(patterns, paths)
        return jax.tree.unflatten(structure, ["frozen" if _matching(patterns, path) else "trained" for path in paths])

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def unfreeze_gradually(
    optimizer: optax.GradientTransformation, first_updates: Mapping[str, int | Int[Array, ""]]
) -> optax.GradientTransformation:
    """The optimiser with matching parameters at rest before their first update, counted from 0; others move at once.

    The optimiser itself sees all gradients from the start: when a parameter is let go its moments are those of the
    gradients so far, and learning-rate schedules stand where they do for the others. (An optimiser that began anew
    would make its first steps from a single gradient.)
    Raises ValueError for a pattern that matches no parameter, and for a parameter that several patterns match.
    Source: Howard and Ruder, "Universal language model fine-tuning for text classification", 2018, section 3.3.
    """
    for pattern, first in first_updates.items():
        if isinstance(first, int) and first < 0:
            raise ValueError(f"unfreeze_gradually: {pattern!r} has its first update at {first}; the first of all is 0")

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        _by_pattern(params, first_updates, 0)  # so that errors come before any training
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.ScaleByScheduleState]:
        # Chosen, not multiplied: an update that is no number stays without effect.
        begun = lambda first, update: jnp.where(state.count >= first, update, 0)  # noqa: E731
        updates = _mapped(begun, _by_pattern(updates, first_updates, 0), updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def scale_by_path(factors: Mapping[str, Factor], default: float | None = None) -> optax.GradientTransformation:
    """Discriminative learning rates: multiply the updates of matching parameters.

    >>> rates = scale_by_path({"head": 1.0, "blocks": 0.1}, default=0.0)
    >>> optimizer = optax.chain(optax.adamw(1e-3), rates)  # last, since Adam would undo a factor on gradients

    factors: by pattern, such as `layerwise_decay` makes; a sequence has one for each layer of a scanned stack.
    default: for parameters that no pattern matches; without one they are an error.
    Raises ValueError for a pattern that matches no parameter, and for a parameter that several patterns match.
    Source: Howard and Ruder 2018, section 3.2.
    """

    def scaled(factor: Any, update: Array) -> Array:
        if np.ndim(factor) == 0:
            return update * jnp.asarray(factor, update.dtype)
        if update.shape[:1] != (len(factor),):
            raise ValueError(
                f"scale_by_path: {len(factor)} factors for a parameter of shape {update.shape}; a sequence has one for "
                "each layer of a scanned stack, along the leading axis"
            )
        return update * jnp.asarray(factor, update.dtype).reshape(-1, *[1] * (update.ndim - 1))

    def init(params: PyTree) -> optax.EmptyState:
        jax.eval_shape(update, params, optax.EmptyState())  # so that errors come before any training
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        return _mapped(scaled, _by_pattern(updates, factors, default), updates), state

    return optax.GradientTransformation(init, update)


def layerwise_decay(
    decay: float | Float[Array, ""], layers: Sequence[str | tuple[str, int]]
) -> dict[str, Float[Array, ""] | float | list[float]]:
    """Learning-rate factors for `scale_by_path`: 1 for the last group of layers, `decay` times that for the one before.

    >>> layerwise_decay(0.5, ["tokens|positions", "layer_0/", "layer_1/", "head"])
    {'tokens|positions': 0.125, 'layer_0/': 0.25, 'layer_1/': 0.5, 'head': 1.0}
    >>> layerwise_decay(0.5, ["tokens", ("blocks/layers", 2), "head"])
    {'tokens': 0.125, 'blocks/layers': [0.25, 0.5], 'head': 1.0}

    layers: patterns from the input to the output; `(pattern, number)` for a scanned stack of that many layers.
    Sources: Howard and Ruder 2018, section 3.2 (who divide by 2.6); Bao et al., "BEiT", 2022.
    """
    if isinstance(decay, float | int) and not 0 < decay <= 1:
        raise ValueError(f"layerwise_decay(decay={decay}): give a factor above 0 and at most 1; 0.75 to 0.95 are usual")
    factors: dict[str, Any] = {}
    depth = 0
    for layer in reversed(layers):
        pattern, number = (layer, 1) if isinstance(layer, str) else layer
        rates = [decay ** (depth + place) * 1.0 for place in reversed(range(number))]
        factors[pattern] = rates[0] if isinstance(layer, str) else rates
        depth += number
    return dict(reversed(factors.items()))


def cut(variables: Mapping[str, PyTree], *patterns: str) -> dict[str, PyTree]:
    """Variables without those that match, such as an old head; paths begin with the collection, "params/head/kernel".

    Raises ValueError for a pattern that matches nothing.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    _check_patterns(patterns, flat)
    kept = {path: leaf for path, leaf in flat.items() if not _matching(patterns, path)}
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def graft(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """Variables of a body as those of the part of a larger model that stands at this path, in every collection.

    >>> graft({"params": {"tokens": 1}, "batch_stats": {"mean": 2}}, "encoder")
    {'params': {'encoder': {'tokens': 1}}, 'batch_stats': {'encoder': {'mean': 2}}}
    """
    for name in reversed(path.split("/")):
        variables = {collection: {name: tree} for collection, tree in variables.items()}
    return dict(variables)


def take(variables: Mapping[str, PyTree], path: str) -> dict[str, PyTree]:
    """The variables of the part of a model that stands at this path: the inverse of `graft`.

    Raises ValueError where nothing stands there.
    """
    taken = {}
    for collection, tree in variables.items():
        for name in path.split("/"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        if tree is not None:
            taken[collection] = tree
    if not taken:
        flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
        raise ValueError(f"nothing stands at {path!r}; there are {', '.join(flat)}")
    return taken


def features(model: nn.Module, variables: Mapping[str, PyTree], data: Any, batch_size: int = 256) -> Any:
    """A model's outputs for every example as NumPy arrays, evaluated in batches by one program: for linear probes.

    data: the model's inputs with a leading axis of examples, or a data set whose "input" they are.
    """
    inputs = data["input"] if isinstance(data, Mapping) and "input" in data else data
    mode = mode_argument(model)
    apply = jax.jit(lambda variables, inputs: model.apply(variables, inputs, **mode(False)))
    size = len(jax.tree.leaves(inputs)[0])
    batches = padded_batches({"input": inputs}, batch_size)
    outputs = [jax.tree.map(np.asarray, apply(variables, batch["input"])) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *outputs)


def _masked(leaf: Any) -> bool:
    """Whether a parameter is left to another optimiser, as within `freeze`: patterns match its path all the same."""
    return isinstance(leaf, optax.MaskedNode)


def _paths(params: PyTree) -> tuple[list[str], Any]:
    found, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_masked)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found], structure


def _mapped(function: Callable[[Any, Array], Array], values: Sequence[Any], updates: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(updates, is_leaf=_masked)
    pairs = zip(values, leaves, strict=True)
    return jax.tree.unflatten(structure, [leaf if _masked(leaf) else function(value, leaf) for value, leaf in pairs])


def _by_pattern(params: PyTree, values: Mapping[str, Any], default: Any) -> list[Any]:
    """The value of each parameter, in the order of the leaves."""
    paths, _ = _paths(params)
    _check_patterns(values, paths)
    found = []
    for path in paths:
        patterns = _matching(values, path)
        if len(patterns) > 1:
            raise ValueError(
                f"{path} is matched by {' and '.join(map(repr, patterns))}; make them apart ('layer_1/' does not match "
                "layer_10)"
            )
        if not patterns and default is None:
            raise ValueError(f"{path} is matched by none of {', '.join(map(repr, values))}; add a pattern or default=")
        found.append(values[patterns[0]] if patterns else default)
    return found


def _matching(patterns: Iterable[str], path: str) -> list[str]:
    return [pattern for pattern in patterns if re.search(pattern, path)]


def _check_patterns(patterns: Iterable[str], paths: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"the pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
