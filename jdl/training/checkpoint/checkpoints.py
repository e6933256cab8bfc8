"""Checkpoints, written atomically and in the background, and verified before they are used.

A checkpoint is a folder named by its step, such as `00000500`. It contains the arrays (written by Orbax, or by `shards`
with several processes), notes in JSON, and a manifest of SHA-256 sums. It is written under a temporary name, synced and
renamed, so that a kill at any moment leaves the previous checkpoint. Rings (`jdl.core.ring`), which may be large, are
appended to files beside it (`segments`).
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


_one_save_at_a_time = threading.Lock()  # two concurrent saves by Orbax in one process wait for each other forever


class Restored(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        step: the step that it was saved at.
        tree: the saved pytree, on the devices of the `like` that it was restored for.
        notes: the saved JSON values.
    """

    step: int
    tree: PyTree
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` are kept.

    With several processes, each must make the same calls.

    Attributes:
        directory: the folder of the checkpoints.
        keep: how many to keep.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3) -> None:
        """Manage the checkpoints in a folder, which need not exist yet.

        Args:
            directory: the folder.
            keep: how many to keep, at least 1; with 2 or more, a damaged checkpoint costs little.
        """
        if keep < 1:
            raise ValueError(f"Checkpoints(keep={keep}): keep at least 1 (2 survive a damaged one)")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        self._files: dict[str, list[segments.Segment]] = {}  # by ring, the files that the last checkpoint needs
        self._saves = 0

    def save(
        self,
        step: int,
        tree: PyTree,
        notes: Mapping[str, Any] | None = None,
        same_rows: Mapping[str, str] | None = None,
    ) -> None:
        """Save a pytree. Return as soon as the arrays are copied, and write in the background.

        Args:
            step: the step to save it as.
            tree: a pytree of arrays and Python numbers. JAX arrays are copied on their device, so the next step may
                reuse their memory.
            notes: values that JSON can hold.
            same_rows: `{part: other}`, top-level parts of the tree whose rings have the same rows as another part.
                These rows are written once.

        Raises:
            OSError: if the previous checkpoint could not be written, as in `wait`.
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
        """Wait until the last checkpoint is on disk.

        Raises:
            OSError: if it could not be written, for instance on a full disk; the message names the remedy.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Finish writing and stop the background thread. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, in order. Damaged ones are included."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit())

    def restore(self, like: PyTree, *, part: bool = False) -> Restored | None:
        """Restore the newest intact checkpoint, skipping damaged ones with a warning.

        Args:
            like: a pytree with the structure, shapes, types and devices to restore to; its values are not used.
            part: whether `like` may be a part of the saved pytree.

        Returns:
            The contents of the checkpoint, or None if there is no intact one.

        Raises:
            ValueError: if the checkpoint holds other arrays than `like`, because it was made with another config. The
                message lists every difference.
        """
        self.wait()
        step = processes.by_first(self._newest_intact)
        if step is None:
            return None
        folder = self._folder(step)
        small = _unflatten(_load_arrays(folder), segments.without_rows(like), folder, part)
        index = segments.read_index(folder)
        self._files = {name: [segments.Segment(*one) for one in ring["files"]] for name, ring in index.items()}
        notes = json.loads((folder / _NOTES).read_text())
        return Restored(step, segments.restore(small, like, folder), notes)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def _newest_intact(self) -> int | None:
        for step in reversed(self.steps()):
            folder = self._folder(step)
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
        """Write a checkpoint, in the background thread; with several processes, in all of them."""
        temporary = self.directory / f"{step:08d}.writing"
        meeting = f"checkpoint/{self._saves}/{step}"
        try:
            if processes.first():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            processes.barrier(f"{meeting}/begun")
            rows = sum(array.nbytes for ring in new for array in ring.rows.values())
            _check_space(temporary, rows + sum(array.nbytes for array in arrays.values()) // processes.count())
            _write_arrays(temporary, arrays)
            processes.barrier(f"{meeting}/written")
            if processes.first():
                (temporary / _NOTES).write_text(json.dumps(notes))
                files = self._write_rows(step, new, same)
                segments.write_index(temporary, files)
                self._publish(temporary, step)
                self._files = files
            processes.barrier(f"{meeting}/there")
        except Exception as error:
            if processes.first():
                shutil.rmtree(temporary, ignore_errors=True)
            reason = _disk_failure(error)
            if reason is None:
                raise
            raise OSError(
                f"checkpoint {self._folder(step)} could not be written ({reason}); free space there or choose another "
                "run directory, then resume: the checkpoints before it are intact"
            ) from error
        if processes.first():
            self._delete_old()

    def _write_rows(
        self, step: int, new: list[segments.NewRows], same: dict[str, str]
    ) -> dict[str, list[segments.Segment]]:
        """Append the new rows of every ring to files beside the checkpoints; return the files that each ring needs."""
        beside = self.directory / segments.FOLDER
        files = {ring.name: segments.write(beside, step, ring, self._files.get(ring.name, [])) for ring in new}
        return {name: files[first] for name, first in same.items()}

    def _publish(self, temporary: Path, step: int) -> None:
        """Add the manifest, sync everything, and give the checkpoint its name."""
        (temporary / _MANIFEST).write_text(json.dumps(_sums(temporary)))
        for path in [*_files(temporary), temporary]:
            segments.sync(path)
        folder = self._folder(step)
        if folder.exists():  # a run that was resumed from an earlier checkpoint saves this step again
            shutil.rmtree(folder)
        temporary.rename(folder)
        segments.sync(self.directory)

    def _delete_old(self) -> None:
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._folder(old), ignore_errors=True)
        segments.clean(self.directory, [self._folder(kept) for kept in self.steps()])


def _disk_failure(error: Exception) -> str | None:
    """Say why the disk could not be written; None if the error is of another kind, such as a bug."""
    if "No space left" in str(error) or "ENOSPC" in str(error):  # Orbax does not always raise an OSError
        return os.strerror(errno.ENOSPC)
    return str(error) if isinstance(error, OSError) else None


def _write_arrays(temporary: Path, arrays: dict[str, Any]) -> None:
    """Write the arrays, or, with several processes, the parts that this one holds."""
    if not processes.several():
        _save_arrays(temporary / _ARRAYS, {name: np.asarray(array) for name, array in arrays.items()})
        return
    for path in shards.write(temporary, jax.process_index(), arrays, shards.held(arrays)):
        segments.sync(path)


@jax.jit
def _copy_leaves(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jax.random.key_data(leaf) if _is_key(leaf) else jnp.copy(leaf) for leaf in leaves]


def _copied(tree: PyTree) -> PyTree:
    """Copy the JAX arrays on their devices, with keys as integers, so that the next step cannot reuse their memory."""
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
    return jax.tree.unflatten(structure, [_restored_leaf(arrays[name], leaf) for name, leaf in wanted.items()])


def _restored_leaf(saved: Any, like: Any) -> Any:
    """Turn a saved array into what `like` is: a Python number, a key, or an array on the same devices."""
    if isinstance(like, bool | int | float):
        return type(like)(np.asarray(saved).item())
    if _is_key(like):
        numbers = _restored_leaf(saved, jax.random.key_data(like))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like))
    return processes.placed(saved, like.sharding) if isinstance(like, jax.Array) else np.asarray(saved)


def _check_space(folder: Path, needed: int) -> None:
    """Raise OSError on a full disk, where Orbax would print the stack traces of its threads."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    from orbax.checkpoint import v1  # imported here, because it takes half a second

    # Orbax refuses arrays without elements, so only their types and shapes are written.
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
        warnings.simplefilter("ignore")  # Orbax warns of shardings, which NumPy arrays do not have
        arrays = {name: np.asarray(array) for name, array in v1.load(str(folder)).items()}
    empty = json.loads((folder.parent / "empty.json").read_text())
    return arrays | {name: np.zeros(shape, jnp.dtype(dtype)) for name, (dtype, *shape) in empty.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): segments.digest(path) for path in _files(folder)}


def _damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint; "" if it is intact."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read: {error}"
    found = _sums(folder)
    found.pop(_MANIFEST, None)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{', '.join(wrong)} differ from the manifest" if wrong else ""
