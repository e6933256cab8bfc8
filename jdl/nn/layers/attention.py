"""Multi-head scaled dot-product attention with a cache for decoding, and additive attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdl.nn.layers.dense import Dense
from jdl.nn.layers.positions import rotary
from jdl.nn.layers.ring_attention import current_ring, ring_attention

Initializer = nn.initializers.Initializer


class MultiHeadAttention(nn.Module):
    """Multi-head attention with optional causal mask, grouped keys and values, rotary positions and decoding cache.

    Self-attention, or attention of x to another sequence if a `context` is given. Uses
    `jax.nn.dot_product_attention`, which a GPU fuses, or ring attention where sequences are spread over a ring of
    devices (`over_ring`).

    Attributes:
        num_heads: number of query heads
        num_kv_heads: number of key-value heads, by default num_heads; with fewer, groups of heads share keys and
            values (Ainslie et al. 2023, "GQA")
        head_features: features of each head; by default the width divided by num_heads
        causal: attend only to the same and earlier positions
        rotary_base: base of the rotary positions; None for none
        cache_length: number of tokens that the decoding cache has room for
        out_kernel_init: initializer of the output projection; by default kernel_init

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_features: int | None = None
    causal: bool = False
    rotary_base: float | None = None
    use_bias: bool = True
    cache_length: int | None = None
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
        """Attend where `mask` is true and, if causal, only to the same and earlier positions.

        A row that may attend to nothing attends to everything equally.

        Args:
            x: the sequences that attend
            context: the sequences that x attends to; by default x
            mask: true where attention is allowed; when decoding it covers the cache, `[batch, 1, time, cache_length]`
            positions: positions for the rotary embedding; by default 0, 1, ...
            decode: x follows the tokens in the collection "cache", which the first call creates. The keys and values
                of a context are computed by the first call only

        Raises:
            ValueError: for numbers of heads that do not divide evenly, and when decoding without a cache_length or
                with more tokens at once than it allows
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
        """Append to the cache; return all its keys and values, and which of them each new token may attend to."""
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
    """Additive attention: queries, such as a decoder's states, attend to encoder states, scored by a small network.

    Attributes:
        features: hidden width of the scoring network

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
        """Attend to the states.

        Args:
            query: what attends
            states: what is attended to
            mask: true for states that exist; by default all do

        Returns:
            the weighted means of the states, and the weights
        """
        asked = Dense(self.features, use_bias=False, name="query")(query)[:, :, None]
        offered = Dense(self.features, name="states")(states)[:, None]
        scores = Dense(1, use_bias=False, name="score")(jnp.tanh(asked + offered))[..., 0]
        where = None if mask is None else mask[:, None]
        weights = jax.nn.softmax(scores, where=where)
        return jnp.einsum("bts,bsf->btf", weights, states), weights


def padding_mask(tokens: Bool[Array, "batch source"]) -> Bool[Array, "batch 1 1 source"]:
    """Make an attention mask that lets every position attend to the tokens that exist.

    Args:
        tokens: true where there is a token, false where there is padding.
    """
    return tokens[:, None, None]


def segment_mask(
    segments: Int[Array, "batch time"], of_keys: Int[Array, "batch source"] | None = None
) -> Bool[Array, "batch 1 time source"]:
    """Make an attention mask in which tokens attend only within their segment.

    Several sequences packed into one row stay apart this way.

    Args:
        segments: segment of each query
        of_keys: segment of each key, 0 for padding; by default the same as `segments`
    """
    of_keys = segments if of_keys is None else of_keys
    return ((segments[:, :, None] == of_keys[:, None]) & (of_keys > 0)[:, None])[:, None]
