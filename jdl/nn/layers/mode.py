"""How to tell a model whether it is training."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn


def mode_argument(model: nn.Module) -> Callable[[bool], dict[str, Any]]:
    """Find out which argument tells a model whether it is training.

    Args:
        model: a Linen module, or an NNX module behind the bridge

    Returns:
        a function `train -> keyword arguments` for the model's call: `train=`, `deterministic=`, or none
    """
    wrapped = getattr(model, "nnx_class", type(model))  # the bridge from NNX passes its arguments on to this class
    parameters = inspect.signature(wrapped.__call__).parameters
    if "train" in parameters:
        return lambda train: {"train": train}
    if "deterministic" in parameters:
        return lambda train: {"deterministic": not train}
    return lambda train: {}
