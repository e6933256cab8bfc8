"""Augmentations that mix examples, on the device: pure functions `(key, batch) -> batch` for `feed`.

Each example is mixed with a partner from the same batch, with its own random draw. The batch keeps its targets and
gains `batch["other_target"]`, the partner's target, and `batch["mix"]`, shape `[batch]`, the weight of the example's
own target. `jdl.losses.mixed` turns any loss into a loss on both targets. Training metrics compare with the example's
own target. Batches that are not mixed, as in evaluation, need no change.

    learner = supervised(model, losses.mixed(losses.cross_entropy), optimizer, example=batch)
    learner = feed(learner, batch_size=128, augment=compose(on(flip()), mixup(0.2)))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jdl.data.augment import boxes

Mixing = Callable[[PRNGKeyArray, dict[str, Any]], dict[str, Any]]


def mixup(alpha: float | Float[Array, ""]) -> Mixing:
    """Average each example with its partner, with a weight drawn from Beta(alpha, alpha).

    The inputs are a floating-point array of any shape, or a pytree of them: normalize images first. Token ids cannot
    be averaged.

    Args:
        alpha: above 0; with 0.2 one of the two examples usually dominates, with 1 all weights are equally likely.

    Raises:
        ValueError: for an `alpha` that is not above 0; when applied, for inputs that are not floating, a batch
            without `"input"` or `"target"`, and a batch that is already mixed.

    Source: Zhang et al., "mixup: Beyond empirical risk minimization", 2018, section 2.
    """
    _check_alpha("mixup", alpha)

    def augment(key: PRNGKeyArray, batch: dict[str, Any]) -> dict[str, Any]:
        _check_batch("mixup", batch)
        for_mix, for_partner = jax.random.split(key)
        partner = _partners(for_partner, batch)
        mix = jax.random.beta(for_mix, alpha, alpha, partner.shape)

        def averaged(leaf: Any) -> Array:
            leaf = jnp.asarray(leaf)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(f"mixup: the input is {leaf.dtype}, which averages are not: make it floating.")
            share = mix.astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
            return share * leaf + (1 - share) * leaf[partner]

        return batch | {"input": jax.tree.map(averaged, batch["input"])} | _targets(batch, partner, mix)

    return augment


def cutmix(alpha: float | Float[Array, ""]) -> Mixing:
    """Paste a box from its partner into each image, at the same place, and weight the targets by area.

    The box's share of the pixels is the weight of the partner's target. The share is drawn from Beta(alpha, alpha)
    and the center of the box uniformly over the pixels. The part of a box that lies outside the image is cut off and
    not counted. Images are `[batch, height, width, channels]` of any dtype.

    Args:
        alpha: above 0; the paper uses 1.

    Raises:
        ValueError: for an `alpha` that is not above 0; when applied, for inputs that are not images, a batch without
            `"input"` or `"target"`, and a batch that is already mixed.

    Source: Yun et al., "CutMix: Regularization strategy to train strong classifiers with localizable features", 2019,
    section 3.1 and algorithm A1.
    """
    _check_alpha("cutmix", alpha)

    def augment(key: PRNGKeyArray, batch: dict[str, Any]) -> dict[str, Any]:
        _check_batch("cutmix", batch)
        images = batch["input"]
        if getattr(images, "ndim", None) != 4:
            shape = getattr(images, "shape", type(images).__name__)
            raise ValueError(f"cutmix: the input has shape {shape}: it takes images [batch, height, width, channels].")
        images = jnp.asarray(images)
        for_mix, for_partner, for_center = jax.random.split(key, 3)
        partner = _partners(for_partner, batch)
        _, height, width, _ = images.shape
        share = 1 - jax.random.beta(for_mix, alpha, alpha, partner.shape)
        sides = jnp.array([height, width])
        sizes = jnp.floor(jnp.sqrt(share)[:, None] * sides).astype(jnp.int32)
        centers = jax.random.randint(for_center, sizes.shape, 0, sides)
        pasted = boxes(centers - sizes // 2, sizes, height, width)
        mix = 1 - pasted.mean((1, 2, 3), dtype=share.dtype)
        return batch | {"input": jnp.where(pasted, images[partner], images)} | _targets(batch, partner, mix)

    return augment


def _partners(key: PRNGKeyArray, batch: dict[str, Any]) -> Int[Array, " batch"]:
    """Draw a random permutation; an example whose partner would be padding is paired with itself."""
    own = jnp.arange(len(jax.tree.leaves(batch["input"])[0]))
    partner = jax.random.permutation(key, own)
    return jnp.where(jnp.asarray(batch["mask"])[partner] > 0, partner, own) if "mask" in batch else partner


def _targets(batch: dict[str, Any], partner: Int[Array, " batch"], mix: Float[Array, " batch"]) -> dict[str, Any]:
    other = jax.tree.map(lambda leaf: jnp.asarray(leaf)[partner], batch["target"])
    return {"other_target": other, "mix": mix}


def _check_alpha(name: str, alpha: Any) -> None:
    if not isinstance(alpha, Tracer) and not alpha > 0:
        raise ValueError(f"{name}: alpha is {alpha}, and must be above 0 (for no mixing leave it out).")


def _check_batch(name: str, batch: dict[str, Any]) -> None:
    for needed in ("input", "target"):
        if needed not in batch:
            raise ValueError(f"{name}: the batch has no {needed!r}, only {list(batch)}.")
    if "mix" in batch:
        raise ValueError(f"{name}: the batch is mixed already, and a target can be shared by two examples only.")
