"""A summary against published sizes, closed forms, and Flax's own table."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl.nn
from jdl.report.network import summarize


def example(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct((1, *shape), dtype)


@settings(max_examples=10, deadline=None)
@given(inputs=st.integers(1, 9), outputs=st.integers(1, 9), positions=st.integers(1, 5))
def test_a_dense_layer_is_counted_as_its_sum_is_written(inputs, outputs, positions):
    found = summarize(nn.Dense(outputs), example(positions, inputs))
    assert found.layers[0].flops == 2 * positions * inputs * outputs
    assert found.parameters == inputs * outputs + outputs
    assert found.bytes == 4 * found.parameters


@settings(max_examples=10, deadline=None)
@given(
    side=st.integers(5, 12), window=st.integers(1, 5), stride=st.integers(1, 3), groups=st.sampled_from([1, 2, 4]),
    features=st.sampled_from([4, 8]), kind=st.sampled_from([nn.Conv, jdl.nn.Conv]),
)  # fmt: skip
def test_a_convolution_is_counted_as_its_sum_is_written(side, window, stride, groups, features, kind):
    layer = kind(features, (window, window), stride, "VALID", feature_group_count=groups, use_bias=False)
    found = summarize(layer, example(side, side, 4))
    places = ((side - window) // stride + 1) ** 2
    assert found.layers[0].flops == 2 * places * features * window**2 * (4 // groups)
    assert found.parameters == window**2 * (4 // groups) * features


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "parameters", "multiply_adds"),
    [
        (jdl.nn.ResNet50(1000), 25_557_032, 4.089e9),
        (jdl.nn.VGG16(1000), 138_357_544, 15.47e9),
        (jdl.nn.ViT(1000), 86_567_656, 17.56e9),
    ],
)
def test_networks_cost_as_much_as_published(model, parameters, multiply_adds):
    """The table of torchvision's classification weights; its GFLOPS are multiply-adds."""
    found = summarize(model, example(224, 224, 3))
    assert found.parameters == parameters
    np.testing.assert_allclose(found.layers[0].flops, 2 * multiply_adds, rtol=2e-3)
    assert found.training_flops is not None
    # The backward pass has two products for each forward; XLA leaves out what a window reads of the padding.
    assert 2.7 < found.training_flops / found.layers[0].flops < 3.4


@pytest.mark.parametrize("scan", [False, True])
def test_gpt_2_costs_its_closed_form_scanned_or_not(scan):
    """12 layers of 12 width^2 weights, the logits, and two products of attention over the whole context."""
    found = summarize(jdl.nn.GPT(50257, scan=scan), example(1024, dtype=np.int32))
    assert found.parameters == 124_439_808
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert found.layers[0].flops == 2 * 1024 * weights + 12 * 2 * 2 * 1024**2 * 768
    # XLA counts the body of a scan once.
    assert (found.training_flops is None) == scan


def test_layers_are_those_of_flaxs_own_table():
    model = jdl.nn.ResNet(5, (1, 1), width=4)
    found = summarize(model, example(32, 32, 3))
    tabulate = nn.tabulate(model, jax.random.key(0), console_kwargs={"width": 400, "force_terminal": False})
    table = tabulate(jnp.zeros((1, 32, 32, 3)))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    named = [(row[0], row[1]) for row in rows if row[1]]
    assert [(layer.path, layer.kind) for layer in found.layers] == named
    assert f"Total Parameters: {found.parameters + 2 * 36:,} " in table  # and the running statistics, of 36 channels


def test_a_layer_holds_what_is_within_it():
    found = summarize(jdl.nn.GPT(13, 10, 16, 2, 4), example(10, dtype=np.int32))
    layers = {layer.path: layer for layer in found.layers}
    for path, layer in layers.items():
        within = [
            other for other in found.layers if other.path.startswith(f"{path}/") and other.depth == layer.depth + 1
        ]
        if within and path:
            assert layer.parameters == sum(other.parameters for other in within)
    attention = layers["blocks/layer_0/attention"]
    inner = sum(layers[f"blocks/layer_0/attention/{name}"].flops for name in ("query", "key", "value", "out"))
    assert attention.flops - inner == 2 * 2 * 10 * 10 * 16  # its own: scores and weighted values
    assert layers["tokens"].flops == 2 * 10 * 16 * 13  # the embedding's second use: the logits


def test_a_branch_counts_as_the_costlier_one():
    class Choice(nn.Module):
        @nn.compact
        def __call__(self, x):
            square = jnp.eye(x.shape[-1])
            return jax.lax.cond(x.sum() > 0, lambda x: x @ square @ square, lambda x: x @ square, x)

    assert summarize(Choice(), example(6)).layers[0].flops == 2 * 2 * 6 * 6


def test_what_calls_back_is_counted_too():
    class Printing(nn.Module):
        @nn.compact
        def __call__(self, x):
            jax.debug.print("{}", x.sum())
            return nn.Dense(3)(x)

    assert summarize(Printing(), np.zeros((2, 4), np.float32)).training_flops > 0
