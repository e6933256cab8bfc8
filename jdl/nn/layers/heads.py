"""Heads on an encoder of any family: one vector a sequence, and classes."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.mode import mode_argument
from jdl.nn.layers.tokens import Tokens


class Pooled(nn.Module):
    """One vector a sequence, from an encoder's features of every token.

    pooling: "mean" over the tokens that exist; "first", BERT's dense layer with tanh on the first token.
    """

    encoder: nn.Module
    pooling: Literal["mean", "first"] = "mean"

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch width"]:
        """inputs: the encoder's."""
        x = self.encoder(inputs, **mode_argument(self.encoder)(train))  # type: ignore[operator]
        if self.pooling == "first":
            return jnp.tanh(nn.Dense(x.shape[-1], name="pooler")(x[:, 0]))
        mask = Tokens.of(inputs, x.shape[1]).mask
        if mask is None:
            return x.mean(1)
        shown = jnp.asarray(mask, x.dtype)[..., None]
        return (x * shown).sum(1) / jnp.maximum(shown.sum(1), 1)

    def check_inputs(self, inputs: Any) -> None:
        """The encoder's check, where it has one."""
        _check(self.encoder, inputs)


class Classifier(nn.Module):
    """A dense layer on an encoder's features: the head that transfer learning puts on a pretrained body.

    frozen: the encoder always runs as in evaluation, so without dropout and on its running statistics, and no gradient
    reaches it. An optimizer with weight decay would still shrink its weights: `jdl.transfer.freeze(..., "^encoder/")`.
    fixed_statistics: the encoder runs as in evaluation, and yet its parameters learn: batch normalization keeps the
    statistics that it came with, where those of small batches of few examples would do harm.
    """

    encoder: nn.Module  # gives `[batch, features]`
    num_classes: int
    dropout: float = 0.0
    frozen: bool = False
    fixed_statistics: bool = False

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch classes"]:
        """inputs: the encoder's."""
        mode = mode_argument(self.encoder)(train and not self.frozen and not self.fixed_statistics)
        x = self.encoder(inputs, **mode)  # type: ignore[operator]
        if self.frozen:
            x = jax.lax.stop_gradient(x)
        return nn.Dense(self.num_classes, name="head")(nn.Dropout(self.dropout, deterministic=not train)(x))

    def check_inputs(self, inputs: Any) -> None:
        """The encoder's check, where it has one."""
        _check(self.encoder, inputs)


def _check(encoder: nn.Module, inputs: Any) -> None:
    if hasattr(encoder, "check_inputs"):
        encoder.check_inputs(inputs)  # type: ignore[operator]
