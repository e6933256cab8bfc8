"""Which parameters an optimizer updates, and how fast, by their path.

Patterns are regular expressions, searched for in paths such as "encoder/blocks/layer_0/attention/query/kernel".
Scanned layers are one parameter with a leading axis, so a pattern cannot tell them apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jdl.core.paths import check_patterns, masked, matching

# A number, or for scanned layers a sequence with one number per layer along the leading axis.
Factor = float | Float[Array, ""] | Sequence[float]


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Update all parameters except those that match; these never change, and take no optimizer state.

    Weight decay does not reach frozen parameters either. Their gradients still count for `clip_norm=`, and batch
    normalization in a frozen body still updates its statistics from the batches; `jdl.nn.Classifier(frozen=True)`
    stops both.

    Args:
        optimizer: optimizer of all other parameters
        *patterns: regular expressions for the parameters to freeze

    Raises:
        ValueError: for a pattern that matches no parameter
    """

    def labels(params: PyTree) -> PyTree:
        paths, structure = _paths(params)
        check_patterns(patterns, paths)
        return jax.tree.unflatten(structure, ["frozen" if matching(patterns, path) else "trained" for path in paths])

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def unfreeze_gradually(
    optimizer: optax.GradientTransformation, first_updates: Mapping[str, int | Int[Array, ""]]
) -> optax.GradientTransformation:
    """Keep matching parameters fixed until their first update; all others are updated from the start.

    The optimizer itself sees all gradients from the start. When a parameter is released, its moments are those of the
    gradients so far, and learning-rate schedules are where they are for the other parameters. (An optimizer that
    started afresh would base its first steps on a single gradient.)

    Args:
        optimizer: optimizer of all parameters
        first_updates: for each pattern, the first update that changes the parameters, counted from 0

    Raises:
        ValueError: for a pattern that matches no parameter, for a parameter that several patterns match, and for a
            negative first update

    Source: Howard and Ruder, "Universal language model fine-tuning for text classification", 2018, section 3.3.
    """
    for pattern, first in first_updates.items():
        if isinstance(first, int) and first < 0:
            raise ValueError(f"unfreeze_gradually: {pattern!r} has its first update at {first}; the first of all is 0")

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        _by_pattern(params, first_updates, 0)  # raise errors before any training
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.ScaleByScheduleState]:
        # Select instead of multiplying, so that an update of NaN has no effect.
        begun = lambda first, update: jnp.where(state.count >= first, update, 0)  # noqa: E731
        updates = _mapped(begun, _by_pattern(updates, first_updates, 0), updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def scale_by_path(factors: Mapping[str, Factor], default: float | None = None) -> optax.GradientTransformation:
    """Discriminative learning rates: multiply the updates of matching parameters.

    Args:
        factors: a factor for each pattern, for instance from `layerwise_decay`; a sequence has one factor for each
            layer of a scanned stack
        default: factor for parameters that no pattern matches; by default they are an error

    Raises:
        ValueError: for a pattern that matches no parameter, for a parameter that several patterns match or, without a
            default, none, and for a sequence of the wrong length

    Source: Howard and Ruder 2018, section 3.2.

    Examples:
        >>> rates = scale_by_path({"head": 1.0, "blocks": 0.1}, default=0.0)
        >>> optimizer = optax.chain(optax.adamw(1e-3), rates)  # last, since Adam would undo a factor on gradients
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
        jax.eval_shape(update, params, optax.EmptyState())  # raise errors before any training
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        return _mapped(scaled, _by_pattern(updates, factors, default), updates), state

    return optax.GradientTransformation(init, update)


def layerwise_decay(
    decay: float | Float[Array, ""], layers: Sequence[str | tuple[str, int]]
) -> dict[str, Float[Array, ""] | float | list[float]]:
    """Learning-rate factors for `scale_by_path`: 1 for the last group of layers, times `decay` per group before it.

    Args:
        decay: factor between one group and the next, in (0, 1]
        layers: patterns from the input to the output; `(pattern, number)` for a scanned stack of that many layers

    Raises:
        ValueError: for a decay outside (0, 1]

    Sources: Howard and Ruder 2018, section 3.2 (who divide by 2.6); Bao et al., "BEiT", 2022.

    Examples:
        >>> layerwise_decay(0.5, ["tokens|positions", "layer_0/", "layer_1/", "head"])
        {'tokens|positions': 0.125, 'layer_0/': 0.25, 'layer_1/': 0.5, 'head': 1.0}
        >>> layerwise_decay(0.5, ["tokens", ("blocks/layers", 2), "head"])
        {'tokens': 0.125, 'blocks/layers': [0.25, 0.5], 'head': 1.0}
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


def _paths(params: PyTree) -> tuple[list[str], Any]:
    found, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=masked)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found], structure


def _mapped(function: Callable[[Any, Array], Array], values: Sequence[Any], updates: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(updates, is_leaf=masked)
    pairs = zip(values, leaves, strict=True)
    return jax.tree.unflatten(structure, [leaf if masked(leaf) else function(value, leaf) for value, leaf in pairs])


def _by_pattern(params: PyTree, values: Mapping[str, Any], default: Any) -> list[Any]:
    """Return the value of each parameter, in the order of the leaves."""
    paths, _ = _paths(params)
    check_patterns(values, paths)
    found = []
    for path in paths:
        patterns = matching(values, path)
        if len(patterns) > 1:
            raise ValueError(
                f"{path} is matched by {' and '.join(map(repr, patterns))}; make them apart ('layer_1/' does not match "
                "layer_10)"
            )
        if not patterns and default is None:
            raise ValueError(f"{path} is matched by none of {', '.join(map(repr, values))}; add a pattern or default=")
        found.append(values[patterns[0]] if patterns else default)
    return found
