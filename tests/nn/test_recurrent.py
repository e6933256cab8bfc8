"""Recurrent layers beside Flax's cells, and beside plain loops; padding that changes nothing."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from filled import filled, quickly
from flax import linen

from jdl import nn

KEY = jax.random.key(0)
CELLS = ("rnn", "lstm", "gru")


def flax_cell(cell, params):
    """Flax's cell with these parameters: (its step, its first carry)."""
    kernel, bias = np.asarray(params["input"]["kernel"]), np.asarray(params["input"]["bias"])
    recurrent = np.asarray(params["recurrent_kernel"])
    features = len(recurrent)
    zeros = jnp.zeros((2, features))
    if cell == "rnn":
        theirs = {"i": {"kernel": kernel, "bias": bias}, "h": {"kernel": recurrent}}
        return linen.SimpleCell(features), theirs, zeros
    if cell == "lstm":
        theirs = {}
        for number, gate in enumerate("ifgo"):
            own = slice(number * features, (number + 1) * features)
            theirs[f"i{gate}"] = {"kernel": kernel[:, own]}
            theirs[f"h{gate}"] = {"kernel": recurrent[:, own], "bias": bias[own]}
        return linen.OptimizedLSTMCell(features), theirs, (zeros, zeros)
    theirs = {}
    for number, gate in enumerate("rzn"):
        own = slice(number * features, (number + 1) * features)
        theirs[f"i{gate}"] = {"kernel": kernel[:, own], "bias": bias[own]}
        theirs[f"h{gate}"] = {"kernel": recurrent[:, own]}
    theirs["hn"]["bias"] = np.asarray(params["recurrent_bias"])
    return linen.GRUCell(features), theirs, zeros


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_is_flax_s_cell_in_a_loop(cell):
    x = jax.random.normal(KEY, (2, 5, 3))
    layer = nn.RecurrentLayer(4, cell)
    variables = filled(layer, x)

    def by_hand(variables, x):
        theirs, params, carry = flax_cell(cell, variables["params"])
        outputs = []
        for time in range(x.shape[1]):
            carry, output = theirs.apply({"params": params}, carry, x[:, time])
            outputs.append(output)
        return jnp.stack(outputs, 1), carry

    ours, last = quickly(layer.apply)(variables, x)
    theirs, carry = by_hand(variables, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, carry)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_finite_differences(cell, x64):
    network = nn.Recurrent(3, cell, 2, bidirectional=True)
    x, lengths = jax.random.normal(KEY, (2, 4, 3)), jnp.array([4, 2])
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), filled(network, x))
    pair = (jnp.full((2, 3), 0.3), jnp.full((2, 3), 0.1))
    first = [pair if cell == "lstm" else pair[0]] * 4

    def total(variables, x, first):
        outputs, carries = network.apply(variables, x, lengths, first)
        return sum((jnp.sin(leaf + 1)).sum() for leaf in jax.tree.leaves((outputs, carries)))

    jax.test_util.check_grads(quickly(total), (variables, x, first), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell):
    network = nn.Recurrent(4, cell, 2, bidirectional=True)
    x, lengths = jax.random.normal(KEY, (3, 6, 2)), (6, 3, 1)
    variables = filled(network, x)
    apply = quickly(network.apply)
    outputs, carries = apply(variables, x, jnp.array(lengths))
    for row, length in enumerate(lengths):
        alone, states = apply(variables, x[row : row + 1, :length])
        np.testing.assert_allclose(outputs[row, :length], alone[0], atol=1e-5)
        np.testing.assert_array_equal(outputs[row, length:], 0)
        for ours, theirs in zip(jax.tree.leaves(carries), jax.tree.leaves(states), strict=True):
            np.testing.assert_allclose(ours[row], theirs[0], atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_two_parts_is_the_whole(cell):
    network = nn.Recurrent(4, cell, 2)
    x = jax.random.normal(KEY, (2, 7, 3))
    variables = filled(network, x)
    apply = quickly(network.apply)
    whole, _ = apply(variables, x)
    first, carry = apply(variables, x[:, :3])
    second, _ = apply(variables, x[:, 3:], carry=carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)


def test_dropout_acts_between_layers_alone():
    x = jax.random.normal(KEY, (2, 7, 3))
    for layers, differs in ((1, False), (2, True)):
        network = nn.Recurrent(4, num_layers=layers, dropout=0.5)
        variables = filled(network, x)
        run = lambda key: network.apply(variables, x, train=True, rngs={"dropout": jax.random.key(key)})[0]  # noqa: B023, E731
        assert np.array_equal(run(0), run(1)) != differs


def test_bad_input_is_named():
    x = jnp.zeros((2, 7, 3))
    with pytest.raises(ValueError, match="carry has 1 states, one for each of 2 is due"):
        nn.Recurrent(4, num_layers=2).init(KEY, x, carry=[jnp.zeros((2, 4))])
