"""Losses `(outputs, batch) -> [batch]`, one number per example, and penalties on parameters.

`jdl.supervised` masks and averages the losses. The penalties, `l1` and `l2`, return one number for parameters chosen by
their path; they are for the argument `penalty` of `jdl.supervised`. The computations are Optax's.
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
    """Softmax cross-entropy of integer labels, −log softmax(logits)[target].

    Args:
        logits: `[batch, classes]`.
        batch: integer or boolean labels in `"target"`, `[batch]` or `[batch, 1]`.

    Returns:
        The loss of each example, `[batch]`, in nats.

    Raises:
        KeyError: for a batch without `"target"`.
        TypeError: for targets that are not integers, such as one-hot rows (use `soft_cross_entropy`).
        ValueError: for targets of another shape.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, class_labels(logits, batch))


def smoothed_cross_entropy(smoothing: float) -> Loss:
    """Make a softmax cross-entropy whose targets are smoothed, (1 − ε) onehot(target) + ε / classes.

    Args:
        smoothing: ε in [0, 1), the share of each target that is divided evenly among all classes; often 0.1.

    Returns:
        A loss `(logits, batch) -> [batch]` in nats, with integer labels in `batch["target"]` as in `cross_entropy`.

    Raises:
        ValueError: for a smoothing outside [0, 1).

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothed_cross_entropy({smoothing}): the share taken off the target is in [0, 1), often 0.1")

    def loss(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
        target = jax.nn.one_hot(class_labels(logits, batch), logits.shape[-1], dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))

    return loss


def soft_cross_entropy(logits: Float[Array, "batch classes"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy of targets that are distributions over the classes, −Σₖ targetₖ log softmax(logits)ₖ.

    Args:
        logits: `[batch, classes]`.
        batch: floating `"target"`, `[batch, classes]`, each row summing to 1 (not checked).

    Returns:
        The loss of each example, `[batch]`, in nats.

    Raises:
        ValueError: for targets that are not floating or have another shape.
    """
    target = batch["target"]
    if target.shape != logits.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f'batch["target"] is {target.dtype}{list(target.shape)}; for logits {list(logits.shape)} give a '
            "distribution over the classes, of that shape (for integers: cross_entropy)"
        )
    return optax.softmax_cross_entropy(logits, target)


def token_cross_entropy(logits: Float[Array, "batch time vocabulary"], batch: Any) -> Float[Array, " batch"]:
    """Softmax cross-entropy of tokens, averaged over the tokens of each example, Σₜ wₜ lossₜ / Σₜ wₜ.

    A mean over examples gives each the same weight, however many tokens it has.

    Args:
        logits: `[batch, time, vocabulary]`.
        batch: integer token ids in `"target"`, `[batch, time]`, and optionally their weights w in `"weights"`,
            `[batch, time]`, by default 1. Tokens of weight 0 are padding: their target may be any number.

    Returns:
        The loss of each example, `[batch]`, in nats per token; 0 for an example whose weights are all 0.

    Raises:
        ValueError: for targets or weights of another shape.
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
    # `where` and not a product: the target of padding may lie outside the vocabulary, which makes its loss NaN.
    return jnp.where(weights > 0, weights * losses, 0).sum(1) / jnp.where(total > 0, total, 1)


def margin(
    lengths: Float[Array, "batch classes"], batch: Any, present: float = 0.9, absent: float = 0.1, share: float = 0.5
) -> Float[Array, " batch"]:
    """Margin loss of capsules, which makes the target's capsule long and all others short.

        loss = Σₖ Tₖ max(0, m⁺ − ‖vₖ‖)² + λ (1 − Tₖ) max(0, ‖vₖ‖ − m⁻)²,    Tₖ = 1 for the target's class, else 0

    Args:
        lengths: the lengths ‖vₖ‖ of the capsules, `[batch, classes]`.
        batch: integer labels in `"target"`, as in `cross_entropy`.
        present: m⁺, the length from which the target's capsule costs nothing.
        absent: m⁻, the length up to which another capsule costs nothing.
        share: λ, the weight of the absent classes; below 1, so that early learning does not shrink all capsules.

    Returns:
        The loss of each example, `[batch]`.

    Source: Sabour, Frosst and Hinton, "Dynamic routing between capsules", 2017, equation 4.
    """
    target = jax.nn.one_hot(class_labels(lengths, batch), lengths.shape[-1], dtype=lengths.dtype)
    too_short, too_long = jnp.maximum(0, present - lengths), jnp.maximum(0, lengths - absent)
    return (target * too_short**2 + share * (1 - target) * too_long**2).sum(-1)


def squared_error(predictions: Float[Array, "batch ..."], batch: Any) -> Float[Array, " batch"]:
    """Squared error (prediction − target)², averaged over all axes except the first.

    Args:
        predictions: `[batch, ...]`.
        batch: `"target"` of the same shape; booleans count as 0 and 1.

    Returns:
        The loss of each example, `[batch]`.

    Raises:
        ValueError: for a target of another shape, which would be broadcast.
    """
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
    """Turn a loss into one for mixed examples (`jdl.data.mixing`), mix · loss(target) + (1 − mix) · loss(other_target).

    Args:
        loss: any loss `(outputs, batch) -> [batch]`, such as `cross_entropy`.

    Returns:
        A loss that reads `batch["mix"]`, `[batch]` in [0, 1], and `batch["other_target"]`, shaped as the target. For a
        batch without `"mix"`, as in evaluation, it is the loss given.
    """

    def mixed_loss(outputs: Any, batch: Any) -> Float[Array, " batch"]:
        if "mix" not in batch:
            return loss(outputs, batch)
        other = loss(outputs, batch | {"target": batch["other_target"]})
        return batch["mix"] * loss(outputs, batch) + (1 - batch["mix"]) * other

    return mixed_loss


def l1(params: PyTree, *patterns: str) -> Float[Array, ""]:
    """Sum the absolute values of the parameters, Σ |w|.

    Use it as a penalty: `jdl.supervised(..., penalty=lambda params: 1e-4 * l1(params, "kernel$"))`.

    Args:
        params: a pytree of arrays.
        patterns: regular expressions for the paths of the parameters to sum, as in `jdl.by_path`; without any, all.

    Returns:
        A scalar, in float32 or wider.

    Raises:
        ValueError: for a pattern that matches no parameter.

    Examples:
        >>> l1({"kernel": jnp.array([3.0, -4.0]), "bias": jnp.array([5.0])}, "kernel$").item()
        7.0
    """
    return jnp.asarray(sum(jnp.abs(leaf).sum() for leaf in _matching(params, patterns)))


def l2(params: PyTree, *patterns: str) -> Float[Array, ""]:
    """Sum the squares of the parameters and halve, ½ Σ w².

    The half makes `strength * l2(params)` add `strength * params` to the gradient, as `weight_decay` does in PyTorch's
    SGD.

    Args:
        params: a pytree of arrays.
        patterns: regular expressions for the paths of the parameters to sum, as in `jdl.by_path`; without any, all.

    Returns:
        A scalar, in float32 or wider.

    Raises:
        ValueError: for a pattern that matches no parameter.
    """
    return jnp.asarray(sum(optax.l2_loss(leaf).sum() for leaf in _matching(params, patterns)))


def _matching(params: PyTree, patterns: tuple[str, ...]) -> list[Array]:
    matched = by_path(*(patterns or ("",)))(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(matched), strict=True)
    # In half precision, a sum over a large matrix would lose most of its terms to rounding.
    return [jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)) for leaf, taken in pairs if taken]
