"""Parameters by their path: which ones decay, are penalised, are frozen."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree


def by_path(*patterns: str) -> Callable[[PyTree], PyTree]:
    """A mask for Optax: true for the parameters whose path matches a pattern.

    >>> mask = by_path("kernel$")  # optax.adamw(1e-3, mask=by_path("kernel$")) decays kernels alone
    >>> mask({"Dense_0": {"kernel": 1.0, "bias": 0.0}})
    {'Dense_0': {'bias': False, 'kernel': True}}

    patterns: regular expressions, searched for in "Dense_0/kernel" and the like. Raises ValueError for a pattern
    that matches nothing.
    """

    def mask(params: PyTree) -> PyTree:
        # Where some parameters are masked (frozen), Optax leaves a node without leaves in their place.
        flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_masked)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"the pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
        matched = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
        marks = [leaf if _masked(leaf) else mark for (_, leaf), mark in zip(flat, matched, strict=True)]
        return jax.tree.unflatten(structure, marks)

    return mask


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
