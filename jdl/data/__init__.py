"""Real data sets (split, checked, normalized), readers for data larger than memory, shuffling and augmentation."""

from jdl.data import augment, mixing, tokenizers
from jdl.data.dataset import Dataset, Normalizer, check, split
from jdl.data.lengths import buckets, pack, pad
from jdl.data.records import array_records, image_folder, token_file, write_array_records, write_tokens
from jdl.data.shuffle import epoch_indices, shuffled_index
from jdl.data.sources.images import digits, fashion_mnist, read_idx
from jdl.data.sources.stamps import stamps
from jdl.data.sources.tabular import breast_cancer, diabetes, iris, wine
from jdl.data.sources.text import Reviews, bible, reviews, shakespeare, split_reviews, split_text, windows

__all__ = [
    "Dataset",
    "Normalizer",
    "Reviews",
    "array_records",
    "augment",
    "bible",
    "breast_cancer",
    "buckets",
    "check",
    "diabetes",
    "digits",
    "epoch_indices",
    "fashion_mnist",
    "image_folder",
    "iris",
    "mixing",
    "pack",
    "pad",
    "read_idx",
    "reviews",
    "shakespeare",
    "shuffled_index",
    "split",
    "split_reviews",
    "split_text",
    "stamps",
    "token_file",
    "tokenizers",
    "windows",
    "wine",
    "write_array_records",
    "write_tokens",
]
