"""How the arrays of a state are laid out on a mesh of devices, as PartitionSpecs, and what each device then holds."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import PyTree

from jdl.core.learner import Learner
from jdl.core.ring import Ring
from jdl.nn.layers.tensor_parallel import TENSOR_PARALLEL

type Rules = Sequence[tuple[str, PartitionSpec]]

_LEAST = 1024  # elements; dividing a smaller array costs more time than it saves memory


class Partition(NamedTuple):
    """How a mesh divides batches (over its first axis) and states.

    Attributes:
        mesh: the devices and the names of their axes.
        rules, tensor, fsdp, sequence: as in `jdl.shard`.
        lanes: a regular expression for the paths of state arrays that are divided like the examples (a trait of the
            learner).
    """

    mesh: Mesh | AbstractMesh
    rules: Rules = ()
    tensor: str | None = None
    fsdp: str | None = None
    sequence: str | None = None
    lanes: str = ""

    @property
    def rows(self) -> str:
        """The mesh axis that divides the examples."""
        return self.mesh.axis_names[0]

    def check_axes(self) -> None:
        """Raise ValueError for an axis that the mesh does not have."""
        for name in ("tensor", "fsdp", "sequence"):
            axis = getattr(self, name)
            if axis is not None and axis not in self.mesh.axis_names:
                known = ", ".join(map(str, self.mesh.axis_names))
                raise ValueError(f"shard({name}={axis!r}): the mesh has the axes {known}")

    def of_batch(self, leaf: Any) -> PartitionSpec:
        """Return the PartitionSpec of an array of examples."""
        axis = self.sequence
        divides = axis is not None and jnp.ndim(leaf) > 1 and leaf.shape[1] % self.mesh.shape[axis] == 0
        return PartitionSpec(self.rows, axis) if divides else PartitionSpec(self.rows)

    def of_state(self, tree: PyTree, part: bool = False) -> PyTree:
        """Return the PartitionSpec of each array of a state.

        Args:
            tree: a state, or a part of one, as arrays or their shapes.
            part: whether `tree` is only a part of a state, so that rules may match nothing in it.

        Raises:
            ValueError: for a rule that matches nothing in a whole state, for a rule that does not fit its array, and
                for an axis that the mesh does not have.
        """
        self.check_axes()
        flat, structure = jax.tree_util.tree_flatten_with_path(tree)
        paths = [_name(path) for path, _ in flat]
        for pattern, _ in self.rules if not part else ():
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"shard: the rule {pattern!r} matches nothing; there are {', '.join(paths)}")
        kept_whole = _paths_of_rings(tree)
        found = []
        rules = [*self.rules, *([(self.lanes, PartitionSpec(self.rows))] if self.lanes else [])]
        for path, (_, leaf) in zip(paths, flat, strict=True):
            spec = self._by_rule(rules, path, leaf.shape) or self._by_family(path, leaf.shape) or PartitionSpec()
            found.append(spec if path.startswith(kept_whole) else self._shared_out(leaf.shape, spec))
        return jax.tree.unflatten(structure, found)

    def _by_rule(self, rules: Rules, path: str, shape: tuple[int, ...]) -> PartitionSpec | None:
        spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
        if spec is None:
            return None
        unknown = [axis for entry in spec for axis in _axes(entry) if axis not in self.mesh.axis_names]
        if unknown:
            raise ValueError(f"shard: {spec} names the axis {unknown[0]!r}; the mesh has {dict(self.mesh.shape)}")
        problem = ""
        if len(spec) > len(shape):
            problem = f"has {len(spec)} entries for {path}, whose shape is {shape}: give no more"
        for axis, entry in enumerate(spec[: len(shape)]):
            if shape[axis] % self._size(entry):
                problem = problem or (
                    f"does not divide {path}, whose shape is {shape}: its axis {axis} must be a multiple of "
                    f"{self._size(entry)}, the devices along {entry!r}; choose another size, axis or mesh"
                )
        if problem and "optimizer" in path.split("/"):  # not moments: Adafactor's sums have other shapes
            return None
        if problem:
            raise ValueError(f"shard: {spec} {problem}")
        return spec

    def _by_family(self, path: str, shape: tuple[int, ...]) -> PartitionSpec | None:
        """Apply the rules of `jdl.nn`; None if no rule matches or the devices do not divide the axis."""
        place = next((place for pattern, place in TENSOR_PARALLEL if re.search(pattern, path)), None)
        if self.tensor is None or place is None or len(shape) < -place or shape[place] % self.mesh.shape[self.tensor]:
            return None
        return PartitionSpec(*[None] * (len(shape) + place), self.tensor)

    def _shared_out(self, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
        """Also divide the longest axis that is free and divisible over `fsdp`; the last one if several are as long."""
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        if self.fsdp is None or math.prod(shape) < _LEAST or any(self.fsdp in _axes(entry) for entry in entries):
            return spec
        devices = self.mesh.shape[self.fsdp]
        free = [axis for axis, entry in enumerate(entries) if entry is None and shape[axis] % devices == 0]
        if not free:
            return spec
        entries[max(free, key=lambda axis: (shape[axis], axis))] = self.fsdp
        return PartitionSpec(*entries)

    def parts(self, spec: PartitionSpec) -> int:
        """Return the number of parts that a spec divides an array into."""
        return math.prod(self._size(entry) for entry in spec)

    def _size(self, entry: Any) -> int:
        return math.prod(self.mesh.shape[axis] for axis in _axes(entry))


class Placed(NamedTuple):
    """An array of a state and its layout on a mesh."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes: int  # of the whole array
    bytes_per_device: int


def layout(learner: Learner, partition: Partition) -> list[Placed]:
    """Return the layout of a learner's state on a mesh, without making an array."""
    state = jax.eval_shape(learner.init, jax.random.key(0))
    specs = jax.tree.leaves(partition.of_state(state), is_leaf=lambda node: isinstance(node, PartitionSpec))
    rows = []
    for (path, leaf), spec in zip(jax.tree_util.tree_flatten_with_path(state)[0], specs, strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        rows.append(Placed(_name(path), leaf.shape, str(leaf.dtype), spec, size, size // partition.parts(spec)))
    return rows


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _paths_of_rings(tree: PyTree) -> tuple[str, ...]:
    """Return the paths of rings. Rules may divide their lanes, but `fsdp` must not divide their rows."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, Ring))[0]
    return tuple(_name(path) + "/" for path, node in flat if isinstance(node, Ring))
