"""Gymnasium's spaces as arrays: network inputs from observations, and environment inputs from actions."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

_HANDLED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def is_image(space: gymnasium.Space) -> bool:
    """Whether observations are uint8 images of at least 36 x 36, with channels last or first.

    Args:
        space: an observation space.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return sorted(space.shape)[1] >= 36


def is_grid(space: gymnasium.Space) -> bool:
    """Whether observations are grids of truth values, [height, width, channels], of at least 8 x 8 (MinAtar).

    Args:
        space: an observation space.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.bool_ or len(space.shape) != 3:
        return False
    return min(space.shape[:2]) >= 8


def has_image(space: gymnasium.Space) -> bool:
    """Whether observations are images, or a Dict or Tuple with an image among its parts.

    Args:
        space: an observation space.
    """
    if isinstance(space, spaces.Dict):
        return any(map(has_image, space.spaces.values()))
    return any(map(has_image, space.spaces)) if isinstance(space, spaces.Tuple) else is_image(space)


def has_grid(space: gymnasium.Space) -> bool:
    """Whether observations are grids of truth values, or a Dict or Tuple with such a grid among its parts.

    Args:
        space: an observation space.
    """
    if isinstance(space, spaces.Dict):
        return any(map(has_grid, space.spaces.values()))
    return any(map(has_grid, space.spaces)) if isinstance(space, spaces.Tuple) else is_grid(space)


def zeros(space: gymnasium.Space, *batch: int) -> Any:
    """An observation of zeros, in the structure and types in which environments with this space return it.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these.
        *batch: sizes of leading axes.

    Raises:
        ValueError: for other spaces.
    """
    if isinstance(space, spaces.Dict):
        return {name: zeros(part, *batch) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(part, *batch) for part in space.spaces)
    _check(space)
    # Gymnasium's int64 and float64 are 32-bit in JAX unless 64 bits are enabled.
    return np.zeros((*batch, *(space.shape or ())), jax.dtypes.canonicalize_dtype(space.dtype or np.float32))


def real_valued(space: gymnasium.Space) -> Any:
    """A tree of booleans like the observation's: True for the parts that are real numbers.

    Only these are normalized: choices are integers until they become one-hot, and uint8 images are divided by 255.

    Args:
        space: an observation space.
    """
    if isinstance(space, spaces.Dict):
        return {name: real_valued(part) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(real_valued(part) for part in space.spaces)
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def encode(space: gymnasium.Space) -> Callable[[Any], Float[Array, "batch features"]]:
    """A function from a batch of observations to vectors.

    Numbers stay as they are, bytes are divided by 255, choices become one-hot, and parts are concatenated.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these.

    Raises:
        ValueError: for other spaces.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = [(name, encode(part)) for name, part in named]
        return lambda x: jnp.concatenate([part(x[name]) for name, part in parts], -1)
    _check(space)
    if isinstance(space, spaces.Discrete):
        start, n = int(space.start), int(space.n)
        return lambda x: jax.nn.one_hot(x - start, n)
    if isinstance(space, spaces.MultiDiscrete):
        start, sizes = space.start.ravel(), space.nvec.ravel().tolist()

        def choices(x: Any) -> Array:
            flat = x.reshape(len(x), -1) - start
            return jnp.concatenate([jax.nn.one_hot(flat[:, i], n) for i, n in enumerate(sizes)], -1)

        return choices
    scale = 1 / 255 if space.dtype == np.uint8 else 1.0
    size = math.prod(space.shape or ())
    return lambda x: jnp.asarray(x, jnp.float32).reshape(len(x), size) * scale


def legal(space: gymnasium.Space) -> Callable[[Any], Any]:
    """A function from a policy's actions to those that the environment takes.

    Actions for a Box are clipped to its bounds. Choices, which a policy counts from 0, are shifted by the `start` of a
    Discrete or MultiDiscrete space. Others stay as they are.

    Args:
        space: an action space.
    """
    if isinstance(space, spaces.Box):
        return lambda action: jnp.clip(action, space.low, space.high)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return lambda action: action + np.asarray(space.start)
    return lambda action: action


def choices(space: gymnasium.Space) -> list[int]:
    """The number of options of each choice in an action; empty if the space has no choices.

    An action mask lists the options of all choices one after another.

    Args:
        space: an action space.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.ravel().tolist() if isinstance(space, spaces.MultiDiscrete) else []


def _check(space: gymnasium.Space) -> None:
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(
            f"the space {space} cannot be observed here; use {_HANDLED}, or a wrapper of Gymnasium's that makes it one"
        )
