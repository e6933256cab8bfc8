"""Weights of others: there and back by every key map, and files made by hand as PyTorch writes them."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from filled import filled

from jdl import nn, pretrained

IDS = jnp.zeros((1, 4), jnp.int32)
IMAGES = jnp.zeros((1, 8, 8, 3))
SEQUENCES = jnp.zeros((1, 3, 5))
TINY = {"width": 8, "num_layers": 3, "num_heads": 2}
LLAMA = {"positions": "rotary", "norm": "rms", "gated": True, "use_bias": False, "tie_embeddings": False}

# name: the model, its key map, an input, one of its names there with its shape
MODELS = {
    "bert": (nn.BERT(13, 6, **TINY), pretrained.BERT, IDS, "bert.encoder.layer.2.intermediate.dense.weight", (32, 8)),
    "gpt2": (nn.GPT(13, 6, **TINY), pretrained.GPT2, IDS, "transformer.h.2.attn.c_attn.weight", (8, 24)),
    "llama": (
        nn.GPT(13, 6, **TINY, **LLAMA, num_kv_heads=1),
        pretrained.LLAMA,
        IDS,
        "model.layers.2.self_attn.k_proj.weight",
        (4, 8),
    ),
    "vit": (
        nn.ViT(5, 4, **TINY),
        pretrained.vit(4),
        IMAGES,
        "vit.embeddings.patch_embeddings.projection.weight",
        (8, 3, 4, 4),
    ),
    "resnet": (
        nn.ResNet(5, (1, 1), True, width=4),
        pretrained.RESNET,
        IMAGES,
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var",
        (32,),
    ),
    "efficientnet": (
        nn.MobileNet(5, (nn.Stage(1, 4, 1, 1), nn.Stage(2, 4, 2, 2, 5)), 4, 8),
        pretrained.EFFICIENTNET_LITE,
        IMAGES,
        "_blocks.1._depthwise_conv.weight",
        (8, 1, 5, 5),
    ),
    **{
        name: (
            nn.Recurrent(4, name, 2, bidirectional=True),
            getattr(pretrained, name.upper()),
            SEQUENCES,
            "weight_ih_l1_reverse",
            (4 * gates, 8),
        )
        for name, gates in (("rnn", 1), ("lstm", 4), ("gru", 3))
    },
}
SCANNED = ["bert", "gpt2", "llama", "vit"]
CASES = [(name, False) for name in MODELS] + [(name, True) for name in SCANNED]


def made(name, scan=False):
    model, keymap, inputs, *_ = MODELS[name]
    model = model.clone(scan=True) if scan else model
    return filled(model, inputs), keymap


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(("name", "scan"), CASES)
def test_there_and_back(name, scan, tmp_path):
    variables, keymap = made(name, scan)
    *_, known, shape = MODELS[name]
    theirs = pretrained.to_theirs(variables, keymap)
    assert theirs[known].shape == shape
    shapes = jax.eval_shape(lambda: variables)
    same(pretrained.to_ours(theirs, keymap, shapes), variables)
    # A file of the body alone leaves the prefix out; heads do not go with it.
    heads = {path for path in theirs if not path.startswith(keymap.prefix)}
    body = {path.removeprefix(keymap.prefix): leaf for path, leaf in theirs.items() if path not in heads}
    headless = pretrained.to_ours(body, keymap, shapes, missing=["params/(head|logits)/"])
    assert len(jax.tree.leaves(headless)) == len(jax.tree.leaves(variables)) - len(heads)
    pretrained.save(tmp_path / "model.safetensors", variables, keymap)
    same(pretrained.load(tmp_path / "model.safetensors", keymap, variables), variables)


def test_the_first_berts_call_their_norms_otherwise():
    variables, keymap = made("bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    theirs = {}
    for path, leaf in pretrained.to_theirs(variables, keymap).items():
        for new, name in old.items():
            path = path.replace(new, name)
        theirs[path] = leaf
    assert sum(".gamma" in path for path in theirs) == 7
    theirs["bert.embeddings.position_ids"] = np.arange(6)
    same(pretrained.to_ours(theirs, keymap, variables), variables)


def test_all_that_differs_is_listed_at_once():
    variables, keymap = made("resnet")
    theirs = pretrained.to_theirs(variables, keymap)
    del theirs["classifier.1.bias"], theirs["resnet.embedder.embedder.normalization.running_mean"]
    theirs |= {"resnet.extra": np.zeros(2), "other": np.zeros(2), "resnet.x.num_batches_tracked": np.zeros(())}
    theirs["resnet.embedder.embedder.normalization.weight"] = np.zeros(9)
    theirs["resnet.embedder.embedder.convolution.weight"] = np.zeros((4, 3))  # not even four axes
    with pytest.raises(ValueError, match="not those of this model") as raised:
        pretrained.to_ours(theirs, keymap, variables)
    convolution = variables["params"]["stem_conv"]["kernel"].shape
    assert str(raised.value) == (
        "the weights are not those of this model:\n"
        "  missing, the model has them:\n"
        "    batch_stats/stem_norm/mean\n"
        "    params/head/bias\n"
        "  unexpected, the model has no place for them:\n"
        "    other\n"
        "    resnet.extra\n"
        "  of another shape:\n"
        f"    params/stem_conv/kernel: (4, 3) from resnet.embedder.embedder.convolution.weight, the model has "
        f"{convolution}\n"
        "    params/stem_norm/scale: (9,) from resnet.embedder.embedder.normalization.weight, the model has (4,)\n"
        "make the model with the settings of the weights; `missing=` and `unexpected=` excuse a changed head"
    )


def test_a_head_for_other_classes_is_left_out():
    variables, keymap = made("resnet")
    theirs = pretrained.to_theirs(variables, keymap)
    theirs |= {"classifier.1.weight": np.zeros((1000, 32)), "classifier.1.bias": np.zeros(1000)}
    body = pretrained.to_ours(theirs, keymap, variables, missing=["params/head/"], unexpected=["^classifier"])
    assert "head" not in body["params"]
    same(body["params"]["stem_conv"], variables["params"]["stem_conv"])
    with pytest.raises(ValueError, match=r"params/head/bias: \(1000,\) from classifier.1.bias, the model has \(5,\)"):
        pretrained.to_ours(theirs, keymap, variables)


def test_what_has_no_name_there_is_listed():
    variables, keymap = made("bert")
    variables["params"]["head"] = {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"these have no name there:\n .*\n    params/head/bias\n    params/head/ker"):
        pretrained.to_theirs(variables, keymap)


def test_weights_are_given_in_the_models_type():
    variables, keymap = made("bert")
    half = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in pretrained.to_theirs(variables, keymap).items()}
    ours = pretrained.to_ours(half, keymap, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(ours["params"]["norm"]["scale"], variables["params"]["norm"]["scale"], rtol=2**-8)


# Files ---------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "integers": np.arange(-2, 2, dtype=np.int64),
    "half": np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2),
}


def agree(read, arrays):
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read[name], array)


def test_safetensors_and_npz_there_and_back(tmp_path):
    pretrained.write(tmp_path / "a.safetensors", ARRAYS)
    agree(pretrained.read(tmp_path / "a.safetensors"), ARRAYS)
    assert os.listdir(tmp_path) == ["a.safetensors"]  # nothing temporary stays
    plain = {name: array for name, array in ARRAYS.items() if name != "half"}  # NumPy does not know its type again
    np.savez(tmp_path / "a.npz", **plain)
    agree(pretrained.read(tmp_path / "a.npz"), plain)
    with pytest.raises(ValueError, match=r"weights are written as .safetensors, not to a\.npz"):
        pretrained.write(tmp_path / "a.npz", plain)
    with pytest.raises(FileNotFoundError, match=r"there are no weights at .*b\.pt; name a \.safetensors"):
        pretrained.read(tmp_path / "b.pt")


class Storage:
    """A tensor's memory as PyTorch pickles it: by a key, under which its bytes stand elsewhere in the file."""

    def __init__(self, values):
        self.values = np.asarray(values)


