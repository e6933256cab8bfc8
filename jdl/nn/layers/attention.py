"""Attention: scaled dot products over several heads, with a cache for decoding; additive, over encoder states."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdl.nn.layers.dense import Dense
from jdl.nn.layers.positions import rotary
from jdl.nn.layers.ring_attention import current_ring, ring_attention

Initializer = nn.initializers.Initializer


class MultiHeadAttention(nn.Module):
    """Multi-head attention on `jax.nn.dot_product_attention`, which a GPU fuses; over a ring where one is spread.

    Self-attention, or with `context` attention of x to another sequence. num_kv_heads: below num_heads, groups of
    heads share keys and values (Ainslie et al. 2023, "GQA"). rotary_base: rotary positions of that base.
    Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_features: int | None = None  # by default the width shared out among the heads
    causal: bool = False
    rotary_base: float | None = None
    use_bias: bool = True
    cache_length: int | None = None  # tokens that decoding has room for
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_kernel_init: Initializer | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        context: Float[Array, "batch source context_width"] | None = None,
        mask: Bool[Array, "batch #heads #time source"] | None = None,
        positions: Int[Array, "#batch time"] | None = None,
        decode: bool = False,
    ) -> Float[Array, "batch time width"]:
        """Attend where `mask` is true (and, if causal, not ahead); a row without any attends to all alike.

        decode: x follows what the cache (collection "cache", made by the first call) holds; the mask then covers
        the cache, `[batch, 1, time, cache_length]`. A context's keys and values are computed by the first call alone.
        """
        batch, time, width = x.shape
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads or (self.head_features is None and width % self.num_heads):
            raise ValueError(
                f"{self.num_heads} heads share neither a width of {width} nor {kv_heads} key-value heads evenly; "
                "choose numbers that divide, or give head_features"
            )
        features = self.head_features or width // self.num_heads

        def project(name: str, inputs: Array, heads: int) -> Array:
            dense = Dense(heads * features, self.use_bias, kernel_init=self.kernel_init, name=name)
            return dense(inputs).reshape(*inputs.shape[:2], heads, features)

        query = project("query", x, self.num_heads)
        cached = decode and self.has_variable("cache", "keys")
        if context is not None and cached:
            key, value = self.get_variable("cache", "keys"), self.get_variable("cache", "values")
        else:
            source = x if context is None else context
            key, value = project("key", source, kv_heads), project("value", source, kv_heads)
        if self.rotary_base is not None:
            positions = jnp.arange(time)[None] if positions is None else positions
            query, key = (rotary(heads, positions, self.rotary_base) for heads in (query, key))
        causal = self.causal
        if decode and context is not None and not cached:
            self.put_variable("cache", "keys", key)
            self.put_variable("cache", "values", value)
        elif decode and context is None:
            key, value, seen = self._remember(key, value)
            mask = seen if mask is None else mask & seen
            causal = False
        ring = None if decode or context is not None else current_ring()
        if ring is None or time % ring.size:
            attended = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
        else:
            attended = ring_attention(query, key, value, mask, causal, ring)
        out_init = self.out_kernel_init or self.kernel_init
        out = Dense(width, self.use_bias, kernel_init=out_init, name="out")
        return out(attended.reshape(batch, time, self.num_heads * features))

    def _remember(self, key: Array, value: Array) -> tuple[Array, Array, Bool[Array, "1 1 time source"]]:
        """Write into the cache; returns all its keys and values, and which of them each new token may see."""
        if self.cache_length is None:
            raise ValueError("decoding needs room for the keys and values: give MultiHeadAttention a cache_length")
        batch, time, *heads = key.shape
        if time > self.cache_length:
            raise ValueError(f"{time} tokens are given, the cache has room for {self.cache_length}; raise cache_length")
        shape = (batch, self.cache_length, *heads)
        keys = self.variable("cache", "keys", jnp.zeros, shape, key.dtype)
        values = self.variable("cache", "values", jnp.zeros, shape, value.dtype)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, key, index.value, 1)
        values.value = jax.lax.dynamic_update_slice_in_dim(values.value, value, index.value, 1)
        own = index.value + jnp.arange(time)
        index.value = index.value + time
        seen = jnp.arange(self.cache_length) <= own[:, None]
        return keys.value, values.value, seen[None, None]


class AdditiveAttention(nn.Module):
    """What a decoder's state looks at among encoder states, scored by a small network.

    Source: Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and translate", 2015,
    appendix A.1.2.
    """

    features: int

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch time query_features"],
        states: Float[Array, "batch source state_features"],
        mask: Bool[Array, "batch source"] | None = None,
    ) -> tuple[Float[Array, "batch time state_features"], Float[Array, "batch time source"]]:
        """The states' weighted means, and the weights; `mask` is true for states that exist."""
        asked = Dense(self.features, use_bias=False, name="query")(query)[:, :, None]
        offered = Dense(self.features, name="states")(states)[:, None]
        scores = Dense(1, use_bias=False, name="score")(jnp.tanh(asked + offered))[..., 0]
        where = None if mask is None else mask[:, None]
        weights = jax.nn.softmax(scores, where=where)
        return jnp.einsum("bts,bsf->btf", weights, states), weights


def padding_mask(tokens: Bool[Array, "batch source"]) -> Bool[Array, "batch 1 1 source"]:
    """Let everything attend to the tokens that exist."""
    return tokens[:, None, None]


def segment_mask(
    segments: Int[Array, "batch time"], of_keys: Int[Array, "batch source"] | None = None
) -> Bool[Array, "batch 1 time source"]:
    """Let tokens attend within their segment: several sequences packed into one row stay apart; 0 is padding."""
    of_keys = segments if of_keys is None else of_keys
    return ((segments[:, :, None] == of_keys[:, None]) & (of_keys > 0)[:, None])[:, None]
