"""Pretrained weights of other libraries: read from their files by a table of names, and written back."""

from collections.abc import Mapping, Sequence
from os import PathLike

from jaxtyping import PyTree

from jdl.transfer.pretrained.architectures import BERT, EFFICIENTNET_LITE, GPT2, GRU, LLAMA, LSTM, RESNET, RNN, vit
from jdl.transfer.pretrained.files import read, write
from jdl.transfer.pretrained.keymap import KeyMap, Layout, Rule, stack_layers, to_ours, to_theirs, unstack_layers
from jdl.transfer.pretrained.published import efficientnet_lite0, imagenet_images, minilm


def load(
    path: str | PathLike[str],
    keymap: KeyMap,
    like: Mapping[str, PyTree],
    *,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
) -> dict[str, PyTree]:
    """Load a `.safetensors`, PyTorch or `.npz` file of another library as our variables.

    Args:
        path: the file
        keymap: names of the architecture's weights
        like: as in `to_ours`
        missing: as in `to_ours`
        unexpected: as in `to_ours`

    Raises:
        FileNotFoundError: for a file that does not exist
        ValueError: for a file that cannot be read, and for weights that are not those of the model
    """
    return to_ours(read(path), keymap, like, missing=missing, unexpected=unexpected)


def save(path: str | PathLike[str], variables: Mapping[str, PyTree], keymap: KeyMap) -> None:
    """Write our variables as a `.safetensors` file that the other library reads.

    Args:
        path: the file
        variables: variables of a model, by collection
        keymap: names of the architecture's weights

    Raises:
        ValueError: for variables without a name in the other library, and for another file type
    """
    write(path, to_theirs(variables, keymap))


__all__ = [
    "BERT",
    "EFFICIENTNET_LITE",
    "GPT2",
    "GRU",
    "LLAMA",
    "LSTM",
    "RESNET",
    "RNN",
    "KeyMap",
    "Layout",
    "Rule",
    "efficientnet_lite0",
    "imagenet_images",
    "load",
    "minilm",
    "read",
    "save",
    "stack_layers",
    "to_ours",
    "to_theirs",
    "unstack_layers",
    "vit",
    "write",
]
