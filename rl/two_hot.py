"""Real numbers as probabilities of bins, which a classifier learns in place of a regression: values and rewards.

    h(x)  = sign(x) (√(|x| + 1) − 1) + εx                              squeezes what is large
    x     → h(x) lies between two bins; each gets the more of its probability the nearer it is
    p     → h⁻¹(Σᵢ pᵢ zᵢ), with zᵢ the places of the bins

Source: Schrittwieser et al. 2020, appendix F; h is that of Pohlen et al. 2018.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-3


class TwoHot(NamedTuple):
    """Numbers as probabilities of bins, and back.

    Attributes:
        bins: how many.
        limit: numbers beyond it, on either side, count as the limit.
        places: [bins], float32; the number that each bin stands for.
        encode: `(numbers [...]) -> probabilities [..., bins]`.
        decode: `(logits [..., bins]) -> numbers [...]`, the number that the mean of the squeezed ones stands for.
    """

    bins: int
    limit: float
    places: Array
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


def two_hot(limit: float = 1000.0, bins: int = 51) -> TwoHot:
    """Bins at equal distances of h(x), from -limit to limit.

    Args:
        limit: numbers beyond it, on either side, count as the limit.
        bins: how many.

    Raises:
        ValueError: for fewer than 2 bins, and for a limit that is not above 0.
    """
    if bins < 2 or not limit > 0:
        raise ValueError(f"two_hot(limit={limit}, bins={bins}): at least 2 bins, up to a limit above 0")
    end = signed_hyperbolic(jnp.float32(limit))
    index = jnp.arange(bins)
    squeezed = end * (2 * index / (bins - 1) - 1)

    def encode(numbers: Array) -> Array:
        within = jnp.clip(numbers, -limit, limit)
        place = (signed_hyperbolic(within) / end + 1) / 2 * (bins - 1)
        return jnp.clip(1 - jnp.abs(place[..., None] - index), 0, 1)

    def decode(logits: Array) -> Array:
        return signed_parabolic((jax.nn.softmax(logits) * squeezed).sum(-1))

    return TwoHot(bins, limit, signed_parabolic(squeezed), encode, decode)


def signed_hyperbolic(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """h(x).

    Args:
        x: numbers.
    """
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + _EPSILON * x


def signed_parabolic(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """h⁻¹(x).

    Args:
        x: numbers.
    """
    shifted = jnp.abs(x) + 1 + _EPSILON
    # (√(1 + 4ε shifted) − 1) / 2ε, written so that it does not take the difference of two numbers that are close.
    root = 2 * shifted / (1 + jnp.sqrt(1 + 4 * _EPSILON * shifted))
    return jnp.sign(x) * (root**2 - 1)
