"""Outputs and gradients beside PyTorch's and Hugging Face Transformers' modules with the same weights.

`make parity` builds the other side's environment and runs this; JDL_TORCH_PYTHON names its Python.
"""

import os
import subprocess
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import pretrained

PYTHON = os.environ.get("JDL_TORCH_PYTHON")
SIDE = Path(__file__).parent / "torch_side.py"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(PYTHON is None, reason="JDL_TORCH_PYTHON names no Python with PyTorch; run `make parity`"),
]

TOKENS = {"width": 96, "num_layers": 12, "num_heads": 6, "features": 384}
LLAMA = {"positions": "rotary", "norm": "rms", "gated": True, "use_bias": False, "tie_embeddings": False}
# name: the model, its key map, what it is called with
CASES = {
    "bert": (jdl.nn.BERT(211, 40, **TOKENS), pretrained.BERT, lambda x: (as_tokens(x),)),
    "bert-scanned": (jdl.nn.BERT(211, 40, scan=True, remat=True, **TOKENS), pretrained.BERT, lambda x: (as_tokens(x),)),
    "gpt2": (jdl.nn.GPT(211, 40, **TOKENS), pretrained.GPT2, lambda x: (x["ids"],)),
    "gpt2-scanned": (jdl.nn.GPT(211, 40, scan=True, remat=True, **TOKENS), pretrained.GPT2, lambda x: (x["ids"],)),
    "llama": (
        jdl.nn.GPT(211, 40, **TOKENS, **LLAMA, num_kv_heads=2, activation=nn.silu, epsilon=1e-6),
        pretrained.LLAMA,
        lambda x: (x["ids"],),
    ),
    "vit": (jdl.nn.ViT(7, 8, epsilon=1e-12, **TOKENS), pretrained.vit(8), lambda x: (channels_last(x["images"]),)),
    "resnet": (jdl.nn.ResNet50(11), pretrained.RESNET, lambda x: (channels_last(x["images"]),)),
    "resnet_train": (jdl.nn.ResNet50(11), pretrained.RESNET, lambda x: (channels_last(x["images"]),)),
    **{
        name: (
            jdl.nn.Recurrent(24, name, 2, bidirectional=True),
            getattr(pretrained, name.upper()),
            lambda x: (x["inputs"], x["lengths"]),
        )
        for name in ("rnn", "lstm", "gru")
    },
}


def as_tokens(x):
    return {"ids": x["ids"], "mask": x["mask"] > 0, "types": x["types"]}


def channels_last(images):
    return images.transpose(0, 2, 3, 1)


def part(arrays, letter):
    return {name[2:]: arrays[name] for name in arrays if name.startswith(f"{letter}/")}


@pytest.fixture(scope="module")
def other_side(tmp_path_factory):
    made = {}

    def get(case):
        if case not in made:
            path = tmp_path_factory.mktemp("parity") / f"{case}.npz"
            subprocess.run([PYTHON, str(SIDE), case, str(path)], check=True, timeout=240)
            with np.load(path) as file:
                made[case] = dict(file)
        return made[case]

    return get


def as_doubles(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else None), tree)


def outputs(name, variables, x):
    model, _, arguments = CASES[name]
    mode = {"train": True} if "train" in name else {}
    out, _ = model.apply(variables, *arguments(x), mutable=["batch_stats"], **mode)
    out = out[0] if isinstance(out, tuple) else out
    return out * x["mask"][..., None] if "mask" in x else out  # what stands where there is no token says nothing


def converted(name, arrays, letter, **options):
    model, keymap, arguments = CASES[name]
    given = arguments(jax.tree.map(jnp.asarray, part(arrays, "x")))
    like = jax.eval_shape(model.init, jax.random.key(0), *given)
    return pretrained.to_ours(part(arrays, letter), keymap, like, **options), like


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_give_the_same_outputs(name, other_side):
    arrays = other_side(name.removesuffix("-scanned"))
    variables, like = converted(name, arrays, "w")
    assert jax.tree.structure(variables) == jax.tree.structure(like)
    ours = jax.jit(lambda variables, x: outputs(name, variables, x))(variables, part(arrays, "x"))
    worst = np.abs(np.asarray(ours) - arrays["y"]).max() / np.abs(arrays["y"]).max()
    assert worst <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_give_the_same_gradients(name, other_side):
    """In double precision: in single, rounding turns units of a ResNet on and off, and gradients differ by 1%."""
    arrays = other_side(name.removesuffix("-scanned"))
    for key in [key for key in arrays if key.startswith("g/bias_hh")]:
        # Of two biases that are added each has the whole gradient; count it once.
        gates = 2 * len(arrays[key]) // 3 if name == "gru" else len(arrays[key])
        arrays = arrays | {key: np.where(np.arange(len(arrays[key])) < gates, 0, arrays[key])}
    with jax.enable_x64(True):
        variables, x = as_doubles(converted(name, arrays, "w")[0]), as_doubles(part(arrays, "x"))
        total = lambda params: (outputs(name, {**variables, "params": params}, x) * arrays["c"]).sum()  # noqa: E731
        gradients = jax.jit(jax.grad(total))(variables["params"])
        keymap = CASES[name][1]
        like = {"params": jax.eval_shape(lambda: gradients)}
        theirs = pretrained.to_ours(part(arrays, "g"), keymap, like)["params"]
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        for (path, their), our in zip(
            jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(gradients), strict=True
        ):
            # Of some (a key's bias) the gradient is zero but for rounding: held against the largest of all.
            worst = np.abs(our - their).max() / max(np.abs(their).max(), 1e-3 * largest)
            # In single precision remain the softmax of `jax.nn.dot_product_attention`, and the sum of two biases.
            bar = 1e-9 if name.startswith("resnet") else 1e-7 if name in ("rnn", "lstm", "gru") else 1e-5
            assert worst <= bar, f"{jax.tree_util.keystr(path)}: {worst}"


@pytest.mark.parametrize("name", [name for name in CASES if "train" not in name])
def test_weights_go_back_to_where_they_came_from(name, other_side, tmp_path):
    arrays = other_side(name.removesuffix("-scanned"))
    keymap = CASES[name][1]
    variables, like = converted(name, arrays, "w")
    pretrained.save(tmp_path / "weights.safetensors", variables, keymap)
    again = pretrained.load(tmp_path / "weights.safetensors", keymap, like)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    written = pretrained.read(tmp_path / "weights.safetensors")
    theirs = part(arrays, "w")
    for key, array in written.items():
        key = key if key in theirs else key.removeprefix(keymap.prefix)
        if "bias_" not in key and name != "vit":  # two biases come back as one; Transformers renamed ViT's layers
            np.testing.assert_array_equal(array, theirs[key])
