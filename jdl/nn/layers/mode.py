"""How a module is told that it trains."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn


def mode_argument(model: nn.Module) -> Callable[[bool], dict[str, Any]]:
    """`(train) -> arguments` of this model's call: `train=`, `deterministic=`, or none."""
    wrapped = getattr(model, "nnx_class", type(model))  # what the bridge from NNX passes its arguments on to
    parameters = inspect.signature(wrapped.__call__).parameters
    if "train" in parameters:
        return lambda train: {"train": train}
    if "deterministic" in parameters:
        return lambda train: {"deterministic": not train}
    return lambda train: {}
