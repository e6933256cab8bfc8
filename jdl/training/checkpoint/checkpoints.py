"""Checkpoints: written in the background, atomically, and verified before they are believed.

A checkpoint is a folder named by its step: the arrays (Orbax), a small JSON file, and a manifest of SHA-256 sums. It
is written under a temporary name, synced, and renamed, so that a kill at any moment leaves the one before it. Rings
(`jdl.core.ring`), which may be large, are appended to beside it (`segments`).
"""

import errno
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jdl.runtime import processes
from jdl.training.checkpoint import segments, shards

_MANIFEST = "manifest.json"
_NOTES = "notes.json"
_ARRAYS = "arrays"


_one_save_at_a_time = threading.Lock()  # two saves of Orbax's in one process wait for each other's signals, in vain


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    tree: PyTree
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, directory: str | os.PathLike, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"Checkpoints(keep={keep}): keep at least 1 (2 survive a damaged one)")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        self._files: dict[str, list[segments.Segment]] = {}  # of each ring, as of the last checkpoint
        self._saves = 0

    def save(
        self,
        step: int,
        tree: PyTree,
        notes: Mapping[str, Any] | None = None,
        same_rows: Mapping[str, str] | None = None,
    ) -> None:
        """Save a pytree of arrays and JSON notes as of `step`; returns as soon as the arrays are copied.

        same_rows: parts of the tree whose rings have the rows of another part, which are written once.
        Raises what the write before this one met (a full disk, say), as `wait` does.
        """
        self.wait()
        new, same = [], {}
        for name, ring in segments.rings(tree).items():
            part, _, rest = name.partition("/")
            same[name] = f"{same_rows[part]}/{rest}" if same_rows and part in same_rows else name
            if same[name] == name:
                new.append(segments.new_rows(name, ring, self._files.get(name, [])))
        small = _flatten(_copied(segments.without_rows(tree)))
        self._saves += 1
        self._writing = self._writer.submit(self._write, step, small, dict(notes or {}), new, same)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk; raises OSError, naming the remedy, where it could not be."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Finish writing and stop the background thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit())

    def restore(self, like: PyTree, *, part: bool = False) -> Restored | None:
        """The newest intact checkpoint, in the structure and on the devices of `like`; None where there is none.

        A damaged one is passed over with a warning. part: `like` names a part of what was saved. Raises ValueError,
        listing every difference, where a checkpoint holds other arrays: it was made with another config.
        """
        self.wait()
        step = processes.by_first(self._newest_intact)
        if step is None:
            return None
        folder = self.directory / f"{step:08d}"
        small = _unflatten(_load_arrays(folder), segments.without_rows(like), folder, part)
        index = segments.read_index(folder)
        self._files = {name: [segments.Segment(*one) for one in ring["files"]] for name, ring in index.items()}
        notes = json.loads((folder / _NOTES).read_text())
        return Restored(step, segments.restore(small, like, folder), notes)

    def _newest_intact(self) -> int | None:
        for step in reversed(self.steps()):
            folder = self.directory / f"{step:08d}"
            damage = _damage(folder) or segments.damage(folder)
            if not damage:
                return step
            warnings.warn(f"checkpoint {folder} is damaged ({damage}); using the one before it", stacklevel=3)
        return None

    def _write(
        self,
        step: int,
        arrays: dict[str, Any],
        notes: dict[str, Any],
        new: list[segments.NewRows],
        same: dict[str, str],
    ) -> None:
        folder = self.directory / f"{step:08d}"
        temporary = self.directory / f"{step:08d}.writing"
        meeting = f"checkpoint/{self._saves}/{step}"
        try:
            if processes.first():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            processes.barrier(f"{meeting}/begun")
            rows = sum(array.nbytes for ring in new for array in ring.rows.values())
            _check_space(temporary, rows + sum(array.nbytes for array in arrays.values()) // processes.count())
            if processes.several():
                for path in shards.write(temporary, jax.process_index(), arrays, shards.held(arrays)):
                    segments.sync(path)
            processes.barrier(f"{meeting}/written")
            if processes.first():
                if not processes.several():
                    _save_arrays(temporary / _ARRAYS, {name: np.asarray(array) for name, array in arrays.items()})
                (temporary / _NOTES).write_text(json.dumps(notes))
                beside = self.directory / segments.FOLDER
                files = {ring.name: segments.write(beside, step, ring, self._files.get(ring.name, [])) for ring in new}
                files = {name: files[first] for name, first in same.items()}
                segments.write_index(temporary, files)
                (temporary / _MANIFEST).write_text(json.dumps(_sums(temporary)))
                for path in [*_files(temporary), temporary]:
                    segments.sync(path)
                if folder.exists():  # a run resumed from an earlier checkpoint comes by here again
                    shutil.rmtree(folder)
                temporary.rename(folder)
                segments.sync(self.directory)
                self._files = files
            processes.barrier(f"{meeting}/there")
        except Exception as error:
            if processes.first():
                shutil.rmtree(temporary, ignore_errors=True)
            full = "No space left" in str(error) or "ENOSPC" in str(error)
            if not full and not isinstance(error, OSError):
                raise
            reason = os.strerror(errno.ENOSPC) if full else error
            raise OSError(
                f"checkpoint {folder} could not be written ({reason}); free space there or choose another run "
                "directory, then resume: the checkpoints before it are intact"
            ) from error
        if not processes.first():
            return
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.directory / f"{old:08d}", ignore_errors=True)
        segments.clean(self.directory, [self.directory / f"{kept:08d}" for kept in self.steps()])


