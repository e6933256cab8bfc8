"""GPT: a transformer decoder that predicts the next token; with other options, Llama."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdl.nn.layers.attention import padding_mask, segment_mask
from jdl.nn.layers.dense import Dense, by_rows
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.tokens import Tokens, check_ids
from jdl.nn.layers.transformer import Stack, TransformerBlock


class GPT(nn.Module):
    """Transformer decoder that returns the next-token logits at every position.

    The defaults are those of the smallest GPT-2 (124M parameters). For a Llama, pass positions="rotary", norm="rms",
    gated=True, activation=nn.silu, use_bias=False and tie_embeddings=False.

    Source: Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    """

    vocab_size: int
    context: int = 1024
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int | None = None
    features: int | None = None  # hidden width of the feed-forward networks; by default four times the width
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 10_000.0
    norm: NormName = "layer"
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] = nn.gelu
    gated: bool = False
    use_bias: bool = True
    tie_embeddings: bool = True
    dropout: float = 0.0
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False, decode: bool = False) -> Float[Array, "batch time vocabulary"]:
        """Return the logits of the token that follows each position.

        Args:
            inputs: ids `[batch, time]`, or `{"ids", "mask", "positions", "segments"}` (`jdl.nn.Tokens`)
            train: apply dropout
            decode: continue after the tokens in the collection "cache", which the first call creates;
                `jdl.text.generate` uses this

        Raises:
            ValueError: for inputs that are not token sequences, and for more than `context` tokens
        """
        tokens = Tokens.of(inputs, self.context)
        mask, positions = self._cached(tokens) if decode else (_mask(tokens), tokens.positions)
        initial = nn.initializers.normal(0.02)
        embed = nn.Embed(self.vocab_size, self.width, embedding_init=initial, name="tokens")
        x = embed(jnp.asarray(tokens.ids))
        if self.positions == "learned":
            place = jnp.arange(tokens.ids.shape[1])[None] if positions is None else positions
            x = x + nn.Embed(self.context, self.width, embedding_init=initial, name="positions")(place)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = functools.partial(
            TransformerBlock,
            num_heads=self.num_heads,
            features=self.features or 4 * self.width,
            num_kv_heads=self.num_kv_heads,
            causal=True,
            rotary_base=self.rotary_base if self.positions == "rotary" else None,
            norm=self.norm,
            epsilon=self.epsilon,
            activation=self.activation,
            gated=self.gated,
            use_bias=self.use_bias,
            dropout=self.dropout,
            cache_length=self.context,
            kernel_init=initial,
            # Scaled so that the sum of all residual branches starts no larger than a single one (GPT-2, section 2.3).
            out_kernel_init=nn.initializers.normal(0.02 * (2 * self.num_layers) ** -0.5),
        )
        stack = Stack(block, self.num_layers, self.scan, self.remat, name="blocks")
        x = stack(x, mask=mask, positions=positions, train=train, decode=decode)
        x = normalization(self.norm, epsilon=self.epsilon, use_bias=self.use_bias, name="norm")(x)
        if self.tie_embeddings:
            return by_rows(embed.attend, x)
        return Dense(self.vocab_size, use_bias=False, kernel_init=initial, name="logits")(x)

    def check_inputs(self, inputs: Any) -> None:
        """Raise ValueError for ids outside the vocabulary."""
        check_ids(inputs, self.vocab_size)

    def _cached(self, tokens: Tokens) -> tuple[Bool[Array, "batch 1 1 context"], Int[Array, "batch time"]]:
        """Record which cache slots hold real tokens; padding takes up a slot but does not advance the positions."""
        batch, time = tokens.ids.shape
        exist = jnp.ones((batch, time), bool) if tokens.mask is None else jnp.asarray(tokens.mask)
        exists = self.variable("cache", "exists", jnp.zeros, (batch, self.context), bool)
        count = self.variable("cache", "count", jnp.zeros, (batch, 1), jnp.int32)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        exists.value = jax.lax.dynamic_update_slice_in_dim(exists.value, exist, index.value, 1)
        positions = jnp.maximum(count.value + jnp.cumsum(exist, 1) - 1, 0)
        count.value = count.value + exist.sum(1, keepdims=True, dtype=jnp.int32)
        index.value = index.value + time
        return padding_mask(exists.value), positions


def _mask(tokens: Tokens) -> Bool[Array, "batch 1 _ source"] | None:
    if tokens.segments is not None:
        return segment_mask(jnp.asarray(tokens.segments))
    return None if tokens.mask is None else padding_mask(jnp.asarray(tokens.mask))
