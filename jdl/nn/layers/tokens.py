"""Inputs of networks for token sequences: ids, optionally with masks, positions, segments and types."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int


class Tokens(NamedTuple):
    """Token sequences, with optional facts about each token.

    Attributes:
        ids: ids in the vocabulary
        mask: true for tokens that exist, false for padding
        positions: position of each token
        segments: which of several sequences packed into one row a token belongs to; 0 is padding
        types: BERT's sentence A or B
    """

    ids: Int[Array | np.ndarray, "batch time"]
    mask: Bool[Array | np.ndarray, "batch time"] | None = None
    positions: Int[Array | np.ndarray, "batch time"] | None = None
    segments: Int[Array | np.ndarray, "batch time"] | None = None
    types: Int[Array | np.ndarray, "batch time"] | None = None

    @classmethod
    def of(cls, inputs: Any, context: int | None) -> "Tokens":
        """Build token sequences from an array or a mapping.

        Args:
            inputs: integer ids `[batch, time]`, a mapping with "ids" and any of the other fields, or `Tokens`
            context: largest number of tokens in a sequence; None for no limit

        Raises:
            ValueError: for a mapping without "ids" or with unknown keys, for ids that are not integers
                `[batch, time]`, and for more than `context` tokens
        """
        if isinstance(inputs, Tokens):
            tokens = inputs
        elif isinstance(inputs, Mapping):
            if "ids" not in inputs or (unknown := set(inputs) - set(cls._fields)):
                unknown = sorted(set(inputs) - set(cls._fields))
                raise ValueError(
                    f'token sequences are {{"ids": ...}} and any of {", ".join(cls._fields[1:])}; given were '
                    f"{', '.join(inputs)}{f': remove or rename {unknown}' if unknown else ''}"
                )
            tokens = cls(**inputs)
        else:
            tokens = cls(inputs)
        ids = tokens.ids
        if np.ndim(ids) != 2 or not np.issubdtype(np.dtype(ids.dtype), np.integer):
            raise ValueError(f"token ids are integers [batch, time], these are {ids.dtype} of shape {np.shape(ids)}")
        if context is not None and ids.shape[1] > context:
            raise ValueError(
                f"a sequence of {ids.shape[1]} tokens is longer than the context of {context}; cut it, or make the "
                "model with a longer context"
            )
        return tokens


def check_ids(inputs: Any, vocab_size: int) -> None:
    """Raise ValueError for ids outside the vocabulary.

    On a device such an id would be read as NaN, or as another id, without an error.

    Args:
        inputs: an array of ids, a mapping with "ids", or `Tokens`
        vocab_size: number of ids in the vocabulary
    """
    ids = np.asarray(inputs["ids"] if isinstance(inputs, Mapping) else getattr(inputs, "ids", inputs))
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        row, *place = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
        wrong = ids[(row, *place)]
        raise ValueError(
            f"token id {wrong} (sequence {row}, position {place[0] if place else 0}) is outside the vocabulary of "
            f"{vocab_size} (0 to {vocab_size - 1}); use the tokenizer that the model was made for"
        )