class Tensor:
    """A view of a storage: offset and strides are counted in elements."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (self.tensor, True, collections.OrderedDict())


KINDS = {"float32": "Float", "int64": "Long", "bfloat16": "BFloat16"}


@pytest.fixture
def torch_files(monkeypatch, tmp_path):
    """Writers of both of PyTorch's formats, with modules in its place that have the names that pickles ask for."""
    utils, torch = types.ModuleType("torch._utils"), types.ModuleType("torch")
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        setattr(utils, name, types.FunctionType((lambda: None).__code__, {"__name__": "torch._utils"}, name))
        getattr(utils, name).__qualname__ = name
    for kind in KINDS.values():
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))

    def pickled(tree, legacy):
        storages = []

        class Pickler(pickle.Pickler):
            def persistent_id(self, one):
                if not isinstance(one, Storage):
                    return None
                if one not in storages:
                    storages.append(one)
                kind = getattr(torch, f"{KINDS[one.values.dtype.name]}Storage")
                view = (None,) if legacy else ()
                return "storage", kind, str(storages.index(one)), "cpu", one.values.size, *view

        file = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch", torch)
            patch.setitem(sys.modules, "torch._utils", utils)
            Pickler(file, 2).dump(tree)
        return file.getvalue(), storages

    def as_zip(tree):
        content, storages = pickled(tree, legacy=False)
        with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
            for number, one in enumerate(storages):
                archive.writestr(f"archive/data/{number}", one.values.tobytes())
        return tmp_path / "zip.pt"

    def as_legacy(tree):
        content, storages = pickled(tree, legacy=True)
        heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        keys = [str(number) for number in reversed(range(len(storages)))]  # in any order
        parts = [*(pickle.dumps(head, 2) for head in heads), content, pickle.dumps(keys, 2)]
        for key in keys:
            values = storages[int(key)].values
            parts.append(struct.pack("<q", values.size) + values.tobytes())
        (tmp_path / "legacy.pt").write_bytes(b"".join(parts))
        return tmp_path / "legacy.pt"

    return {"zip": as_zip, "legacy": as_legacy}


