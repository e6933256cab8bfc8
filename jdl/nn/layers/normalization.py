"""Normalization by name, for networks that leave the choice open."""

from typing import Any, Literal

import flax.linen as nn

NormName = Literal["batch", "layer", "group", "rms", "none"]


def normalization(kind: NormName, train: bool = False, *, epsilon: float = 1e-5, **options: Any) -> nn.Module:
    """Make a Flax normalization layer.

    Args:
        kind: "batch" normalizes over the batch (Ioffe and Szegedy 2015); under `accumulate` the statistics are those
            of each micro-batch. "layer" normalizes over features (Ba et al. 2016), "group" over 32 groups of features
            (Wu and He 2018). "rms" divides by the root mean square, without a bias (Zhang and Sennrich 2019). "none"
            changes nothing
        train: for "batch", use the statistics of the batch instead of the running ones (momentum 0.9)
        epsilon: added under the square root
        **options: other fields of the Flax layer (`name`, `scale_init`, `use_bias`, `num_groups`)

    Raises:
        ValueError: for an unknown kind
    """
    match kind:
        case "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, **options)
        case "layer":
            return nn.LayerNorm(epsilon=epsilon, **options)
        case "group":
            return nn.GroupNorm(epsilon=epsilon, **options)
        case "rms":
            options.pop("use_bias", None)
            return nn.RMSNorm(epsilon=epsilon, **options)
        case "none":
            return nn.Sequential([lambda x: x], name=options.get("name"))
    raise ValueError(f"normalization {kind!r} is none of batch, layer, group, rms, none")
