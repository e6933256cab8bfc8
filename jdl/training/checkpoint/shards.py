"""Arrays over several processes, on disk: each writes the parts that it holds, and any number of them reads these."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

type Index = tuple[slice, ...]


class Part(NamedTuple):
    """A block of an array."""

    start: list[int]
    stop: list[int]
    member: str  # of the file
    file: str


class Shards:
    """An array in parts, read when it is asked for: `shards[index]` for what slices without steps name."""

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
    """The parts of arrays by name that this process is to write, each with where it begins.

    Of an array's copies one is written; what is no JAX array, by process 0.
    """
    parts: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for name, array in arrays.items():
        if isinstance(array, jax.Array):
            own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
            if array.is_fully_addressable and jax.process_index():
                own = []  # each process has the same
            parts[name] = [([s.start or 0 for s in shard.index], np.asarray(shard.data)) for shard in own]
        else:
            array = np.asarray(array)
            parts[name] = [([0] * array.ndim, array)] if jax.process_index() == 0 else []
    return parts


def write(folder: Path, process: int, arrays: Mapping[str, Any], parts: Mapping[str, Any]) -> list[Path]:
    """Write a process's parts and their index; returns the files."""
    file, index = folder / f"shards-{process:05d}.npz", folder / f"shards-{process:05d}.json"
    members, entries = {}, {}
    for name, array in arrays.items():
        listed = []
        for start, block in parts[name]:
            member = str(len(members))
            # A type that NumPy has no name for (bfloat16) as bytes of that width.
            members[member] = block if block.dtype.kind != "V" else block.view(f"u{block.dtype.itemsize}")
            listed.append(Part(start, [a + b for a, b in zip(start, block.shape, strict=True)], member, file.name))
        entries[name] = {"shape": list(array.shape), "dtype": str(np.dtype(array.dtype)), "parts": listed}
    with file.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **members)
    index.write_text(json.dumps(entries))
    return [file, index]


def read(folder: Path) -> dict[str, Shards]:
    """The arrays that several processes wrote, by name."""
    found: dict[str, Shards] = {}
    for index in sorted(folder.glob("shards-*.json")):
        for name, entry in json.loads(index.read_text()).items():
            parts = [Part(*part) for part in entry["parts"]]
            if name in found:
                found[name]._parts.extend(parts)
            else:
                found[name] = Shards(folder, tuple(entry["shape"]), jnp.dtype(entry["dtype"]), parts)
    return found