@jax.jit
def _copy_leaves(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jax.random.key_data(leaf) if _is_key(leaf) else jnp.copy(leaf) for leaf in leaves]


def _copied(tree: PyTree) -> PyTree:
    """A copy on the device, keys as numbers, which the next step's donation leaves alone; fetched in the background."""
    leaves, structure = jax.tree.flatten(tree)
    on_device = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    for i, copy in zip(on_device, _copy_leaves([leaves[i] for i in on_device]), strict=True):
        leaves[i] = copy
    return jax.tree.unflatten(structure, leaves)


def _flatten(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {segments.leaf_name(path): leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for path, leaf in flat}


def _shape_and_type(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return array.shape, np.dtype(array.dtype)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unflatten(arrays: Mapping[str, Any], like: PyTree, folder: Path, part: bool) -> PyTree:
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {segments.leaf_name(path): leaf for path, leaf in flat}
    problems = [f"missing: {name}" for name in wanted if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in wanted and not part]
    for name in wanted.keys() & arrays.keys():
        leaf, saved = wanted[name], arrays[name]
        shape, dtype = _shape_and_type(leaf)
        if shape != saved.shape or dtype != saved.dtype:
            problems.append(f"{name}: saved {saved.dtype}{list(saved.shape)}, wanted {dtype}{list(shape)}")
    if problems:
        raise ValueError(
            f"checkpoint {folder} does not fit this learner:\n  " + "\n  ".join(sorted(problems)) + "\n"
            "it was made with another config; restore it with the learner of its own run (config.json beside it)"
        )
    return jax.tree.unflatten(structure, [_placed(arrays[name], leaf) for name, leaf in wanted.items()])


def _placed(saved: Any, like: Any) -> Any:
    """A saved array as what it was: a Python number, a key or an array on the devices of `like`."""
    if isinstance(like, bool | int | float):
        return type(like)(np.asarray(saved).item())
    if _is_key(like):
        return jax.random.wrap_key_data(_placed(saved, jax.random.key_data(like)), impl=jax.random.key_impl(like))
    return processes.placed(saved, like.sharding) if isinstance(like, jax.Array) else np.asarray(saved)


def _check_space(folder: Path, needed: int) -> None:
    """Orbax on a full disk leaves stack traces of its threads; ask before."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    from orbax.checkpoint import v1  # half a second to import: only who saves pays

    # Orbax refuses arrays without elements; their shapes are all there is to them.
    empty = {name: [str(array.dtype), *array.shape] for name, array in arrays.items() if array.size == 0}
    with _one_save_at_a_time:
        v1.save(str(folder), {name: array for name, array in arrays.items() if array.size})
    (folder.parent / "empty.json").write_text(json.dumps(empty))


def _load_arrays(checkpoint: Path) -> Mapping[str, Any]:
    folder = checkpoint / _ARRAYS
    if not folder.exists():
        return shards.read(checkpoint)
    from orbax.checkpoint import v1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax has opinions on sharding; these arrays are numpy's
        arrays = {name: np.asarray(array) for name, array in v1.load(str(folder)).items()}
    empty = json.loads((folder.parent / "empty.json").read_text())
    return arrays | {name: np.zeros(shape, jnp.dtype(dtype)) for name, (dtype, *shape) in empty.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): segments.digest(path) for path in _files(folder)}


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, "" where nothing is."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read: {error}"
    found = _sums(folder)
    found.pop(_MANIFEST, None)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{', '.join(wrong)} differ from the manifest" if wrong else ""
