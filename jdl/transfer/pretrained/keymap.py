"""Convert another library's weights to ours and back, by a table of names."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Names = str | tuple[str, ...]


class Layout(NamedTuple):
    """How to convert arrays between the other library's layout and ours.

    Attributes:
        ours: `(their arrays) -> our arrays`
        theirs: `(our arrays) -> their arrays`
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]


same = Layout(lambda array: array, lambda array: array)
dense = Layout(np.transpose, np.transpose)  # PyTorch keeps [outputs, inputs]
conv = Layout(lambda k: k.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1))  # [out, in, height, width]
summed = Layout(lambda one, two: one + two, lambda both: (both, np.zeros_like(both)))  # two biases that are added


def fused(parts: int, inner: Layout = same) -> Layout:
    """One array in the other library that holds several of ours side by side, along our last axis.

    Args:
        parts: number of our arrays
        inner: layout of the whole array
    """
    return Layout(
        lambda array: tuple(np.split(inner.ours(array), parts, -1)),
        lambda *arrays: inner.theirs(np.concatenate(arrays, -1)),
    )


def patches(size: int) -> Layout:
    """A convolution over patches in the other library, a dense layer on flattened patches in ours.

    Args:
        size: side of a patch, in pixels
    """
    return Layout(
        lambda k: conv.ours(k).reshape(-1, k.shape[0]),
        lambda k: conv.theirs(k.reshape(size, size, -1, k.shape[-1])),
    )


class Rule(NamedTuple):
    """Names for the same weights; `{n}` and similar placeholders stand for the same number on both sides.

    Attributes:
        theirs: name or names in the other library
        ours: path or paths in our variables
        layout: how to convert the arrays
    """

    theirs: Names
    ours: Names
    layout: Layout = same


class KeyMap(NamedTuple):
    """Names of one architecture's weights.

    Attributes:
        rules: the names and layouts
        prefix: start of the body's names, which a file of the body alone, without a head, leaves out
        ignored: patterns of names in the other library that are not weights, or that our model does without
    """

    rules: Sequence[Rule]
    prefix: str = ""
    ignored: Sequence[str] = ()


def to_ours(
    arrays: Mapping[str, np.ndarray],
    keymap: KeyMap,
    like: Mapping[str, PyTree],
    *,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
) -> dict[str, PyTree]:
    """Convert weights with another library's names to our variables.

    Args:
        arrays: the other library's arrays by name
        keymap: names of the architecture's weights
        like: our variables, or their shapes (`jax.eval_shape(model.init, key, inputs)`); layers may be scanned
        missing: patterns of our paths that the file need not have, such as a new head; they are left out of the
            result
        unexpected: patterns of the other library's names that are not wanted, such as an old head

    Raises:
        ValueError: for names that are missing or unexpected and for wrong shapes; the message lists all of them
    """
    wanted = {path: (tuple(leaf.shape), leaf.dtype) for path, leaf in _flat(unstack_layers(like)).items()}
    body = not any(name.startswith(keymap.prefix) for name in arrays)
    named = {keymap.prefix + name if body else name: array for name, array in arrays.items()}
    given = {name: array for name, array in named.items() if not _any(unexpected, name)}
    left = {name for name in given if not _any(keymap.ignored, name)}
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for rule in keymap.rules:
        ours, theirs = _names(rule.ours), _names(rule.theirs)
        for numbers in _numbers(theirs[0], given):
            names = [name.format(**numbers) for name in theirs]
            paths = [path.format(**numbers) for path in ours]
            if not all(name in given for name in names) or not all(path in wanted for path in paths):
                continue
            left.difference_update(names)
            theirs_are = [np.asarray(given[name]) for name in names]
            try:
                converted = rule.layout.ours(*theirs_are)
            except ValueError:  # the layout expects another number of axes
                shapes = " and ".join(str(array.shape) for array in theirs_are)
                wrong += [
                    f"{path}: {shapes} from {', '.join(names)}, the model has {wanted[path][0]}" for path in paths
                ]
                found |= dict.fromkeys(paths)
                continue
            for path, array in zip(paths, converted if len(paths) > 1 else (converted,), strict=True):
                shape, dtype = wanted[path]
                if array.shape != shape:
                    wrong.append(f"{path}: {array.shape} from {', '.join(names)}, the model has {shape}")
                found[path] = jnp.asarray(array, dtype)
    lacking = [path for path in wanted if path not in found and not _any(missing, path)]
    if lacking or left or wrong:
        raise ValueError(
            "the weights are not those of this model:"
            + _listed("missing, the model has them", lacking)
            + _listed("unexpected, the model has no place for them", sorted(left))
            + _listed("of another shape", wrong)
            + "\nmake the model with the settings of the weights; `missing=` and `unexpected=` excuse a changed head"
        )
    variables = flax.traverse_util.unflatten_dict(found, sep="/")
    return stack_layers(variables) if _flat(like).keys() != wanted.keys() else variables


def to_theirs(variables: Mapping[str, PyTree], keymap: KeyMap) -> dict[str, np.ndarray]:
    """Convert our variables to another library's names and layouts.

    Args:
        variables: variables of a model, by collection; layers may be scanned
        keymap: names of the architecture's weights

    Raises:
        ValueError: for variables that no rule names
    """
    given = _flat(unstack_layers(variables))
    left, arrays = set(given), {}
    for rule in keymap.rules:
        ours, theirs = _names(rule.ours), _names(rule.theirs)
        for numbers in _numbers(ours[0], given):
            paths = [path.format(**numbers) for path in ours]
            names = [name.format(**numbers) for name in theirs]
            if not left.issuperset(paths):
                continue  # not given, or already written under the first of several names
            left.difference_update(paths)
            converted = rule.layout.theirs(*(np.asarray(given[path]) for path in paths))
            converted = converted if len(names) > 1 else (converted,)
            arrays |= dict(zip(names, converted, strict=True))
    if left:
        raise ValueError("these have no name there:" + _listed("", sorted(left)) + "\nadd rules, or leave them out")
    return arrays


def unstack_layers(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Split scanned layers (".../layers/..." with a leading axis) into layer_0, layer_1, ...

    Args:
        variables: variables of a model by collection, or only their shapes
    """
    flat: dict[str, Any] = {}
    for path, leaf in _flat(variables).items():
        if "/layers/" not in path:
            flat[path] = leaf
            continue
        for number in range(leaf.shape[0]):
            one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if _is_shape(leaf) else leaf[number]
            flat[path.replace("/layers/", f"/layer_{number}/")] = one
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def stack_layers(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Stack layer_0, layer_1, ... along a leading axis, as scanned layers are: the inverse of `unstack_layers`.

    Args:
        variables: a model's variables, arrays or their shapes.
    """
    flat: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, leaf in _flat(variables).items():
        if match := re.search(r"/layer_(\d+)/", path):
            name = f"{path[: match.start()]}/layers/{path[match.end() :]}"
            layers.setdefault(name, {})[int(match[1])] = leaf
        else:
            flat[path] = leaf
    flat |= {name: jnp.stack([leaves[number] for number in sorted(leaves)]) for name, leaves in layers.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _flat(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _numbers(template: str, names: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the numbers for which the template gives one of the names."""
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template))
    return [match.groupdict() for name in names if (match := re.fullmatch(pattern, name))]


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _listed(title: str, lines: Sequence[str]) -> str:
    return f"\n  {title}:\n    " + "\n    ".join(lines) if lines else ""
