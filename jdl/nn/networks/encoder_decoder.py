"""Encoder-decoder transformer: reads one sequence and writes another."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jdl.nn.layers.attention import padding_mask
from jdl.nn.layers.dense import by_rows
from jdl.nn.layers.positions import sinusoidal
from jdl.nn.layers.tokens import Tokens, check_ids
from jdl.nn.layers.transformer import Stack, TransformerBlock


class EncoderDecoder(nn.Module):
    """Transformer that returns the next-token logits at every position of a target sequence, given a source.

    The defaults are those of the paper's base model, except that normalization comes first. One embedding is shared
    by source, target and logits.

    Source: Vaswani et al., "Attention is all you need", 2017, table 3; section 3.4 on shared embeddings.
    """

    example_parts: ClassVar[tuple[str, ...]] = ("source", "target")  # the keys of its inputs, for `jdl summary`

    vocab_size: int
    context: int = 512
    width: int = 512
    num_layers: int = 6  # in the encoder, and again in the decoder
    num_heads: int = 8
    features: int | None = None  # hidden width of the feed-forward networks; by default four times the width
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.1
    norm_first: bool = True
    scan: bool = False
    remat: bool = False

    def setup(self) -> None:
        """Create the layers; encoder and decoder share the embedding."""
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
        block = functools.partial(
            TransformerBlock,
            num_heads=self.num_heads,
            features=self.features or 4 * self.width,
            norm_first=self.norm_first,
            activation=self.activation,
            dropout=self.dropout,
            kernel_init=nn.initializers.xavier_uniform(),
            cache_length=self.context,
        )
        self.encoder = Stack(block, self.num_layers, self.scan, self.remat)
        self.decoder = Stack(functools.partial(block, causal=True), self.num_layers, self.scan, self.remat)
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(), nn.LayerNorm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch time vocabulary"]:
        """Return the logits of the token that follows each position of the target.

        Args:
            inputs: `{"source", "target"}`, each ids `[batch, time]` or `{"ids", "mask"}`; the target holds the tokens
                known so far
            train: apply dropout

        Raises:
            ValueError: for anything other than a source and a target, for parts that are not token sequences, and for
                more than `context` tokens
        """
        if not isinstance(inputs, Mapping) or set(inputs) != {"source", "target"}:
            given = ", ".join(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f'an encoder-decoder is given {{"source": ..., "target": ...}}, not {given}')
        source = Tokens.of(inputs["source"], self.context)
        memory = self.encode(source, train)
        return self.decode(inputs["target"], memory, source.mask, train)

    def encode(self, source: Any, train: bool = False) -> Float[Array, "batch source width"]:
        """Encode the source.

        Args:
            source: ids `[batch, source]`, or `{"ids", "mask"}`
            train: apply dropout

        Returns:
            features of the source tokens

        Raises:
            ValueError: for inputs that are not token sequences, and for more than `context` tokens
        """
        tokens = Tokens.of(source, self.context)
        mask = None if tokens.mask is None else padding_mask(jnp.asarray(tokens.mask))
        places = jnp.arange(tokens.ids.shape[1])[None]
        x = self.encoder(self._embedded(tokens, places, train), mask=mask, train=train)
        return self.encoder_norm(x) if self.norm_first else x

    def decode(
        self,
        target: Any,
        memory: Float[Array, "batch source width"],
        memory_mask: Bool[Array | np.ndarray, "batch source"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch time vocabulary"]:
        """Return the logits of the token that follows each position of the target.

        Args:
            target: ids `[batch, time]`, or `{"ids", "mask"}`
            memory: features of the source tokens, from `encode`
            memory_mask: true for source tokens that exist; by default all do
            train: apply dropout
            decode: continue after the target tokens in the collection "cache"

        Raises:
            ValueError: for inputs that are not token sequences, and for more than `context` tokens
        """
        tokens = Tokens.of(target, self.context)
        places = jnp.arange(tokens.ids.shape[1])[None]
        if decode:
            before = self.get_variable("cache", "index", jnp.zeros((), jnp.int32))
            places = places + before
            self.put_variable("cache", "index", before + tokens.ids.shape[1])
        x = self.decoder(
            self._embedded(tokens, places, train),
            mask=None if tokens.mask is None else padding_mask(jnp.asarray(tokens.mask)),
            context=memory,
            context_mask=None if memory_mask is None else padding_mask(jnp.asarray(memory_mask)),
            train=train,
            decode=decode,
        )
        return by_rows(self.embed.attend, self.decoder_norm(x) if self.norm_first else x)

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raise ValueError for ids outside the vocabulary."""
        for part in ("source", "target"):
            check_ids(inputs[part], self.vocab_size)

    def _embedded(self, tokens: Tokens, places: Int[Array, "#batch time"], train: bool) -> Array:
        x = self.embed(jnp.asarray(tokens.ids)) * self.width**0.5
        x = x + sinusoidal(places, self.width).astype(x.dtype)
        return self.drop(x, deterministic=not train)
