"""Distributions over actions, one per kind of action space; each is a pytree of parameters with leading batch axes.

`log_prob` and `entropy` are those of the whole action, summed over its parts.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int

from rl.bounds import Bounds

FORBIDDEN = -1e9  # a finite logit: minus infinity times a probability of zero would be NaN


class Categorical(NamedTuple):
    """One choice among several actions; masked actions have probability zero and do not count in the entropy.

    Attributes:
        logits: unnormalized log-probabilities.
        mask: [*batch, actions], bool; True for the allowed actions. None if all are allowed.
    """

    logits: Float[Array, "*batch actions"]
    mask: Any = None

    @property
    def _log_probs(self) -> Array:
        logits = self.logits if self.mask is None else jnp.where(self.mask, self.logits, FORBIDDEN)
        return jax.nn.log_softmax(logits)

    def sample(self, key: Array) -> Int[Array, "*batch"]:
        """Draw an action.

        Args:
            key: a JAX key.
        """
        return jax.random.categorical(key, self._log_probs)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the most probable action."""
        return self._log_probs.argmax(-1)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the log-probability of an action.

        Args:
            action: an action, as `sample` returns it.
        """
        return jnp.take_along_axis(self._log_probs, action[..., None].astype(int), -1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy in nats, over the allowed actions."""
        log_probs = self._log_probs
        terms = jnp.exp(log_probs) * log_probs
        return -(terms if self.mask is None else jnp.where(self.mask, terms, 0)).sum(-1)


class MultiCategorical(NamedTuple):
    """Several independent choices.

    Attributes:
        parts: the distribution of each choice.
    """

    parts: tuple[Categorical, ...]

    def sample(self, key: Array) -> Int[Array, "*batch parts"]:
        """Draw an action.

        Args:
            key: a JAX key.
        """
        keys = jax.random.split(key, len(self.parts))
        return jnp.stack([part.sample(keys[i]) for i, part in enumerate(self.parts)], -1)

    def mode(self) -> Int[Array, "*batch parts"]:
        """Return the most probable action."""
        return jnp.stack([part.mode() for part in self.parts], -1)

    def log_prob(self, action: Int[Array, "*batch parts"]) -> Float[Array, "*batch"]:
        """Return the log-probability of an action, summed over its parts.

        Args:
            action: an action, as `sample` returns it.
        """
        return sum((part.log_prob(action[..., i]) for i, part in enumerate(self.parts)), jnp.zeros(()))

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy in nats, summed over the parts of an action."""
        return sum((part.entropy() for part in self.parts), jnp.zeros(()))


class Bernoulli(NamedTuple):
    """Several independent bits.

    Attributes:
        logits: log-odds of each bit being 1.
    """

    logits: Float[Array, "*batch bits"]

    def sample(self, key: Array) -> Int[Array, "*batch bits"]:
        """Draw an action.

        Args:
            key: a JAX key.
        """
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int8)

    def mode(self) -> Int[Array, "*batch bits"]:
        """Return the most probable action."""
        return (self.logits > 0).astype(jnp.int8)

    def log_prob(self, action: Int[Array, "*batch bits"]) -> Float[Array, "*batch"]:
        """Return the log-probability of an action, summed over its parts.

        Args:
            action: an action, as `sample` returns it.
        """
        return jnp.where(action > 0, jax.nn.log_sigmoid(self.logits), jax.nn.log_sigmoid(-self.logits)).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy in nats, summed over the parts of an action."""
        p = jax.nn.sigmoid(self.logits)
        return -(p * jax.nn.log_sigmoid(self.logits) + (1 - p) * jax.nn.log_sigmoid(-self.logits)).sum(-1)


