"""Positions of tokens: rotary and sinusoidal embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary(
    x: Float[Array, "batch time heads features"], positions: Int[Array, "#batch time"], base: float = 10_000.0
) -> Float[Array, "batch time heads features"]:
    """Rotate each pair of features by an angle proportional to the position, so that products depend on distances only.

    Feature i is paired with i + features / 2, as in Llama's and GPT-NeoX's weights.

    Args:
        x: queries or keys
        positions: position of each token
        base: the wavelengths are 2 pi base ** (2 i / features)

    Raises:
        ValueError: for an odd number of features

    Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021, section 3.2.2.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        raise ValueError(f"rotary positions turn pairs of features, a head has {x.shape[-1]}: make it an even number")
    # Compute angles in single precision whatever x is: half precision cannot tell position 2049 from 2048.
    angles = positions[..., None].astype(jnp.float32) * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cosine, sine = (f(angles)[:, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def sinusoidal(
    positions: Int[Array, "*axes"], features: int, base: float = 10_000.0
) -> Float[Array, "*axes {features}"]:
    """Sines, then cosines, of geometrically spaced wavelengths.

    Args:
        positions: position of each token
        features: number of outputs for each position
        base: the wavelengths are 2 pi base ** (2 i / features)

    Raises:
        ValueError: for an odd number of features

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5 (there sines and cosines alternate).
    """
    if features % 2:
        raise ValueError(
            f"sinusoidal positions are sines and cosines, {features} features are not: take an even number"
        )
    half = features // 2
    angles = positions[..., None] * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
