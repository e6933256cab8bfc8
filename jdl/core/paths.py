"""Parameters by their path: which ones decay, are penalized, are frozen."""

import re
from collections.abc import Callable, Iterable
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
        flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=masked)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        check_patterns(patterns, paths)
        matched = [bool(matching(patterns, path)) for path in paths]
        marks = [leaf if masked(leaf) else mark for (_, leaf), mark in zip(flat, matched, strict=True)]
        return jax.tree.unflatten(structure, marks)

    return mask


def masked(node: Any) -> bool:
    """Whether a parameter is left to another optimizer, as within `jdl.transfer.freeze`."""
    return isinstance(node, optax.MaskedNode)


def matching(patterns: Iterable[str], path: str) -> list[str]:
    """The patterns that are found in a path."""
    return [pattern for pattern in patterns if re.search(pattern, path)]


def check_patterns(patterns: Iterable[str], paths: Iterable[str]) -> None:
    """Raises ValueError, listing the paths there are, for a pattern that matches none of them."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"the pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
