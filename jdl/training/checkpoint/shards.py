"""Arrays of several processes on disk: each writes the parts that it holds, and any number of processes can read them.

Process i writes `shards-0000i.npz` with its parts, and `shards-0000i.json` with their places in the arrays.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

type Index = tuple[slice, ...]


class Part(NamedTuple):
    """A block of an array, and where it is stored.

    Attributes:
        start: its first index along each axis.
        stop: the index after its last along each axis.
        member: its name in the file.
        file: the name of the .npz file.
    """

    start: list[int]
    stop: list[int]
    member: str
    file: str


class Shards:
    """An array on disk, in parts. `shards[index]`, a slice without a step for each axis, reads what it needs.

    `np.asarray(shards)` reads all of it.

    Attributes:
        shape: the shape of the array.
        dtype: the type of the array.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype, parts: list[Part]) -> None:
        self._folder, self.shape, self.dtype, self._parts = folder, shape, dtype, parts

    def __getitem__(self, index: Index) -> np.ndarray:
        spans = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        found = np.empty([stop - start for start, stop in spans], self.dtype)
        for part in self._parts:
            cuts = [(max(a, c), min(b, d)) for (a, b), c, d in zip(spans, part.start, part.stop, strict=True)]
            if any(low >= high for low, high in cuts):
                continue
            with np.load(self._folder / part.file) as file:
                block = file[part.member].view(self.dtype)
            here = tuple(slice(low - a, high - a) for (low, high), (a, _) in zip(cuts, spans, strict=True))
            there = tuple(slice(low - c, high - c) for (low, high), c in zip(cuts, part.start, strict=True))
            found[here] = block[there]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[(slice(None),) * len(self.shape)].astype(dtype or self.dtype, copy=False)


def held(arrays: Mapping[str, Any]) -> dict[str, list[tuple[list[int], np.ndarray]]]:
    """Collect the parts of arrays that this process has to write.

    Of several copies of a part, one process writes one. NumPy arrays are written by process 0.

    Args:
        arrays: JAX or NumPy arrays by name.

    Returns:
        For each name, a list of pairs: the first index of a part along each axis, and the part.
    """
    parts: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for name, array in arrays.items():
        if isinstance(array, jax.Array):
            own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
            if array.is_fully_addressable and jax.process_index():
                own = []  # every process has the same array, and process 0 writes it
            parts[name] = [([s.start or 0 for s in shard.index], np.asarray(shard.data)) for shard in own]
        else:
            array = np.asarray(array)
            parts[name] = [([0] * array.ndim, array)] if jax.process_index() == 0 else []
    return parts


def write(folder: Path, process: int, arrays: Mapping[str, Any], parts: Mapping[str, Any]) -> list[Path]:
    """Write the parts of one process and their index.

    Args:
        folder: the folder to write to.
        process: the index of the process, for the names of the files.
        arrays: all arrays by name, for their shapes and types.
        parts: the result of `held`.

    Returns:
        The two files written.
    """
    file, index = folder / f"shards-{process:05d}.npz", folder / f"shards-{process:05d}.json"
    members, entries = {}, {}
    for name, array in arrays.items():
        listed = []
        for start, block in parts[name]:
            member = str(len(members))
            # Types that NumPy cannot store, such as bfloat16, become unsigned integers of the same width.
            members[member] = block if block.dtype.kind != "V" else block.view(f"u{block.dtype.itemsize}")
            listed.append(Part(start, [a + b for a, b in zip(start, block.shape, strict=True)], member, file.name))
        entries[name] = {"shape": list(array.shape), "dtype": str(np.dtype(array.dtype)), "parts": listed}
    with file.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **members)
    index.write_text(json.dumps(entries))
    return [file, index]


def read(folder: Path) -> dict[str, Shards]:
    """Find the arrays that several processes wrote into a folder; their values are read when they are indexed."""
    found: dict[str, Shards] = {}
    for index in sorted(folder.glob("shards-*.json")):
        for name, entry in json.loads(index.read_text()).items():
            parts = [Part(*part) for part in entry["parts"]]
            if name in found:
                found[name]._parts.extend(parts)
            else:
                found[name] = Shards(folder, tuple(entry["shape"]), jnp.dtype(entry["dtype"]), parts)
    return found
