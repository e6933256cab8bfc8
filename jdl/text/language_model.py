"""Recurrent language model, with the interface of `jdl.nn.GPT`."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.dense import Dense
from jdl.nn.layers.recurrent import CellName, Recurrent
from jdl.nn.layers.tokens import Tokens, check_ids


class RecurrentLanguageModel(nn.Module):
    """Recurrent layers over token embeddings that return the next-token logits at every position.

    Source: Mikolov et al., "Recurrent neural network based language model", 2010; with LSTMs, Graves 2013, section 2.
    """

    vocab_size: int
    features: int
    cell: CellName = "lstm"
    num_layers: int = 2
    width: int = 128  # width of the embeddings
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False, decode: bool = False) -> Float[Array, "batch time vocabulary"]:
        """Return the logits of the token that follows each position.

        Args:
            inputs: ids `[batch, time]`, or `{"ids", "mask"}` with padding at the end
            train: apply dropout
            decode: continue after the tokens that the collection "cache" has seen; the first call creates it

        Raises:
            ValueError: for inputs that are not token sequences
        """
        tokens = Tokens.of(inputs, None)
        lengths = None if tokens.mask is None else jnp.asarray(tokens.mask).sum(1)
        carry = self.get_variable("cache", "carry", None) if decode else None
        x = nn.Embed(self.vocab_size, self.width, name="tokens")(jnp.asarray(tokens.ids))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        layers = Recurrent(self.features, self.cell, self.num_layers, dropout=self.dropout, name="layers")
        x, carry = layers(x, lengths, carry, train)
        if decode:
            self.put_variable("cache", "carry", carry)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.vocab_size, name="logits")(x)

    def check_inputs(self, inputs: Any) -> None:
        """Raise ValueError for ids outside the vocabulary."""
        check_ids(inputs, self.vocab_size)