def state_dict():
    shared = Storage(np.arange(12, dtype=np.float32))
    half = Storage(np.arange(4).astype(ml_dtypes.bfloat16))
    tensors = collections.OrderedDict(
        rows=Tensor(shared, 0, (3, 4), (4, 1)),
        transposed=Parameter(Tensor(shared, 0, (4, 3), (1, 4))),
        tail=Tensor(shared, 7, (2, 2), (3, 1)),
        scalar=Tensor(shared, 5, (), ()),
        empty=Tensor(shared, 0, (0, 3), (3, 1)),
        half=Tensor(half, 1, (3,), (1,)),
        integers=Tensor(Storage(np.array([-1, 2**40])), 0, (2,), (1,)),
    )
    values = np.arange(12, dtype=np.float32)
    arrays = {
        "rows": values.reshape(3, 4),
        "transposed": values.reshape(3, 4).T,
        "tail": np.array([[7, 8], [10, 11]], np.float32),
        "scalar": np.array(5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "half": np.array([1, 2, 3], ml_dtypes.bfloat16),
        "integers": np.array([-1, 2**40]),
    }
    return tensors, arrays


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_pytorchs_files_are_read_without_it(kind, torch_files):
    tensors, arrays = state_dict()
    assert "torch" not in sys.modules
    agree(pretrained.read(torch_files[kind](tensors)), arrays)
    nested = {"epoch": 3, "model": {"encoder": tensors}}  # a checkpoint: what is no array is left out
    read = pretrained.read(torch_files[kind](nested))
    agree(read, {f"model.encoder.{name}": array for name, array in arrays.items()})


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_nothing_in_a_file_is_executed(kind, torch_files, tmp_path):
    harm = {"weight": Malicious(tmp_path / "harm")}
    path = tmp_path / "plain.bin"
    path.write_bytes(pickle.dumps(harm))
    if kind != "plain pickle":
        path = torch_files[kind](harm)
    with pytest.raises(ValueError, match=r"asks for posix\.system, and only tensors and dicts are read; in PyTorch"):
        pretrained.read(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (-1, (4,), (1,)), (0, (2,), (-1,)), (3, (2,), (-3,)), (0, (2, 2), (1, 4))],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_outside_their_memory_are_refused(kind, offset, size, stride, torch_files):
    path = torch_files[kind]({"weight": Tensor(Storage(np.zeros(4, np.float32)), offset, size, stride)})
    with pytest.raises(ValueError, match=r"a tensor of shape .* reaches beyond its memory of 4 numbers"):
        pretrained.read(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "npz", "safetensors"])
