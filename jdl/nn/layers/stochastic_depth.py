"""Stochastic depth: drop whole residual branches at random during training."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class StochasticDepth(nn.Module):
    """Drop a residual branch for some examples, and scale it for the others so that its mean stays the same.

    Draws from the "dropout" stream.

    Source: Huang et al., "Deep networks with stochastic depth", 2016, section 3.
    """

    @nn.compact
    def __call__(self, branch: Float[Array, "batch *axes"], rate: Any) -> Float[Array, "batch *axes"]:
        """Drop the branch of each example independently.

        Args:
            branch: output of the residual branch
            rate: probability of dropping it, a number in [0, 1) or a traced scalar
        """
        shape = (branch.shape[0], *(1 for _ in branch.shape[1:]))
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - jnp.asarray(rate), shape)
        return jnp.where(kept, branch / (1 - jnp.asarray(rate, branch.dtype)), 0)
