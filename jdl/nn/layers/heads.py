"""Heads for encoders of any family: one vector per sequence, and classes."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdl.nn.layers.mode import mode_argument
from jdl.nn.layers.tokens import Tokens


class Pooled(nn.Module):
    """Pool an encoder's features of every token into one vector per sequence.

    Attributes:
        encoder: returns features `[batch, time, width]`
        pooling: "mean" averages over the tokens that exist; "first" is BERT's dense layer with tanh on the first
            token
    """

    encoder: nn.Module
    pooling: Literal["mean", "first"] = "mean"

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch width"]:
        """Return one vector per sequence; `inputs` are the encoder's."""
        x = self.encoder(inputs, **mode_argument(self.encoder)(train))  # type: ignore[operator]
        if self.pooling == "first":
            return jnp.tanh(nn.Dense(x.shape[-1], name="pooler")(x[:, 0]))
        mask = Tokens.of(inputs, x.shape[1]).mask
        if mask is None:
            return x.mean(1)
        shown = jnp.asarray(mask, x.dtype)[..., None]
        return (x * shown).sum(1) / jnp.maximum(shown.sum(1), 1)

    def check_inputs(self, inputs: Any) -> None:
        """Run the encoder's check, if it has one."""
        _check(self.encoder, inputs)


class Classifier(nn.Module):
    """Dense layer on an encoder's features: the head that transfer learning puts on a pretrained body.

    Attributes:
        encoder: returns features `[batch, features]`
        dropout: dropout rate of the features
        frozen: always run the encoder as in evaluation, without dropout and with its running statistics, and pass no
            gradient to it. An optimizer with weight decay would still shrink its weights: use
            `jdl.transfer.freeze(..., "^encoder/")`
        fixed_statistics: run the encoder as in evaluation, but train its parameters. Batch normalization then keeps
            the statistics that it came with, for when those of small batches of few examples would do harm
    """

    encoder: nn.Module
    num_classes: int
    dropout: float = 0.0
    frozen: bool = False
    fixed_statistics: bool = False

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> Float[Array, "batch classes"]:
        """Return logits; `inputs` are the encoder's."""
        mode = mode_argument(self.encoder)(train and not self.frozen and not self.fixed_statistics)
        x = self.encoder(inputs, **mode)  # type: ignore[operator]
        if self.frozen:
            x = jax.lax.stop_gradient(x)
        return nn.Dense(self.num_classes, name="head")(nn.Dropout(self.dropout, deterministic=not train)(x))

    def check_inputs(self, inputs: Any) -> None:
        """Run the encoder's check, if it has one."""
        _check(self.encoder, inputs)


def _check(encoder: nn.Module, inputs: Any) -> None:
    if hasattr(encoder, "check_inputs"):
        encoder.check_inputs(inputs)  # type: ignore[operator]
