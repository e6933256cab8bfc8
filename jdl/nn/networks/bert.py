"""BERT: a bidirectional transformer encoder."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.attention import padding_mask, segment_mask
from jdl.nn.layers.tokens import Tokens, check_ids
from jdl.nn.layers.transformer import Stack, TransformerBlock


class BERT(nn.Module):
    """Bidirectional transformer encoder that returns features of every token.

    The defaults are those of BERT-base; num_layers=6 and width=384 give MiniLM.

    Source: Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019, section 3.
    """

    vocab_size: int
    context: int = 512
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    features: int | None = None  # hidden width of the feed-forward networks; by default four times the width
    types: int = 2  # number of token types: sentence A and sentence B
    epsilon: float = 1e-12
    dropout: float = 0.1
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch time width"]:
        """Return the features of every token.

        Args:
            inputs: ids `[batch, time]`, or `{"ids", "mask", "types", ...}` (`jdl.nn.Tokens`)
            train: apply dropout

        Raises:
            ValueError: for inputs that are not token sequences, and for more than `context` tokens
        """
        tokens = Tokens.of(inputs, self.context)
        initial = nn.initializers.truncated_normal(0.02)
        embed = functools.partial(nn.Embed, features=self.width, embedding_init=initial)
        positions = jnp.arange(tokens.ids.shape[1])[None] if tokens.positions is None else tokens.positions
        types = jnp.zeros_like(tokens.ids) if tokens.types is None else tokens.types
        x = embed(self.vocab_size, name="tokens")(jnp.asarray(tokens.ids))
        x = x + embed(self.context, name="positions")(jnp.asarray(positions))
        x = x + embed(self.types, name="types")(jnp.asarray(types))
        x = nn.LayerNorm(self.epsilon, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mask = None
        if tokens.segments is not None:
            mask = segment_mask(jnp.asarray(tokens.segments))
        elif tokens.mask is not None:
            mask = padding_mask(jnp.asarray(tokens.mask))
        block = functools.partial(
            TransformerBlock,
            num_heads=self.num_heads,
            features=self.features or 4 * self.width,
            norm_first=False,
            epsilon=self.epsilon,
            activation=functools.partial(nn.gelu, approximate=False),
            dropout=self.dropout,
            kernel_init=initial,
        )
        return Stack(block, self.num_layers, self.scan, self.remat, name="blocks")(x, mask=mask, train=train)

    def check_inputs(self, inputs: Any) -> None:
        """Raise ValueError for ids outside the vocabulary."""
        check_ids(inputs, self.vocab_size)
