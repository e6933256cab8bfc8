"""Rings (`jdl.core.ring`) on disk: each checkpoint adds a file with the new rows and lists the files that it needs.

A file contains the rows from `start` to `stop` of every lane. It is deleted when no remaining checkpoint lists it.
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
    """A file of rows.

    Attributes:
        file: its name in the folder of segments.
        digest: its SHA-256.
        stop: for each lane, the number after that of its last row in the file.
    """

    file: str
    digest: str
    stop: list[int]


class NewRows(NamedTuple):
    """Copies of the rows of a ring that no file has yet.

    Attributes:
        name: the path of the ring in its tree.
        capacity: the ring's capacity.
        start: `[lanes]`; the number of each lane's first new row.
        stop: `[lanes]`; the number after each lane's last new row.
        rows: for each array of the rows, by path, the new rows `[sum of stop - start, ...]`, lane after lane.
    """

    name: str
    capacity: int
    start: np.ndarray
    stop: np.ndarray
    rows: dict[str, np.ndarray]


def without_rows(tree: PyTree) -> PyTree:
    """Replace every ring of a tree by `{"written": counts}`."""
    return jax.tree.map(lambda node: {"written": node.written} if _is_ring(node) else node, tree, is_leaf=_is_ring)


def rings(tree: PyTree) -> dict[str, Ring]:
    """Return the rings of a tree by their paths."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_ring)[0]
    return {leaf_name(path): node for path, node in found if _is_ring(node)}


def new_rows(name: str, ring: Ring, files: Sequence[Segment]) -> NewRows:
    """Copy the rows of a ring that no file has yet from the device.

    Args:
        name: the path of the ring in its tree.
        ring: the ring.
        files: the ring's files so far.
    """
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
    """Write new rows to a file and sync it.

    Args:
        folder: the folder of segments.
        step: the step of the checkpoint, for the name of the file.
        new: the rows; without any, no file is written.
        files: the ring's files so far.

    Returns:
        The files that the ring needs now, without those whose rows have all been overwritten.
    """
    kept = list(files)
    if (new.stop > new.start).any():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{step:08d}-{hashlib.sha256(new.name.encode()).hexdigest()[:8]}.npz"
        with file.open("wb") as handle:
            rows = {f"rows/{name}": array for name, array in new.rows.items()}
            np.savez(handle, allow_pickle=False, **rows, **{"start": new.start, "stop": new.stop})
            handle.flush()
            os.fsync(handle.fileno())
        sync(folder)  # the name must be on disk before a checkpoint lists it
        kept = [one for one in kept if one.file != file.name]
        kept.append(Segment(file.name, digest(file), new.stop.tolist()))
    return [one for one in kept if (np.array(one.stop) > new.stop - new.capacity).any()]


def restore(tree: PyTree, like: PyTree, checkpoint: Path) -> PyTree:
    """Put the rows back into a tree of `without_rows`.

    Args:
        tree: the tree.
        like: a tree whose rings have the shapes, types and devices to restore to. A ring of capacity 0 takes all rows.
        checkpoint: the folder of the checkpoint.
    """
    index = read_index(checkpoint)
    wanted = rings(like)
    loaded: dict[str, Any] = {}

    def with_rows(path: Any, node: Any) -> Any:
        name = leaf_name(path)
        if name not in wanted:
            return node
        source = index[name]["files"]
        key = json.dumps(source)
        if key not in loaded:
            loaded[key] = _load(checkpoint.parent / FOLDER, wanted[name], [Segment(*one) for one in source])
        return Ring(loaded[key], node["written"])

    return jax.tree_util.tree_map_with_path(
        with_rows, tree, is_leaf=lambda node: isinstance(node, dict) and set(node) == {"written"}
    )


def write_index(checkpoint: Path, index: dict[str, list[Segment]]) -> None:
    """Write the list of files that a checkpoint needs, by ring, into its folder."""
    (checkpoint / _INDEX).write_text(json.dumps({name: {"files": files} for name, files in index.items()}))


def read_index(checkpoint: Path) -> dict[str, Any]:
    """Read the files that a checkpoint needs: `{ring: {"files": [[file, digest, stop], ...]}}`, {} without rings."""
    file = checkpoint / _INDEX
    return json.loads(file.read_text()) if file.is_file() else {}


def damage(checkpoint: Path) -> str:
    """Say what is wrong with the files that a checkpoint lists; "" if they are intact."""
    folder = checkpoint.parent / FOLDER
    for ring in read_index(checkpoint).values():
        for file, expected, _ in ring["files"]:
            if not (folder / file).is_file() or digest(folder / file) != expected:
                return f"{FOLDER}/{file} is missing or differs"
    return ""


def clean(directory: Path, checkpoints: Sequence[Path]) -> None:
    """Delete the files that none of the checkpoints lists.

    Args:
        directory: the folder of the checkpoints.
        checkpoints: the folders of the checkpoints that are kept.
    """
    listed = {one[0] for folder in checkpoints for ring in read_index(folder).values() for one in ring["files"]}
    for file in (directory / FOLDER).glob("*.npz"):
        if file.name not in listed:
            file.unlink()


def _load(folder: Path, like: Ring, files: Sequence[Segment]) -> PyTree:
    """Load rows [*lanes, capacity, ...]. A ring of capacity 0 takes as many rows as there are."""
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
    restored = []
    for path, old in paths:
        leaf = leaves[leaf_name(path)].reshape(*shape, capacity, *old.shape[like.written.ndim + 1 :])
        restored.append(processes.placed(leaf, old.sharding) if isinstance(old, jax.Array) else leaf)
    return jax.tree.unflatten(structure, restored)


def _lanes(leaf: Any, ndim: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the lanes [capacity, ...] of a leaf with their numbers. On a CPU they are views of the array."""
    shape = leaf.shape[:ndim]
    shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else None
    parts = [(s.index, s.data) for s in shards if s.replica_id == 0] if shards else []
    # If devices divide the rows within a lane, take the whole array instead.
    if any(data.shape[ndim:] != leaf.shape[ndim:] for _, data in parts) or not parts:
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
    """Write the path of a leaf in its tree, such as "state/params/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sync(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """Compute the SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
