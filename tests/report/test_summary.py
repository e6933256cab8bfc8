"""A summary against published sizes, closed forms, Flax's own table, and what a user types."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdl.nn
from jdl.cli import main as cli
from jdl.report import network as summary
from jdl.report.network import summarize

DENSE = """
import flax.linen as nn

class Tower(nn.Module):
    width: int
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)

tower = Tower(3)
"""
GAN = """
import dataclasses
import flax.linen as nn
import jax
import jax.numpy as jnp
import jdl

@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 8

def learner(config):
    def init(key):
        params = nn.Dense(config.width).init(key, jnp.zeros((1, 4))), nn.Dense(1).init(key, jnp.zeros((1, 8)))
        return {"key": key, "step": 0, "params": params}
    return jdl.Learner(init, None, None)

def main(config, run):
    return {}
"""


def example(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def command(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as ended:
        cli.main(["summary", *map(str, arguments)])
    output = capsys.readouterr()
    assert (ended.value.code or 0) == status, output.err + output.out
    return output.out + output.err


def models(capsys, *arguments):
    return json.loads(command(capsys, *arguments, "--json").strip().splitlines()[-1])["models"]


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


def test_the_command_shows_a_network(capsys):
    shown = command(capsys, "ResNet18", "--num-classes", 10, "--depth", 1)
    assert "stage_3_block_1" in shown
    assert "conv_0" not in shown
    assert "11,181,642 parameters, 44.7 MB" in shown
    assert "f32[1,112,112,64]" in shown


def test_the_command_in_json(capsys):
    (found,) = models(capsys, "GPT", "--vocab-size", 13, "--context", 20, "--width", 16, "--num-layers", 1,
                      "--num-heads", 2, "--scan", "--input", 8, "--depth", 0)  # fmt: skip
    assert found["input"] == "i32[1,8]"
    assert found["training_flops"] is None
    expected = summarize(jdl.nn.GPT(13, 20, 16, 1, 2), example(8, dtype=np.int32))
    assert found["parameters"] == expected.parameters
    assert found["flops"] == expected.layers[0].flops == found["layers"][0]["flops"]


@pytest.mark.parametrize(
    ("arguments", "inputs"),
    [
        (("LeNet5", "--num-classes", 10), "f32[1,32,32,1]"),
        (("WideResNet", "--num-classes", 10, "--model.depth", 10, "--widen", 1), "f32[1,32,32,3]"),
        pytest.param(
            ("MobileNetV2", "--num-classes", 10, "--input", "64,64,3"), "f32[1,64,64,3]", marks=pytest.mark.slow
        ),
        (("MLP", "--features", 8, 5, "--input", "4,6"), "f32[1,4,6]"),
        (("EncoderDecoder", "--vocab-size", 9, "--context", 7, "--num-layers", 1), "i32[1,7], i32[1,7]"),
    ],
)
def test_an_input_fits_the_family(arguments, inputs, capsys):
    assert models(capsys, *arguments)[0]["input"] == inputs


def test_an_experiment_shows_the_models_of_its_learner(tmp_path, capsys):
    (tmp_path / "gan.py").write_text(GAN)
    generator, discriminator = models(capsys, tmp_path / "gan.py", "--width", 6)
    assert generator["parameters"] == 4 * 6 + 6
    assert discriminator["input"] == "f32[1,8]"


@pytest.mark.parametrize("name", ["Tower", "tower"])
def test_a_network_in_a_file(name, tmp_path, capsys):
    (tmp_path / "towers.py").write_text(DENSE)
    width = ["--width", 3] if name == "Tower" else []
    assert models(capsys, f"{tmp_path / 'towers.py'}:{name}", "--input", 5, *width)[0]["parameters"] == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ResNet51",), "there is no network 'ResNet51'; jdl.nn has AdditiveAttention, BERT, CapsNet,"),
        (("ResNet50",), "--num-classes"),
        (("ResNet50", "--num-classes", 10, "--input", "224,wide,3"), "--input 224,wide,3: give the shape of one"),
        (("ResNet50", "--num-classes", 10, "--depth", -1), "--depth -1: 0 shows the model alone"),
        (("MLP", "--features", 5), "give --input, the shape of one example of MLP, as 224,224,3"),
        (("Classifier",), "Classifier needs encoder, which cannot be given on a command line"),
        (("ViT", "--num-classes", 10, "--input", "30,30,3"), "don't divide into patches of 16"),
        (("absent.py:Tower",), "there is no file absent.py"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    shown = " ".join(command(capsys, *arguments, status=2).split())
    assert message in shown


def test_mistakes_in_files_are_named(tmp_path, capsys):
    (tmp_path / "towers.py").write_text(DENSE)
    assert "has no Linen module 'Spire'; it has Tower, tower" in command(
        capsys, f"{tmp_path / 'towers.py'}:Spire", status=2
    )
    (tmp_path / "gan.py").write_text(GAN.replace("def learner", "def elsewhere"))
    assert "has no learner(config)" in command(capsys, tmp_path / "gan.py", status=2)
    (tmp_path / "gan.py").write_text(GAN)
    assert "leave it out" in command(capsys, tmp_path / "gan.py", "--input", 4, status=2)


@pytest.mark.parametrize(
    "name", sorted(set(summary.networks()) - {"Classifier", "MobileNet", "Pooled", "Stack", "VGG"})
)
def test_every_network_has_help(name, capsys):
    assert f"usage: jdl summary {name}" in command(capsys, name, "--help")


def test_what_calls_back_is_counted_too():
    class Printing(nn.Module):
        @nn.compact
        def __call__(self, x):
            jax.debug.print("{}", x.sum())
            return nn.Dense(3)(x)

    assert summarize(Printing(), np.zeros((2, 4), np.float32)).training_flops > 0
