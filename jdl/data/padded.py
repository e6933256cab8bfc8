"""Batches of one shape that cover each example once."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def padded_batches(data: Mapping[str, Any], batch_size: int, axis: int = 0) -> list[dict[str, Any]]:
    """Batches of one size that cover each example once; where there are several, a mask marks the padding.

    axis: of the examples; those before it are of runs with data of their own.
    """
    if batch_size < 1:
        raise ValueError(f"evaluation batch_size={batch_size}: a batch has at least 1 example")
    arrays = jax.tree.map(np.asarray, dict(data))
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
    shape = next(iter(shapes.values()))[: axis + 1]
    for name, found in shapes.items():
        if len(found) <= axis or found[: axis + 1] != shape:
            leading = "examples" if axis == 0 else "runs, then examples"
            raise ValueError(
                f"data{name} has shape {found}, and {next(iter(shapes))} {shape}: all have {leading} first"
            )
    size = shape[axis]
    if size <= batch_size:
        return [arrays]
    arrays = {"mask": np.ones(shape, np.float32), **arrays}
    return [
        jax.tree.map(lambda leaf, start=start: _cut(leaf, start, batch_size, axis), arrays)
        for start in range(0, size, batch_size)
    ]


def _cut(leaf: np.ndarray, start: int, size: int, axis: int) -> np.ndarray:
    """`size` examples from `start` on, zeros where there are no more."""
    part = leaf[(*[slice(None)] * axis, slice(start, start + size))]
    missing = size - part.shape[axis]
    return np.pad(part, [(0, missing * (at == axis)) for at in range(leaf.ndim)]) if missing else part
