"""Laws that every network obeys: shapes, published parameter counts, modes, repeatability; and its own bad input."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, quickly

import jdl
from jdl import nn
from jdl.nn.layers.capsules import CapsNetOutputs
from jdl.nn.layers.images import check_images

IDS = np.arange(20, dtype=np.int32).reshape(2, 10) % 13
SMALL = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
DIGITS = SMALL[:, :28, :28, :1]
TINY = {"width": 16, "num_layers": 2, "num_heads": 4}
LLAMA = {"positions": "rotary", "norm": "rms", "gated": True, "use_bias": False, "tie_embeddings": False}

# name: the model, an input, the shape of the output
NETWORKS = {
    "mlp": (nn.MLP((8, 5), dropout=0.5), SMALL, (2, 5)),
    "lenet": (nn.LeNet5(5), DIGITS, (2, 5)),
    "vgg": (nn.VGG(5, stages=((4,), (8, 8)), dense=(16,)), SMALL, (2, 5)),
    "resnet": (nn.ResNet(5, (1, 1), width=4, stem="cifar", drop_rate=0.5), SMALL, (2, 5)),
    "resnet, bottleneck": (nn.ResNet(5, (1, 1), True, width=32, norm="group"), SMALL, (2, 5)),
    "wide resnet": (nn.WideResNet(5, 10, 1, dropout=0.5), DIGITS, (2, 5)),
    "mobilenet": (nn.MobileNet(5, (nn.Stage(1, 4, 1, 1), nn.Stage(2, 4, 2, 2, 5)), 4, 8, dropout=0.0), SMALL, (2, 5)),
    "unet": (nn.UNet(3, (4, 8)), SMALL, (2, 32, 32, 3)),
    "vit": (nn.ViT(5, 8, **TINY, drop_rate=0.5), SMALL, (2, 5)),
    "vit, scanned": (nn.ViT(5, 8, **TINY, pooling="mean", scan=True, drop_rate=0.5), SMALL, (2, 5)),
    "bert": (nn.BERT(13, 10, **TINY), {"ids": IDS, "mask": IDS > 2}, (2, 10, 16)),
    "bert classifier": (nn.Classifier(nn.Pooled(nn.BERT(13, 10, **TINY)), 5), IDS, (2, 5)),
    "gpt": (nn.GPT(13, 10, **TINY, dropout=0.5), IDS, (2, 10, 13)),
    "gpt, scanned": (nn.GPT(13, 10, **TINY, dropout=0.5, scan=True, remat=True), IDS, (2, 10, 13)),
    "llama": (nn.GPT(13, 10, **TINY, **LLAMA, num_kv_heads=2), IDS, (2, 10, 13)),
    "encoder-decoder": (nn.EncoderDecoder(13, 10, **TINY), {"source": IDS, "target": IDS[:, :4]}, (2, 4, 13)),
    "capsules": (nn.CapsNet(5, 8, kinds=2, decoder=()), DIGITS, (2, 5)),
}


def outputs(model, variables, x, train, key):
    trains = "train" in inspect.signature(type(model).__call__).parameters
    mode = {"train": train} if trains else {}
    out = model.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"], **mode)[0]
    return out.lengths if isinstance(out, CapsNetOutputs) else out


@pytest.mark.medium
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name):
    model, x, shape = NETWORKS[name]
    variables = filled(model, jax.tree.map(jnp.asarray, x))
    params = variables["params"]

    def run(params, x, key):  # all at once: compiling is what takes the time
        def loss(params):
            changed = {**variables, "params": params}
            evaluated, trained = (outputs(model, changed, x, train, key) for train in (False, True))
            return (evaluated**3).sum(), (evaluated, trained)

        gradients, outs = jax.grad(loss, has_aux=True)(params)
        return outs, gradients

    run = quickly(run)
    (evaluated, trained), gradients = run(params, x, jax.random.key(1))
    assert evaluated.shape == shape
    assert np.isfinite(evaluated).all()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    # Evaluated, an example does not depend on its neighbor, nor on a key; trained, it does on the key.
    (among_others, other_trained), _ = run(params, jax.tree.map(lambda leaf: leaf[[0, 0]], x), jax.random.key(2))
    np.testing.assert_allclose(among_others[0], evaluated[0], atol=1e-5)
    encoder = getattr(getattr(model, "encoder", None), "encoder", model)
    random = any(getattr(encoder, field, 0) for field in ("dropout", "drop_rate"))
    assert np.allclose(other_trained[0], trained[0], atol=1e-5) != (random or "batch_stats" in variables)


def count(model, x):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("model", "side", "channels", "parameters"),
    [
        (nn.LeNet5(10), 32, 1, 61_706),
        (nn.VGG11(1000), 224, 3, 132_863_336),
        (nn.VGG16(1000), 224, 3, 138_357_544),
        (nn.ResNet18(1000), 224, 3, 11_689_512),
        (nn.ResNet34(1000), 224, 3, 21_797_672),
        (nn.ResNet50(1000), 224, 3, 25_557_032),
        (nn.ResNet101(1000), 224, 3, 44_549_160),
        (nn.WideResNet(10, 28, 10), 32, 3, 36_479_194),
        (nn.MobileNetV2(1000), 224, 3, 3_504_872),
        (nn.EfficientNetLite(1000), 224, 3, 4_652_008),
        (nn.ViT(1000), 224, 3, 86_567_656),
        (nn.CapsNet(10), 28, 1, 8_215_568),
    ],
)
def test_parameters_are_as_many_as_published(model, side, channels, parameters):
    """Of torchvision's models, the authors' WRN-28-10, EfficientNet-Lite0's weights, ViT-B/16, the capsules' paper."""
    assert count(model, jnp.zeros((1, side, side, channels))) == parameters


def test_language_models_are_as_large_as_published():
    ids = jnp.zeros((1, 8), jnp.int32)
    assert count(nn.GPT(50257), ids) == 124_439_808  # GPT-2, small
    assert count(nn.BERT(30522), ids) == 109_482_240 - 590_592  # BERT-base without its pooler
    assert count(nn.BERT(30522, width=384, num_layers=6), ids) == 22_713_216 - 147_840  # MiniLM-L6


def test_a_scanned_stack_computes_what_an_unrolled_one_does():
    unrolled, scanned = (nn.GPT(13, 10, **TINY, scan=scan) for scan in (False, True))
    variables = filled(unrolled, jnp.asarray(IDS))
    stacked = jdl.pretrained.stack_layers(variables)
    assert jax.tree.structure(stacked) == jax.tree.structure(jax.eval_shape(scanned.init, jax.random.key(0), IDS))
    ours, theirs = (quickly(model.apply)(given, IDS) for model, given in ((scanned, stacked), (unrolled, variables)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, jdl.pretrained.unstack_layers(stacked), variables)


@pytest.mark.medium
def test_a_scanned_stack_is_no_larger_a_program_when_deeper():
    def size(scan, layers):
        model = nn.GPT(13, 10, 16, layers, 4, scan=scan)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IDS))
        loss = jax.grad(lambda variables, ids: model.apply(variables, ids).sum())
        return len(jax.jit(loss).lower(variables, jnp.asarray(IDS)).as_text())

    assert size(True, 48) < 1.05 * size(True, 4)
    assert size(False, 12) > 2 * size(False, 4)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.ViT(5, 7, **TINY), SMALL, "32 by 32 pixels don't divide into patches of 7"),
        (nn.UNet(2, (4, 8, 16)), SMALL[:, :30], "30 by 32 pixels cannot be halved 2 times; pad or crop"),
        (nn.VGG11(5), SMALL[:, :16, :16], "16 by 16 pixels vanish in 5 poolings; 32 pixels are the least"),
        (nn.WideResNet(5, 12), SMALL, "depth=12 is not 6 n"),
        (nn.GPT(13, 8, **TINY), IDS, "a sequence of 10 tokens is longer than the context of 8; cut it"),
        (nn.GPT(13, 10, **TINY), IDS[0], "token ids are integers"),
        (nn.GPT(13, 10, **TINY), IDS.astype(np.float32), "token ids are integers .* these are float32"),
        (nn.GPT(13, 10, width=18, num_layers=1, num_heads=4), IDS, "4 heads share neither a width of 18"),
        (nn.BERT(13, 10, **TINY), {"input_ids": IDS}, 'token sequences are {"ids": ...}'),
        (nn.EncoderDecoder(13, 10, **TINY), IDS, 'is given {"source": ..., "target": ...}, not '),
    ],
)  # fmt: skip
def test_bad_input_is_named(model, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jax.tree.map(jnp.asarray, x))


def test_ids_outside_the_vocabulary_are_named():
    with pytest.raises(ValueError, match=r"token id 13 \(sequence 1, position 3\) is outside the vocabulary of 13"):
        nn.GPT(13).check_inputs(np.where(np.arange(20).reshape(2, 10) == 13, 13, 0))
    with pytest.raises(ValueError, match=r"token id -1 .* outside"):
        nn.Classifier(nn.Pooled(nn.BERT(13)), 2).check_inputs({"ids": np.array([[0, -1]])})


@pytest.mark.parametrize("name", ["lenet", "vgg", "resnet", "wide resnet", "mobilenet", "unet", "vit", "capsules"])
def test_images_of_another_number_of_channels_are_named(name):
    model, x, _ = NETWORKS[name]
    variables = filled(model, jnp.asarray(x))
    with pytest.raises(
        ValueError, match=rf"images have 2 channels, the weights of this .* were made for {x.shape[-1]};"
    ):
        jax.eval_shape(model.apply, variables, jnp.zeros((*x.shape[:3], 2)))


def test_images_without_channels_are_named():
    with pytest.raises(ValueError, match=r"images have shape \(2, 28, 28\): LeNet5 takes .*images\[\.\.\., None\]"):
        check_images(nn.LeNet5(5), DIGITS[..., 0], "Conv_0")
