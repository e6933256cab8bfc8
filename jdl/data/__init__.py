"""Real data, split, checked and normalised; shuffling and augmentation on the device."""

from jdl.data import augment
from jdl.data.dataset import Dataset, Normalizer, check, split
from jdl.data.images import digits, fashion_mnist, read_idx
from jdl.data.shuffle import epoch_indices, shuffled_index
from jdl.data.tabular import breast_cancer, diabetes, iris, wine

__all__ = [
    "Dataset",
    "Normalizer",
    "augment",
    "breast_cancer",
    "check",
    "diabetes",
    "digits",
    "epoch_indices",
    "fashion_mnist",
    "iris",
    "read_idx",
    "shuffled_index",
    "split",
    "wine",
]
