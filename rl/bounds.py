"""Actions in the bounds of a Box, in units of these bounds: -1 to 1 where both are finite.

Per dimension, with any number x from a network:

    bounds          unit                action
    [l, h]          tanh(x)             (l + h) / 2 + unit (h - l) / 2
    [l, inf)        softplus(x)         l + unit
    (-inf, h]       -softplus(-x)       h + unit
    (-inf, inf)     x                   unit

Densities are those of the units, so that an entropy does not depend on the scale in which an action is measured.
"""

import math
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

_INFINITE = 1e10  # bounds beyond this are no bounds: a width of the whole range of floats would overflow


class Bounds(NamedTuple):
    """The bounds of an action space.

    Attributes:
        low: [size], float32; -inf where there is no lower bound.
        high: [size], float32; inf where there is no upper bound.
        shape: shape of one action, with `size` elements.
    """

    low: np.ndarray
    high: np.ndarray
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in an action."""
        return math.prod(self.shape)

    def unit(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Map any numbers into the bounds, in units of the bounds.

        Args:
            x: any numbers.
        """
        below, above = self._ends
        one_sided = jnp.where(below, jax.nn.softplus(x), -jax.nn.softplus(-x))
        return jnp.where(below & above, jnp.tanh(x), jnp.where(below | above, one_sided, x))

    def log_slope(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """The logarithm of the derivative of `unit`; 1 - tanh² itself would round to zero.

        Args:
            x: any numbers, as for `unit`.
        """
        below, above = self._ends
        of_tanh = 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))
        of_softplus = jax.nn.log_sigmoid(jnp.where(below, x, -x))
        return jnp.where(below & above, of_tanh, jnp.where(below | above, of_softplus, 0))

    def clipped(self, unit: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Units clipped to the bounds.

        Args:
            unit: numbers in units of the bounds.
        """
        below, above = self._ends
        least = np.where(below, np.where(above, -1, 0), -np.inf)
        return jnp.clip(unit, least, np.where(above, np.where(below, 1, 0), np.inf))

    def action(self, unit: Float[Array, "*batch size"]) -> Float[Array, "*batch shape"]:
        """The action with these units, as the environment takes it.

        Args:
            unit: numbers in units of the bounds.
        """
        center, scale = self._scale
        action = jnp.clip(center + scale * unit, self.low, self.high).astype(self.low.dtype)
        return action.reshape(*unit.shape[:-1], *self.shape)

    def units(self, action: Float[Array, "batch *shape"]) -> Float[Array, "batch size"]:
        """The units of a batch of actions.

        Args:
            action: actions as the environment takes them.
        """
        center, scale = self._scale
        return (action.reshape(len(action), self.size) - center) / scale

    def random(self, key: Array, *batch: int) -> Float[Array, "*batch size"]:
        """Draw units: uniform between two bounds, exponential from one, normal without, as `Box.sample` does.

        Args:
            key: a JAX key.
            *batch: leading axes.
        """
        below, above = self._ends
        keys = jax.random.split(key, 3)
        shape = (*batch, self.size)
        inside = jax.random.uniform(keys[0], shape, minval=-1.0)
        if (below & above).all():
            return inside
        from_one = jax.random.exponential(keys[1], shape) * jnp.where(below, 1, -1)
        return jnp.where(below & above, inside, jnp.where(below | above, from_one, jax.random.normal(keys[2], shape)))

    @property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return np.isfinite(self.low), np.isfinite(self.high)

    @property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        below, above = self._ends
        low, high = np.where(below, self.low, 0), np.where(above, self.high, 0)
        both = below & above
        scale = np.where(both & (high > low), (high - low) / 2, 1)
        return np.where(both, (low + high) / 2, low + high).astype(np.float32), scale.astype(np.float32)


def bounds(space: gymnasium.Space) -> Bounds:
    """The bounds of a Box of floating-point numbers.

    Args:
        space: the action space.

    Raises:
        ValueError: for other spaces.
    """
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        discrete = isinstance(space, spaces.Discrete)
        raise ValueError(
            f"the action space {space} is not a Box of floating-point numbers; for choices use "
            f"{'rl.dqn or ' if discrete else ''}rl.ppo"
        )
    low, high = (np.asarray(end, np.float64).ravel() for end in (space.low, space.high))
    low, high = np.where(low > -_INFINITE, low, -np.inf), np.where(high < _INFINITE, high, np.inf)
    return Bounds(low.astype(np.float32), high.astype(np.float32), space.shape)
