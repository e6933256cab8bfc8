"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Dense layers with an activation after each except the last; inputs are flattened to one vector per example."""

    features: Sequence[int]  # width of each layer, the last being the outputs
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0  # dropout rate in the hidden layers

    @nn.compact
    def __call__(self, x: Float[Array, "batch *axes"], train: bool = False) -> Float[Array, "batch outputs"]:
        """Return the outputs of the last layer, such as logits."""
        x = x.reshape(len(x), -1)
        *hidden, outputs = self.features
        for features in hidden:
            x = nn.Dropout(self.dropout, deterministic=not train)(self.activation(nn.Dense(features)(x)))
        return nn.Dense(outputs)(x)
