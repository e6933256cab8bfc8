"""Truncated quantile critics (Kuznetsov et al. 2020): soft actor-critic whose critics learn quantiles of the return."""

from typing import Any

import flax.linen as nn
import gymnasium

from rl.algorithms.sac import sac
from rl.continuous import truncated_quantiles
from rl.types import Algorithm


def tqc(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: nn.Module | None = None,
    *,
    quantiles: int = 25,
    drop: int = 2,
    **options: Any,
) -> Algorithm:
    """Truncated quantile critics for Box actions: `rl.sac` with `rl.continuous.truncated_quantiles`.

    Args:
        observation_space: see `rl.sac`.
        action_space: see `rl.sac`.
        network: see `rl.sac`.
        quantiles: of each critic.
        drop: the highest quantiles of each critic that are left out of the goals.
        **options: see `rl.sac`; `num_envs` is required.

    Raises:
        ValueError: as `rl.sac`, and where no quantile is left.

    Source: Kuznetsov et al. 2020, algorithm 1.
    """
    return sac(observation_space, action_space, network, values=truncated_quantiles(quantiles, drop), **options)
