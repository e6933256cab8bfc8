"""The multilayer perceptron."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Dense layers with an activation between them, none after the last; inputs are flattened."""

    features: Sequence[int]  # of each layer, the outputs last
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0  # of the hidden layers

    @nn.compact
    def __call__(self, x: Float[Array, "batch *axes"], train: bool = False) -> Float[Array, "batch outputs"]:
        """Logits, or whatever the last layer stands for."""
        x = x.reshape(len(x), -1)
        *hidden, outputs = self.features
        for features in hidden:
            x = nn.Dropout(self.dropout, deterministic=not train)(self.activation(nn.Dense(features)(x)))
        return nn.Dense(outputs)(x)
