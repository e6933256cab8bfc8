"""Selection of parameters by their path, such as those that decay, are penalized or are frozen."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax
from jaxtyping import PyTree


def by_path(*patterns: str) -> Callable[[PyTree], PyTree]:
    """Make a mask for Optax that is true for the parameters whose path matches a pattern.

    `optax.adamw(1e-3, mask=by_path("kernel$"))` decays only the kernels.

    Args:
        patterns: regular expressions, searched for in paths such as "Dense_0/kernel".

    Returns:
        A function from a pytree of parameters to a pytree of booleans. It raises ValueError, listing the paths, for a
        pattern that matches no parameter.

    Examples:
        >>> mask = by_path("kernel$")
        >>> mask({"Dense_0": {"kernel": 1.0, "bias": 0.0}})
        {'Dense_0': {'bias': False, 'kernel': True}}
    """

    def mask(params: PyTree) -> PyTree:
        # In place of masked parameters, such as frozen ones, Optax puts a node without leaves.
        flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=masked)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        check_patterns(patterns, paths)
        matched = [bool(matching(patterns, path)) for path in paths]
        marks = [leaf if masked(leaf) else mark for (_, leaf), mark in zip(flat, matched, strict=True)]
        return jax.tree.unflatten(structure, marks)

    return mask


def masked(node: Any) -> bool:
    """Whether Optax put a node in place of a parameter that belongs to another optimizer (`jdl.transfer.freeze`)."""
    return isinstance(node, optax.MaskedNode)


def matching(patterns: Iterable[str], path: str) -> list[str]:
    """Return the patterns that match a path, by `re.search`."""
    return [pattern for pattern in patterns if re.search(pattern, path)]


def check_patterns(patterns: Iterable[str], paths: Iterable[str]) -> None:
    """Raise ValueError, listing the paths, for a pattern that matches none of them."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"the pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
