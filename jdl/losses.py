"""Losses that read a batch: one number an example, so that masks and weights apply outside. The maths is Optax's."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def cross_entropy(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy (nats) with integer `batch["target"]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])


def squared_error(predictions: Float[Array, "batch ..."], batch: Any) -> Float[Array, " batch"]:
    """Squared error against `batch["target"]` of the same shape, averaged over the axes after the first."""
    target = batch["target"]
    if predictions.shape != target.shape:
        raise ValueError(
            f"predictions have shape {predictions.shape} and the target {target.shape}; "
            "broadcasting them would hide a mistake: reshape one to the other"
        )
    errors = optax.squared_error(predictions, target)
    return jnp.mean(errors, axis=tuple(range(1, errors.ndim)))