def test_truncated_files_are_named_wherever_they_end(kind, torch_files, tmp_path):
    if kind in torch_files:
        path = torch_files[kind](state_dict()[0])
    else:
        path = tmp_path / f"a.{kind}"
        np.savez(path, x=ARRAYS["transposed"]) if kind == "npz" else pretrained.write(path, ARRAYS)
    content = path.read_bytes()
    for length in [*range(0, len(content) - 1, 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as a file of .*; is it whole\?"):
            pretrained.read(path)


def test_other_files_are_refused(torch_files, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("one.jpg", b"")
    with pytest.raises(ValueError, match=r"photos\.pt .*a zip file without a data\.pkl, of one\.jpg"):
        pretrained.read(tmp_path / "photos.pt")
    (tmp_path / "numbers.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"numbers\.pt .*it starts with '\[1, 2\]'"):
        pretrained.read(tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match=r"it holds a list, not a dict of tensors; save model\.state_dict\(\)"):
        pretrained.read(torch_files["zip"]([1]))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects\.npz .*Object arrays cannot be loaded"):
        pretrained.read(tmp_path / "objects.npz")


def test_stacking_leaves_other_layers_alone():
    model = nn.Recurrent(4, "lstm", 2)
    variables = filled(model, SEQUENCES)
    same(pretrained.stack_layers(variables), variables)
    eleven = {"params": {"blocks": {f"layer_{n}": {"x": jnp.full((1,), n)} for n in sorted(range(11), key=str)}}}
    stacked = pretrained.stack_layers(eleven)["params"]["blocks"]["layers"]["x"]
    np.testing.assert_array_equal(stacked[:, 0], range(11))  # by number, not by name


# --- weights that others have published, downloaded


@pytest.mark.slow
def test_imagenets_weights_know_a_cat_a_cup_and_a_rocket():
    photographs = pytest.importorskip("skimage.data", reason="the photographs are scikit-image's")
    network = pretrained.efficientnet_lite0(fetch=True)
    images = []
    for image in (photographs.chelsea(), photographs.coffee(), photographs.rocket()):
        side = min(image.shape[:2])
        top, left = ((size - side) // 2 for size in image.shape[:2])
        square = jnp.asarray(image[top : top + side, left : left + side], jnp.float32) / 255
        images.append(jax.image.resize(square, (224, 224, 3), "cubic").clip(0, 1))
    logits = network.model.apply(network.variables, pretrained.imagenet_images(jnp.stack(images)))
    cat, coffee, rocket = (network.class_names[place] for place in np.asarray(logits.argmax(-1)))
    assert cat in {"Egyptian Mau", "tabby cat", "tiger cat"}
    assert (coffee, rocket) == ("espresso", "missile")
    assert jax.nn.softmax(logits[1]).max() > 0.7


@pytest.mark.slow
def test_minilm_knows_what_is_alike():
    encoder = pretrained.minilm(fetch=True)
    tokens = encoder.tokenizer.encode_batch(["cat", "kitten", "stocks"], 8)
    outputs = encoder.model.apply(encoder.variables, tokens)
    weights = np.asarray(tokens["mask"], np.float32)[..., None]
    means = np.asarray((outputs * weights).sum(1) / weights.sum(1))
    means = means / np.linalg.norm(means, axis=1, keepdims=True)  # whose products are cosines
    np.testing.assert_allclose(
        means[0] @ means[1:].T, [0.78821, 0.20276], atol=1e-4
    )  # Transformers' with these weights
