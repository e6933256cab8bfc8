"""Losses that read a batch: one number an example, so that masks and weights apply outside. The maths is Optax's.

And penalties on parameters by their path, one number, for the argument `penalty` of `jdl.supervised`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jdl.core.labels import class_labels
from jdl.core.paths import by_path

Loss = Callable[[Any, Any], Float[Array, " batch"]]


def cross_entropy(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy (nats) with integer `batch["target"]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, class_labels(logits, batch))


def smoothed_cross_entropy(smoothing: float) -> Loss:
    """Softmax cross-entropy (nats) in which `smoothing` of each target is shared out evenly among all classes.

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothed_cross_entropy({smoothing}): the share taken off the target is in [0, 1), often 0.1")

    def loss(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
        target = jax.nn.one_hot(class_labels(logits, batch), logits.shape[-1], dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))

    return loss


def soft_cross_entropy(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy (nats) with a `batch["target"]` that is a distribution over the classes."""
    target = batch["target"]
    if target.shape != logits.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f'batch["target"] is {target.dtype}{list(target.shape)}; for logits {list(logits.shape)} give a '
            "distribution over the classes, of that shape (for integers: cross_entropy)"
        )
    return optax.softmax_cross_entropy(logits, target)


def token_cross_entropy(logits: Float[Array, "batch time vocabulary"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy (nats) of each token, averaged over the tokens of an example that count.

    `batch["target"]` is integer `[batch, time]`; `batch["weights"]`, of the same shape where it is given, weighs the
    tokens: 0 for padding, whose target may be any number. An example in which none counts has loss 0. A mean over
    examples weighs them alike, however many tokens each has.
    """
    target, weights = class_labels(logits, batch), batch.get("weights")
    if weights is not None and weights.shape != logits.shape[:2]:
        raise ValueError(
            f'batch["weights"] is {list(weights.shape)}; for logits {list(logits.shape)} it is [batch, time], '
            f"{list(logits.shape[:2])}"
        )
    if weights is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    weights = jnp.asarray(weights, losses.dtype)
    total = weights.sum(1)
    # A choice, not a product: padding's own target might lie outside the vocabulary, and its loss be NaN.
    return jnp.where(weights > 0, weights * losses, 0).sum(1) / jnp.where(total > 0, total, 1)


def margin(
    lengths: Float[Array, "batch classes"], batch: Any, present: float = 0.9, absent: float = 0.1, share: float = 0.5
) -> Float[Array, " batch"]:
    """Margin loss of capsules: that of integer `batch["target"]` longer than `present`, others shorter than `absent`.

    share: the weight of classes that are absent, so that early learning does not shrink all of them.
    Source: Sabour, Frosst and Hinton, "Dynamic routing between capsules", 2017, equation 4.
    """
    target = jax.nn.one_hot(class_labels(lengths, batch), lengths.shape[-1], dtype=lengths.dtype)
    too_short, too_long = jnp.maximum(0, present - lengths), jnp.maximum(0, lengths - absent)
    return (target * too_short**2 + share * (1 - target) * too_long**2).sum(-1)


def squared_error(predictions: Float[Array, "batch ..."], batch: Any) -> Float[Array, " batch"]:
    """Squared error against `batch["target"]` of the same shape, averaged over the axes after the first."""
    target = jnp.asarray(batch["target"])
    target = target.astype(predictions.dtype) if target.dtype == bool else target
    if predictions.shape != target.shape:
        raise ValueError(
            f"predictions have shape {predictions.shape} and the target {target.shape}; "
            "broadcasting them would hide a mistake: reshape one to the other"
        )
    errors = optax.squared_error(predictions, target)
    return jnp.mean(errors, axis=tuple(range(1, errors.ndim)))


def mixed(loss: Loss) -> Loss:
    """The loss of examples that were each mixed of two (`jdl.data.mixing`): both targets' losses, mixed the same.

    `batch["mix"]`, `[batch]`, is the share of `batch["target"]`, the rest is that of `batch["other_target"]`. A batch
    without them, as in evaluation, has the plain loss.
    """

    def of_both(outputs: Any, batch: Any) -> Float[Array, " batch"]:
        if "mix" not in batch:
            return loss(outputs, batch)
        other = loss(outputs, batch | {"target": batch["other_target"]})
        return batch["mix"] * loss(outputs, batch) + (1 - batch["mix"]) * other

    return of_both


def l1(params: PyTree, *patterns: str) -> Float[Array, ""]:
    """The sum of the absolute values of the parameters whose path matches a pattern; without one, of all.

    >>> l1({"kernel": jnp.array([3.0, -4.0]), "bias": jnp.array([5.0])}, "kernel$").item()  # lambda p: 1e-4 * l1(p)
    7.0

    patterns: as for `jdl.by_path`. Raises ValueError for one that matches nothing.
    """
    return jnp.asarray(sum(jnp.abs(leaf).sum() for leaf in _matching(params, patterns)))


def l2(params: PyTree, *patterns: str) -> Float[Array, ""]:
    """Half the sum of the squares of the parameters whose path matches a pattern; without one, of all.

    Half, so that `strength * l2(params)` adds `strength * params` to the gradient, as `weight_decay` does in PyTorch's
    SGD. patterns: as for `jdl.by_path`. Raises ValueError for one that matches nothing.
    """
    return jnp.asarray(sum(optax.l2_loss(leaf).sum() for leaf in _matching(params, patterns)))


def _matching(params: PyTree, patterns: tuple[str, ...]) -> list[Array]:
    matched = by_path(*(patterns or ("",)))(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(matched), strict=True)
    # In half precision a sum over a large matrix would lose most of it.
    return [jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)) for leaf, taken in pairs if taken]
