"""Normalization by name, for networks that leave the choice open."""

from typing import Any, Literal

import flax.linen as nn

NormName = Literal["batch", "layer", "group", "rms", "none"]


def normalization(kind: NormName, train: bool = False, *, epsilon: float = 1e-5, **options: Any) -> nn.Module:
    """A Flax layer; `options` are its own (`name`, `scale_init`, `use_bias`, `num_groups`).

    batch: over the batch, running statistics (momentum 0.9) when `train` is false (Ioffe and Szegedy 2015); its
    statistics are each micro-batch's under `accumulate`. layer: over features (Ba et al. 2016). group: 32 groups of
    them (Wu and He 2018). rms: by the root mean square, without a bias (Zhang and Sennrich 2019).
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
