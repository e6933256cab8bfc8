"""Recurrent networks: simple, LSTM and GRU layers, in one or both directions, over sequences of any length.

Whatever does not depend on the previous state is computed for all time steps at once: the projections of the inputs
before the loop, and the gradient of the recurrent kernel, one matrix product, after it. XLA would leave both inside
the loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdl.nn.layers.dense import Dense

Carry = Any  # state of a layer: the hidden state, or (cell, hidden) for an LSTM, each [batch, features]
CellName = Literal["rnn", "lstm", "gru"]


def _rnn(carry: Array, projected: Array, _: None) -> tuple[Array, Array]:
    hidden = jnp.tanh(projected)
    return hidden, hidden


def _lstm(carry: tuple[Array, Array], projected: Array, _: None) -> tuple[tuple[Array, Array], Array]:
    remember, forget, new, show = jnp.split(projected, 4, -1)
    cell = jax.nn.sigmoid(forget) * carry[0] + jax.nn.sigmoid(remember) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(show) * jnp.tanh(cell)
    return (cell, hidden), hidden


def _gru(carry: Array, projected: Array, candidate: Array) -> tuple[Array, Array]:
    reset, keep, recalled = jnp.split(projected, 3, -1)
    keep = jax.nn.sigmoid(keep)
    hidden = (1 - keep) * jnp.tanh(candidate + jax.nn.sigmoid(reset) * recalled) + keep * carry
    return hidden, hidden


# Cells `(carry, projected, rest) -> (carry, output)` and their number of projections of size `features`.
# `projected` is the recurrent projection plus what is added before the loop, `rest` the projected input of a GRU's
# candidate.
_CELLS: dict[str, tuple[Callable[..., Any], int]] = {"rnn": (_rnn, 1), "lstm": (_lstm, 4), "gru": (_gru, 3)}


def _hidden(carry: Carry) -> Array:
    return carry[1] if isinstance(carry, tuple) else carry


def _loop(
    cell: Callable[..., Any], kernel: Array, added: Array, rest: Array | None, carry: Carry, lengths: Array | None
) -> tuple[Carry, Array]:
    def step(carry: Carry, now: tuple[Array, Array, Array | None]) -> tuple[Carry, Array]:
        time, added, rest = now
        new, output = cell(carry, _hidden(carry) @ kernel + added, rest)
        if lengths is not None:  # a sequence that has ended keeps its state and outputs zeros
            goes_on = (time < lengths)[:, None]
            new = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), new, carry)
            output = jnp.where(goes_on, output, 0)
        return new, output

    return jax.lax.scan(step, carry, (jnp.arange(len(added)), added, rest))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(
    cell: Callable[..., Any], kernel: Array, added: Array, rest: Array | None, carry: Carry, lengths: Array | None
) -> tuple[Carry, Array]:
    return _loop(cell, kernel, added, rest, carry, lengths)


def _recur_forward(cell, kernel, added, rest, carry, lengths):
    loop = lambda added, rest, carry: _loop(cell, kernel, added, rest, carry, lengths)  # noqa: E731
    (last, outputs), backward = jax.vjp(loop, added, rest, carry)
    return (last, outputs), (backward, _hidden(carry), outputs)


def _recur_backward(cell, kept, cotangents):
    backward, first, outputs = kept
    added, rest, carry = backward(cotangents)
    # Where a sequence has ended, the outputs are zeros instead of its state, but no gradient flows back from there.
    before = jnp.concatenate([first[None], outputs[:-1]])
    # Merge batch and time into one axis, batch first, as `Dense` does: XLA sums slowly over two axes.
    rows = [x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], x.shape[2]) for x in (before, added)]
    kernel = rows[0].T @ rows[1]
    return kernel, added, rest, carry, None


_recur.defvjp(_recur_forward, _recur_backward)


class RecurrentLayer(nn.Module):
    """One recurrent layer in one direction.

    The GRU applies its reset gate after the recurrent projection, as cuDNN and PyTorch do.

    Attributes:
        features: size of the state
        cell: "rnn", "lstm" or "gru"
        reverse: read each sequence from its end to its start; outputs stay in the order of the inputs

    Sources: Elman 1990; Hochreiter and Schmidhuber 1997 with Gers et al. 2000; Cho et al. 2014.
    """

    features: int
    cell: CellName = "lstm"
    reverse: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " batch"] | None = None,
        carry: Carry = None,
    ) -> tuple[Float[Array, "batch time features"], Carry]:
        """Run the layer over sequences.

        Args:
            lengths: length of each sequence; what follows is padding
            carry: state to start from, by default zeros

        Returns:
            the outputs, zero where a sequence has ended, and the state after its last token

        Raises:
            ValueError: for an unknown cell
        """
        if self.cell not in _CELLS:
            raise ValueError(f"cell={self.cell!r} is none of {', '.join(_CELLS)}")
        cell, gates = _CELLS[self.cell]
        features = self.features
        if self.reverse:
            x = flip(x, lengths)
        projected = Dense(gates * features, bias_init=self._bias, name="input")(x).swapaxes(0, 1)
        # One orthogonal block per gate, so that the state neither fades nor grows at first (Saxe et al. 2014).
        blocks = lambda key, shape, dtype=jnp.float32: jnp.concatenate(  # noqa: E731
            [nn.initializers.orthogonal()(k, (features, features), dtype) for k in jax.random.split(key, gates)], 1
        )
        kernel = self.param("recurrent_kernel", blocks, (features, gates * features)).astype(projected.dtype)
        rest = None
        if self.cell == "gru":
            bias = self.param("recurrent_bias", nn.initializers.zeros, (features,)).astype(projected.dtype)
            rest = projected[..., 2 * features :]
            recalled = jnp.broadcast_to(bias, rest.shape)
            projected = jnp.concatenate([projected[..., : 2 * features], recalled], -1)
        if carry is None:
            zeros = jnp.zeros((len(x), features), projected.dtype)
            carry = (zeros, zeros) if self.cell == "lstm" else zeros
        carry, outputs = _recur(cell, kernel, projected, rest, carry, lengths)
        outputs = outputs.swapaxes(0, 1)
        return (flip(outputs, lengths) if self.reverse else outputs), carry

    def _bias(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Zeros, except for an LSTM's forget gate, which starts open (Jozefowicz et al. 2015)."""
        bias = jnp.zeros(shape, dtype)
        return bias.at[self.features : 2 * self.features].set(1) if self.cell == "lstm" else bias


