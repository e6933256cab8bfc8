"""Batches of equal shape that cover each example once."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def padded_batches(data: Mapping[str, Any], batch_size: int, axis: int = 0) -> list[dict[str, Any]]:
    """Cut data into batches of one size that cover each example once.

    Data that fits in one batch is returned as it is. Otherwise the last batch is padded with zeros, and `"mask"` is
    zero at the padding (a mask in the data is kept and padded).

    Args:
        data: a dict of arrays with the same leading axes.
        batch_size: examples per batch, at least 1.
        axis: the example axis; the axes before it belong to runs that have their own data.

    Raises:
        ValueError: for a `batch_size` below 1, and for arrays whose leading axes differ.
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
    """Take `size` examples from `start` on, with zeros for those beyond the end."""
    part = leaf[(*[slice(None)] * axis, slice(start, start + size))]
    missing = size - part.shape[axis]
    return np.pad(part, [(0, missing * (at == axis)) for at in range(leaf.ndim)]) if missing else part
