"""`jdl summary` as a user types it: networks by name, in files and of experiments, their inputs, mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jdl.nn
from jdl.cli import main as cli
from jdl.cli import summary
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


@pytest.mark.medium
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


def test_small_networks_have_kilobytes(capsys):
    assert "34 parameters, 0.1 kB" in command(capsys, "MLP", "--features", 4, 2, "--input", 5)
    assert "12,005 parameters, 48.0 kB" in command(capsys, "MLP", "--features", 5, "--input", 2400)


def test_a_network_of_images_knows_the_size_of_one():
    for name in (
        "CapsNet",
        "EfficientNetLite",
        "LeNet5",
        "MobileNetV2",
        "ResNet18",
        "UNet",
        "VGG11",
        "ViT",
        "WideResNet",
    ):
        model = summary.networks()[name](10)
        shape = summary.example_input(model).shape
        assert shape == (1, *model.example_shape)
        assert not {"example_shape", "example_parts"} & {field.name for field in dataclasses.fields(model)}


def test_a_network_in_a_file_says_what_it_takes(tmp_path, capsys):
    shape = "    example_shape = (7,)\n    example_parts = ('left', 'right')\n"
    text = DENSE.replace("    width: int\n", f"    width: int\n{shape}")
    (tmp_path / "towers.py").write_text(text.replace("(x)", "(x['left'] + x['right'])"))
    (found,) = models(capsys, f"{tmp_path / 'towers.py'}:Tower", "--width", 2)
    assert found["input"] == "f32[1,7], f32[1,7]"
    assert found["parameters"] == 7 * 2 + 2
