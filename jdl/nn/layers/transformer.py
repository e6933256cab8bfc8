"""Transformer block, and a stack of blocks: unrolled or scanned over layers, with optional rematerialization."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdl.nn.layers.attention import Initializer, MultiHeadAttention
from jdl.nn.layers.dense import Dense
from jdl.nn.layers.normalization import NormName, normalization
from jdl.nn.layers.stochastic_depth import StochasticDepth


class FeedForward(nn.Module):
    """Two dense layers applied at every position; if gated, the first is multiplied by the activation of a third.

    Source: Vaswani et al. 2017, section 3.3; gated: Shazeer, "GLU variants improve transformer", 2020.
    """

    features: int  # hidden width
    activation: Callable[[Array], Array] = nn.gelu
    gated: bool = False
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """Transform every position independently."""
        hidden = Dense(self.features, self.use_bias, kernel_init=self.kernel_init, name="up")(x)
        if self.gated:
            gate = Dense(self.features, self.use_bias, kernel_init=self.kernel_init, name="gate")(x)
            hidden = hidden * self.activation(gate)
        else:
            hidden = self.activation(hidden)
        out_init = self.out_kernel_init or self.kernel_init
        return Dense(x.shape[-1], self.use_bias, kernel_init=out_init, name="down")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention if there is a context, and a feed-forward network, each with a skip connection.

    The fields that are not listed are those of `MultiHeadAttention` and `FeedForward`.

    Attributes:
        features: hidden width of the feed-forward network
        norm: kind of normalization (`normalization`)
        norm_first: normalize the input of each of the three (Xiong et al. 2020) instead of the sum after it
        epsilon: epsilon of the normalization
        dropout: dropout rate on the output of each of the three, before it is added
    """

    num_heads: int
    features: int
    num_kv_heads: int | None = None
    head_features: int | None = None
    causal: bool = False
    rotary_base: float | None = None
    norm: NormName = "layer"
    norm_first: bool = True
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] = nn.gelu
    gated: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    cache_length: int | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_kernel_init: Initializer | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        mask: Bool[Array, "batch #heads #time _"] | None = None,
        context: Float[Array, "batch source context_width"] | None = None,
        context_mask: Bool[Array, "batch #heads #time source"] | None = None,
        positions: Int[Array, "#batch time"] | None = None,
        train: bool = False,
        decode: bool = False,
        drop_rate: Any = 0.0,
    ) -> Float[Array, "batch time width"]:
        """Apply the block.

        Args:
            mask: where x may attend to itself
            context: the sequences that x also attends to; None for no cross-attention
            context_mask: where x may attend to the context
            positions: positions for the rotary embedding
            train: apply dropout and stochastic depth
            decode: continue after the tokens in the collection "cache"
            drop_rate: stochastic depth: the probability that an example skips each of the three
        """

        def attention(name: str, **options: Any) -> MultiHeadAttention:
            return MultiHeadAttention(
                self.num_heads,
                self.num_kv_heads,
                self.head_features,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                out_kernel_init=self.out_kernel_init,
                name=name,
                **options,
            )

        def added(name: str, x: Array, branch: Callable[[Array], Array]) -> Array:
            norm = normalization(self.norm, epsilon=self.epsilon, use_bias=self.use_bias, name=f"{name}_norm")
            out = branch(norm(x) if self.norm_first else x)
            out = nn.Dropout(self.dropout, deterministic=not train)(out)
            if train and not (isinstance(drop_rate, float) and drop_rate == 0):
                out = StochasticDepth(name=f"{name}_depth")(out, drop_rate)
            return x + out if self.norm_first else norm(x + out)

        within = attention(
            "attention", causal=self.causal, rotary_base=self.rotary_base, cache_length=self.cache_length
        )
        x = added("attention", x, lambda x: within(x, None, mask, positions, decode))
        if context is not None:
            across = attention("cross_attention")
            x = added("cross_attention", x, lambda x: across(x, context, context_mask, None, decode))
        forward = FeedForward(
            self.features,
            self.activation,
            self.gated,
            self.use_bias,
            self.kernel_init,
            self.out_kernel_init,
            name="feed_forward",
        )
        return added("feed_forward", x, forward)


class Stack(nn.Module):
    """`num_layers` blocks, one after the other.

    Attributes:
        make: `(name=...) -> block`, for instance `functools.partial(TransformerBlock, num_heads=8, features=2048)`
        scan: compile one body for all layers, so that compile time does not grow with depth; parameters then have a
            leading axis of layers, under "layers" instead of "layer_0", "layer_1", ...
        remat: recompute activations in the backward pass instead of keeping them (Chen et al. 2016)
        drop_rate: stochastic depth rate at the last layer, growing linearly from 0 at the first (Huang et al. 2016,
            section 3)
    """

    make: Callable[..., nn.Module]
    num_layers: int
    scan: bool = False
    remat: bool = False
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"], **arguments: Any) -> Float[Array, "batch time width"]:
        """Apply all blocks; `arguments` are passed to each of them."""
        train = arguments.get("train", False)
        rates = jnp.linspace(0, self.drop_rate, self.num_layers) if self.drop_rate and train else None

        def layer(block: nn.Module, x: Array, rate: Any) -> tuple[Array, None]:
            extra = {} if rate is None else {"drop_rate": rate}
            return block(x, **arguments, **extra), None  # type: ignore[operator]

        if self.remat:
            layer = nn.remat(layer, prevent_cse=not self.scan)
        if self.scan:
            scanned = nn.scan(
                layer,
                variable_axes={"params": 0, "cache": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.num_layers,
            )
            return scanned(self.make(name="layers"), x, rates)[0]
        for number in range(self.num_layers):
            x, _ = layer(self.make(name=f"layer_{number}"), x, None if rates is None else rates[number])
        return x