class Recurrent(nn.Module):
    """Recurrent layers, each of which reads the outputs of the previous one.

    Attributes:
        features: size of the state in each direction
        cell: "rnn", "lstm" or "gru"
        bidirectional: each layer reads in both directions and returns the outputs of both, forward first
        dropout: dropout rate between layers (Zaremba et al. 2014)
    """

    features: int
    cell: CellName = "lstm"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " batch"] | None = None,
        carry: Carry = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time outputs"], list[Carry]]:
        """Run all layers over sequences.

        Args:
            lengths: length of each sequence; what follows is padding and has no effect
            carry: states to start from, such as those that an earlier call returned; by default zeros
            train: apply dropout

        Returns:
            the outputs of the last layer, and the states of all layers as a list: layer 0 forward, layer 0 backward,
            layer 1 and so on

        Raises:
            ValueError: for a carry with the wrong number of states, and for an unknown cell
        """
        ways = ("forward", "backward") if self.bidirectional else ("forward",)
        if carry is not None and len(carry) != self.num_layers * len(ways):
            raise ValueError(f"carry has {len(carry)} states, one for each of {self.num_layers * len(ways)} is due")
        if lengths is not None:
            lengths = jnp.asarray(lengths)
        carries = []
        for number in range(self.num_layers):
            if number:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            outputs = []
            for way in ways:
                layer = RecurrentLayer(self.features, self.cell, way == "backward", name=f"layer_{number}_{way}")
                output, last = layer(x, lengths, None if carry is None else carry[len(carries)])
                outputs.append(output)
                carries.append(last)
            x = jnp.concatenate(outputs, -1)
        return x, carries


def flip(
    x: Float[Array, "batch time features"], lengths: Int[Array, " batch"] | None = None
) -> Float[Array, "batch time features"]:
    """Reverse each sequence in time; padding stays behind it.

    Args:
        lengths: length of each sequence; by default there is no padding
    """
    if lengths is None:
        return x[:, ::-1]
    places = jnp.arange(x.shape[1])
    mirrored = jnp.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    return jnp.take_along_axis(x, mirrored[..., None], 1)
