"""Class labels of a batch, converted to the one form that losses and metrics compute with."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def class_labels(outputs: Any, batch: Mapping[str, Any]) -> Array:
    """Return `batch["target"]` as integers, one label for each vector of scores in the outputs.

    Booleans become 0 and 1, and a trailing axis of length 1 is dropped, since neither can mean anything else.

    Args:
        outputs: scores of the classes, `[..., classes]`; only the shape is read.
        batch: a batch whose `"target"` holds labels `[...]` or `[..., 1]`.

    Returns:
        Integers `[...]`. Their values are not checked.

    Raises:
        KeyError: for a batch without `"target"`.
        TypeError: for targets that are neither integers nor booleans; the message names the remedy.
        ValueError: for targets of another shape.
    """
    if "target" not in batch:
        raise KeyError(f'batch has {sorted(batch)} and no "target", the labels that the outputs are compared with')
    target, wanted = jnp.asarray(batch["target"]), tuple(outputs.shape[:-1])
    shown = f'batch["target"] is {target.dtype}{list(target.shape)}'
    if target.dtype == bool:
        target = target.astype(jnp.int32)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        remedy = "take .argmax(-1) of one-hot targets" if target.shape == outputs.shape else "use .astype('int32')"
        raise TypeError(f"{shown}, and class labels are integers: {remedy}, or another loss and metric")
    if target.shape == (*wanted, 1) and target.shape != wanted:
        target = target[..., 0]
    if target.shape != wanted:
        raise ValueError(f"{shown}; labels for outputs {list(outputs.shape)} are {list(wanted)}")
    return target