class Normal(NamedTuple):
    """Independent normal variables, arranged in an action of a given shape.

    Attributes:
        mean: one per variable.
        log_std: logarithms of the standard deviations.
        shape: shape of one action, with `size` elements.
    """

    mean: Float[Array, "*batch size"]
    log_std: Float[Array, "*batch size"]
    shape: tuple[int, ...]

    def sample(self, key: Array) -> Float[Array, "*batch shape"]:
        """Draw an action.

        Args:
            key: a JAX key.
        """
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self._shaped(self.mean + jnp.exp(self.log_std) * noise)

    def mode(self) -> Float[Array, "*batch shape"]:
        """Return the most probable action."""
        return self._shaped(self.mean)

    def log_prob(self, action: Float[Array, "*batch shape"]) -> Float[Array, "*batch"]:
        """Return the log-probability density of an action, summed over its parts.

        Args:
            action: an action, as `sample` returns it.
        """
        flat = action.reshape(self.mean.shape)
        standard = (flat - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * standard**2 + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy in nats, summed over the parts of an action."""
        return (jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def _shaped(self, flat: Array) -> Array:
        return flat.reshape(*flat.shape[:-1], *self.shape)


class Squashed(NamedTuple):
    """Independent normal variables, mapped into the bounds of an action space.

    An action and its density are computed from the normal variables: a tanh that has rounded to 1 has no inverse.

    Attributes:
        mean: one per variable.
        log_std: logarithms of the standard deviations.
        bounds: of the actions.
    """

    mean: Float[Array, "*batch size"]
    log_std: Float[Array, "*batch size"]
    bounds: Bounds

    def from_noise(self, noise: Float[Array, "*batch size"]) -> tuple[Array, Float[Array, "*batch"]]:
        """Return an action in units of its bounds [*batch, size], and its log-probability density in these units.

        Args:
            noise: standard normal numbers.
        """
        x = self.mean + jnp.exp(self.log_std) * noise
        normal = -(0.5 * noise**2 + self.log_std + 0.5 * math.log(2 * math.pi))
        return self.bounds.unit(x), (normal - self.bounds.log_slope(x)).sum(-1)

    def sample(self, key: Array) -> Float[Array, "*batch size"]:
        """Draw an action, in units of its bounds.

        Args:
            key: a JAX key.
        """
        return self.from_noise(jax.random.normal(key, self.mean.shape, self.mean.dtype))[0]

    def mode(self) -> Float[Array, "*batch size"]:
        """Return the image of the mean, in units of the bounds."""
        return self.bounds.unit(self.mean)


class Head(NamedTuple):
    """The outputs that a policy network needs for an action space, and the distribution made from them.

    Attributes:
        outputs: number of outputs.
        stds: number of standard deviations that are learned parameters, the same in all states.
        make: `(outputs [batch, outputs], log_std [stds], action_mask) -> distribution`.
    """

    outputs: int
    stds: int
    make: Callable[..., Any]


def head(space: gymnasium.Space) -> Head:
    """The head for an action space.

    Args:
        space: Discrete, MultiDiscrete or MultiBinary with one axis, or Box of floating-point numbers.

    Raises:
        ValueError: for any other space.
    """
    if isinstance(space, spaces.Discrete):
        return Head(int(space.n), 0, lambda x, _, mask: Categorical(x, mask))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        bounds = np.cumsum(space.nvec)[:-1].tolist()

        def multi(outputs: Array, _: Any, mask: Bool[Array, "..."] | None) -> MultiCategorical:
            parts = jnp.split(outputs, bounds, -1)
            masks = [None] * len(parts) if mask is None else jnp.split(mask, bounds, -1)
            return MultiCategorical(tuple(Categorical(p, m) for p, m in zip(parts, masks, strict=True)))

        return Head(int(space.nvec.sum()), 0, multi)
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int | np.integer):
        return Head(int(space.n), 0, lambda x, _, mask: Bernoulli(x))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        size, shape = math.prod(space.shape), space.shape

        def normal(outputs: Array, log_std: Array, mask: Any) -> Normal:
            return Normal(outputs, jnp.broadcast_to(log_std, outputs.shape), shape)

        return Head(size, size, normal)
    raise ValueError(
        f"the action space {space} has no distribution; there is one for Discrete, MultiDiscrete and MultiBinary of "
        "one axis, and Box of floating numbers: wrap the environment so that its actions are one of these"
    )
