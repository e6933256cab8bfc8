"""Rings on disk: each checkpoint appends a file of the rows that are new, and names those that it needs.

A file holds, for every lane, the rows from `start` to `stop`. It goes when no checkpoint that is kept names it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jdl.core.ring import Ring
from jdl.runtime import processes

FOLDER = "segments"
_INDEX = "segments.json"


class Segment(NamedTuple):
    """A file of rows."""

    file: str
    digest: str  # SHA-256
    stop: list[int]  # by lane


class NewRows(NamedTuple):
    """The rows of a ring that no file has yet, copied."""

    name: str
    capacity: int
    start: np.ndarray  # [lanes]
    stop: np.ndarray
    rows: dict[str, np.ndarray]  # by leaf, lane after lane


def without_rows(tree: PyTree) -> PyTree:
    """The tree with the counts alone of its rings."""
    return jax.tree.map(lambda node: {"written": node.written} if _is_ring(node) else node, tree, is_leaf=_is_ring)


def rings(tree: PyTree) -> dict[str, Ring]:
    """The rings of a tree by their paths."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_ring)[0]
    return {leaf_name(path): node for path, node in found if _is_ring(node)}


def new_rows(name: str, ring: Ring, files: Sequence[Segment]) -> NewRows:
    """What a ring holds and no file does, copied from the device."""
    ring = processes.gathered(ring)
    written = np.ravel(np.asarray(ring.written)).astype(np.int64)
    saved = np.array(files[-1].stop if files else np.zeros(len(written)), np.int64)
    start = np.minimum(np.maximum(saved, written - ring.capacity), written)
    leaves = jax.tree_util.tree_flatten_with_path(ring.rows)[0]
    rows = {}
    for path, leaf in leaves:
        lanes = dict(_lanes(leaf, ring.written.ndim))
        rows[leaf_name(path)] = np.concatenate([
            lanes[lane][np.arange(start[lane], written[lane]) % max(ring.capacity, 1)] for lane in range(len(written))
        ])  # fmt: skip
    return NewRows(name, ring.capacity, start, written, rows)


def write(folder: Path, step: int, new: NewRows, files: Sequence[Segment]) -> list[Segment]:
    """Write new rows, synced; returns the files that the ring needs now."""
    kept = list(files)
    if (new.stop > new.start).any():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{step:08d}-{hashlib.sha256(new.name.encode()).hexdigest()[:8]}.npz"
        with file.open("wb") as handle:
            rows = {f"rows/{name}": array for name, array in new.rows.items()}
            np.savez(handle, allow_pickle=False, **rows, **{"start": new.start, "stop": new.stop})
            handle.flush()
            os.fsync(handle.fileno())
        sync(folder)  # the name is safe before a checkpoint counts on it
        kept = [one for one in kept if one.file != file.name]
        kept.append(Segment(file.name, digest(file), new.stop.tolist()))
    return [one for one in kept if (np.array(one.stop) > new.stop - new.capacity).any()]


def restore(tree: PyTree, like: PyTree, checkpoint: Path) -> PyTree:
    """A tree of `without_rows` with its rings whole again, on the devices of those in `like`."""
    index = read_index(checkpoint)
    wanted = rings(like)
    loaded: dict[str, Any] = {}

    def whole(path: Any, node: Any) -> Any:
        name = leaf_name(path)
        if name not in wanted:
            return node
        source = index[name]["files"]
        key = json.dumps(source)
        if key not in loaded:
            loaded[key] = _load(checkpoint.parent / FOLDER, wanted[name], [Segment(*one) for one in source])
        return Ring(loaded[key], node["written"])

    return jax.tree_util.tree_map_with_path(
        whole, tree, is_leaf=lambda node: isinstance(node, dict) and set(node) == {"written"}
    )


def write_index(checkpoint: Path, index: dict[str, list[Segment]]) -> None:
    """Name the files that a checkpoint needs."""
    (checkpoint / _INDEX).write_text(json.dumps({name: {"files": files} for name, files in index.items()}))


def read_index(checkpoint: Path) -> dict[str, Any]:
    """The files that a checkpoint needs, by ring."""
    file = checkpoint / _INDEX
    return json.loads(file.read_text()) if file.is_file() else {}


def damage(checkpoint: Path) -> str:
    """What is wrong with the files that a checkpoint names, "" where nothing is."""
    folder = checkpoint.parent / FOLDER
    for ring in read_index(checkpoint).values():
        for file, expected, _ in ring["files"]:
            if not (folder / file).is_file() or digest(folder / file) != expected:
                return f"{FOLDER}/{file} is missing or differs"
    return ""


def clean(directory: Path, checkpoints: Sequence[Path]) -> None:
    """Delete the files that none of the checkpoints names."""
    named = {one[0] for folder in checkpoints for ring in read_index(folder).values() for one in ring["files"]}
    for file in (directory / FOLDER).glob("*.npz"):
        if file.name not in named:
            file.unlink()


def _load(folder: Path, like: Ring, files: Sequence[Segment]) -> PyTree:
    """Rows [*lanes, capacity, ...]; a ring without capacity takes as many as there are."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like.rows)
    lanes = max(like.written.size, 1)
    capacity = like.capacity or max((max(one.stop) for one in files), default=0)
    shape = like.written.shape
    leaves = {
        leaf_name(path): np.zeros((lanes, capacity, *leaf.shape[like.written.ndim + 1 :]), leaf.dtype)
        for path, leaf in paths
    }
    for segment in files:
        with np.load(folder / segment.file) as held:
            start, stop = held["start"], held["stop"]
            bounds = np.concatenate([[0], np.cumsum(stop - start)])
            for name, leaf in leaves.items():
                rows = held[f"rows/{name}"]
                for lane in range(lanes):
                    places = np.arange(start[lane], stop[lane]) % max(capacity, 1)
                    leaf[lane, places] = rows[bounds[lane] : bounds[lane + 1]]
    placed = []
    for path, old in paths:
        leaf = leaves[leaf_name(path)].reshape(*shape, capacity, *old.shape[like.written.ndim + 1 :])
        placed.append(processes.placed(leaf, old.sharding) if isinstance(old, jax.Array) else leaf)
    return jax.tree.unflatten(structure, placed)


def _lanes(leaf: Any, ndim: int) -> Iterator[tuple[int, np.ndarray]]:
    """The lanes [capacity, ...] of a leaf by number; those on a CPU are looked at in place."""
    shape = leaf.shape[:ndim]
    shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else None
    parts = [(s.index, s.data) for s in shards if s.replica_id == 0] if shards else []
    if any(data.shape[ndim:] != leaf.shape[ndim:] for _, data in parts) or not parts:  # within its lanes: gathered
        parts = [((), leaf)]
    for index, data in parts:
        local = np.asarray(data)
        origin = [(part.start or 0) for part in index[:ndim]] if index else [0] * ndim
        for lane in np.ndindex(local.shape[:ndim]):
            number = np.ravel_multi_index([o + i for o, i in zip(origin, lane, strict=True)], shape) if ndim else 0
            yield int(number), local[lane]


def _is_ring(node: Any) -> bool:
    return isinstance(node, Ring)


def leaf_name(path: Any) -> str:
    """A leaf's path in its tree, parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
