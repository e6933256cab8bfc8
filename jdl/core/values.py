"""Checks of values, such as labels, before compilation: a compiled program cannot raise for them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdl.core.learner import Learner, State


def check_values(learner: Learner, state: State, data: Mapping[str, Any]) -> None:
    """Check data before training: by the learner's own check, and that class labels have an output.

    Args:
        learner: the learner to be trained.
        state: a state of it.
        data: a dict of arrays, the whole data set or a batch. Labels are integers or booleans in `"target"`.

    Raises:
        ValueError: for data that `learner.check` refuses, and for labels below 0 or from the number of outputs up,
            unless they are masked.
    """
    if learner.check is not None:
        learner.check(data)
    _check_labels(learner, state, data)


def _check_labels(learner: Learner, state: State, data: Mapping[str, Any]) -> None:
    """Raise ValueError for class labels without an output: inside a step they would go unnoticed."""
    if learner.predict is None or "target" not in data:
        return
    target = np.asarray(data["target"])
    if not (np.issubdtype(target.dtype, np.integer) or target.dtype == bool):
        return
    outputs = jax.eval_shape(learner.predict, state, {k: v for k, v in data.items() if k != "mask"})
    shape = getattr(outputs, "shape", ())
    if target.ndim > 1 and target.shape[-1] == 1 and shape[:-1][-target.ndim :] != target.shape:
        target = target[..., 0]  # `class_labels` does the same
    if len(shape) < 2 or shape[-1] < 2 or shape[:-1][-target.ndim :] != target.shape:
        return
    counts = np.asarray(data.get("weights", data.get("mask", np.ones(1)))) > 0
    seen = target[counts] if counts.shape == target.shape[: counts.ndim] else target
    if not seen.size or (seen.min() >= 0 and seen.max() < shape[-1]):
        return
    remedy = "relabel them or widen the model (a target that is no class label must be floating)"
    if seen.min() == -100 and seen.max() < shape[-1]:
        where = (
            '"mask"' if target.ndim == 1 + (learner.traits.example_axis or 0) else '"weights" of token_cross_entropy'
        )
        remedy = f"-100 marks what Transformers ignores: give {where}, target != -100, and any label in its place"
    raise ValueError(
        f"target has labels from {seen.min()} to {seen.max()}, and the model has {shape[-1]} outputs (labels 0 to "
        f"{shape[-1] - 1}); {remedy}"
    )
