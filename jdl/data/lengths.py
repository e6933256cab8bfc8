"""Arrays of few shapes for sequences of unequal lengths: buckets of similar lengths, padding, and packing into rows."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32, PRNGKeyArray
from numpy.typing import ArrayLike

from jdl.data.shuffle import epoch_indices


class Bucket(NamedTuple):
    """The examples of one batch, and the length to pad them to.

    Where `mask` is False, the example is a repetition that only fills the batch and must not count.
    """

    indices: Int32[np.ndarray, "batch"]
    mask: Bool[np.ndarray, "batch"]
    length: int


class Padded(NamedTuple):
    """Sequences, one per row; `mask` is True at their tokens."""

    ids: Int32[np.ndarray, "sequences length"]
    mask: Bool[np.ndarray, "sequences length"]


class Packed(NamedTuple):
    """Sequences, several per row. Attention stays inside a sequence if it compares `segments`.

    Attributes:
        ids: token ids.
        segments: 1, 2, ... along a row, one number per sequence; 0 at padding.
        positions: 0, 1, ... along each sequence.
        members: for each row, the indices of its sequences, so that segment s of row r is sequence
            `members[r][s - 1]`.
    """

    ids: Int32[np.ndarray, "rows length"]
    segments: Int32[np.ndarray, "rows length"]
    positions: Int32[np.ndarray, "rows length"]
    members: list[list[int]]

    @property
    def efficiency(self) -> float:
        """The fraction of token positions that are not padding."""
        return float(np.mean(self.segments > 0))


def buckets(
    lengths: ArrayLike,
    boundaries: Sequence[int],
    *,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    key: PRNGKeyArray | int = 0,
    epoch: int = 0,
) -> list[Bucket]:
    """Return the batches of one epoch, each with examples of similar lengths.

    There are at most as many batch shapes as boundaries, the same in every epoch. Each example appears once; the last
    batch of a bucket is filled up with repetitions and masked. The order of examples and of batches is drawn anew in
    each epoch and depends only on the key and the epoch.

    Args:
        lengths: one integer per example, `[examples]`.
        boundaries: increasing lengths; each example is padded to the first boundary that is not shorter.
        batch_size: examples per batch. Give either this or `tokens_per_batch`.
        tokens_per_batch: tokens per batch, padding included; each batch takes as many examples as fit.
        key: a JAX key or an integer seed.
        epoch: the number of the epoch.

    Raises:
        ValueError: for an example longer than the last boundary, for boundaries that do not increase, and if not
            exactly one of `batch_size` and `tokens_per_batch` is given.

    Examples:
        >>> for bucket in buckets([3, 9, 4, 2], boundaries=[4, 16], batch_size=2):
        ...     print(bucket.length, *bucket.indices, *bucket.mask)
        4 3 3 True False
        4 2 0 True True
        16 1 1 True False
    """
    measured, ends = np.asarray(lengths), np.asarray(boundaries)
    if ends.ndim != 1 or not len(ends) or ends[0] < 1 or (np.diff(ends) < 1).any():
        raise ValueError(f"boundaries is {list(boundaries)}: give lengths of 1 or more, each larger than the last.")
    if measured.ndim != 1 or not len(measured) or measured.dtype.kind not in "iu":
        raise ValueError(
            f"lengths has shape {measured.shape} and dtype {measured.dtype}: give an integer for each example."
        )
    if (wrong := (measured < 0) | (measured > ends[-1])).any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"lengths[{first}] is {measured[first]}, outside [0, {ends[-1]}]: raise the last boundary, or truncate or "
            f"leave out the {np.count_nonzero(wrong)} such example(s)."
        )
    sizes = _batch_sizes(ends, batch_size, tokens_per_batch)
    key = jax.random.key(key) if isinstance(key, int) else key
    # One shuffle of all examples, dealt out to the buckets, puts each bucket in random order, too.
    order = np.asarray(epoch_indices(jax.random.fold_in(key, 0), epoch, len(measured)))
    bucket_of = np.searchsorted(ends, measured[order])
    batches = [
        _fill(members[start : start + size], size, int(end))
        for number, (end, size) in enumerate(zip(ends, sizes, strict=True))
        for members in [order[bucket_of == number]]
        for start in range(0, len(members), size)
    ]
    return [batches[place] for place in np.asarray(epoch_indices(jax.random.fold_in(key, 1), epoch, len(batches)))]


def _batch_sizes(ends: np.ndarray, batch_size: int | None, tokens_per_batch: int | None) -> list[int]:
    if (batch_size is None) == (tokens_per_batch is None):
        raise ValueError(f"batch_size is {batch_size} and tokens_per_batch is {tokens_per_batch}: give one of the two.")
    if batch_size is not None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be 1 or more.")
        return [batch_size] * len(ends)
    assert tokens_per_batch is not None
    if tokens_per_batch < ends[-1]:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}, less than one example of {ends[-1]}: raise it.")
    return [tokens_per_batch // int(end) for end in ends]


def _fill(members: np.ndarray, size: int, length: int) -> Bucket:
    spare = size - len(members)
    return Bucket(np.pad(members, (0, spare), mode="edge"), np.arange(size) < len(members), length)


def pad(sequences: Sequence[ArrayLike], length: int, *, padding_id: int = 0, truncate: bool = False) -> Padded:
    """Put sequences of token ids into rows of equal length, one per row.

    Args:
        sequences: token ids of each sequence.
        length: tokens per row.
        padding_id: the id that fills the rest of a row.
        truncate: whether to cut off the end of sequences longer than a row.

    Raises:
        ValueError: for a sequence longer than a row, unless `truncate` is set.
    """
    rows = _checked(sequences, length, truncate)
    mask = np.arange(length) < np.array([len(row) for row in rows], int)[:, None]
    ids = np.full(mask.shape, padding_id, np.int32)
    if rows:
        ids[mask] = np.concatenate(rows)
    return Padded(ids, mask)


def pack(sequences: Sequence[ArrayLike], length: int, *, padding_id: int = 0, truncate: bool = False) -> Packed:
    """Put sequences of token ids into rows of equal length, as many per row as fit.

    The longest sequences are placed first, each in the first row that has room. No token is lost, except those that
    `truncate` cuts off. Full rows come first, so shuffle the rows.

    Args:
        sequences: token ids of each sequence.
        length: tokens per row.
        padding_id: the id that fills the rest of a row.
        truncate: whether to cut off the end of sequences longer than a row.

    Raises:
        ValueError: for an empty sequence, and for a sequence longer than a row, unless `truncate` is set.

    Source: first-fit decreasing, which takes at most 11/9 of the fewest rows possible, plus one: Johnson,
    "Near-optimal bin packing algorithms", MIT 1973; for language models: Krell et al. 2021, arXiv 2107.02027.

    Examples:
        >>> packed = pack([[5, 6, 7], [8], [1, 2, 3, 4], [9, 9]], length=5)
        >>> packed.ids
        array([[1, 2, 3, 4, 8],
               [5, 6, 7, 9, 9]], dtype=int32)
        >>> packed.segments
        array([[1, 1, 1, 1, 2],
               [1, 1, 1, 2, 2]], dtype=int32)
    """
    rows = _checked(sequences, length, truncate)
    sizes = np.array([len(row) for row in rows], int)
    if not sizes.all():
        raise ValueError(f"sequences[{int(np.argmin(sizes))}] is empty, and would have no segment: leave it out.")
    members = _first_fit_decreasing(sizes, length)
    ids = np.full((len(members), length), padding_id, np.int32)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    for row, inside in enumerate(members):
        end = 0
        for segment, number in enumerate(inside, start=1):
            place = slice(end, end := end + sizes[number])
            ids[row, place] = rows[number]
            segments[row, place] = segment
            positions[row, place] = np.arange(sizes[number])
    return Packed(ids, segments, positions, members)


def _first_fit_decreasing(sizes: np.ndarray, length: int) -> list[list[int]]:
    members: list[list[int]] = []
    room = np.full(len(sizes), length)
    for number in np.argsort(-sizes, kind="stable"):
        # Rows that are still empty have room for any sequence, so that a row is always found.
        row = int(np.argmax(room >= sizes[number]))
        if row == len(members):
            members.append([])
        members[row].append(int(number))
        room[row] -= sizes[number]
    return members


def _checked(sequences: Sequence[ArrayLike], length: int, truncate: bool) -> list[np.ndarray]:
    if length < 1:
        raise ValueError(f"length is {length}: it must be 1 or more.")
    rows = []
    for number, sequence in enumerate(sequences):
        row = np.asarray(sequence)
        # NumPy makes an empty list a floating array.
        if row.ndim != 1 or (len(row) and row.dtype.kind not in "iu"):
            raise ValueError(
                f"sequences[{number}] has shape {row.shape} and dtype {row.dtype}: give each as token ids, integers."
            )
        if len(row) > length and not truncate:
            raise ValueError(
                f"sequences[{number}] has {len(row)} tokens, more than length {length}: raise it, or pass "
                f"truncate=True to lose the rest."
            )
        rows.append(row[:length].astype(np.int32))
    return rows
