"""How the arrays of a state are laid out on a mesh of devices, as PartitionSpecs, and what each device then holds."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
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
        factors: mesh axes of prime sizes that stand for the axis `fsdp` (`factored`). None if it is one axis.
    """

    mesh: Mesh | AbstractMesh
    rules: Rules = ()
    tensor: str | None = None
    fsdp: str | None = None
    sequence: str | None = None
    lanes: str = ""
    factors: tuple[str, ...] | None = None

    @property
    def rows(self) -> str | tuple[str, ...]:
        """The mesh axis that divides the examples, or its factors."""
        first = self.mesh.axis_names[0]
        return self.factors if self.factors and first in self.factors else first

    @property
    def row_count(self) -> int:
        """The number of parts that examples are divided into."""
        return self._size(self.rows)

    def check_axes(self) -> None:
        """Raise ValueError for an axis that the mesh does not have."""
        for name in ("tensor", "fsdp", "sequence"):
            axis = getattr(self, name)
            if axis is not None and axis not in self.mesh.axis_names and not (name == "fsdp" and self.factors):
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
                for an axis that the mesh does not have, and for parameters that `tensor` cannot divide.
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
            spec = self._by_rule(rules, path, leaf.shape)
            if spec is None:
                spec = self._by_family(path, leaf.shape)
            if spec is None:
                spec = PartitionSpec()
            found.append(spec if path.startswith(kept_whole) else self._shared_out(leaf.shape, spec))
        return jax.tree.unflatten(structure, found)

    def _by_rule(self, rules: Rules, path: str, shape: tuple[int, ...]) -> PartitionSpec | None:
        spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
        if spec is None:
            return None
        if self.factors:
            axes = [[self.factors if axis == self.fsdp else (axis,) for axis in _axes(entry)] for entry in spec]
            spec = PartitionSpec(*[sum(entry, ()) or None for entry in axes])
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
        found = [place for pattern, place in TENSOR_PARALLEL if re.search(pattern, path)]
        if self.tensor is None or not found:
            return None
        place = found[0]
        if place is None:
            raise ValueError(
                f"shard(tensor={self.tensor!r}): {path} cannot be divided, its layer is recurrent and would exchange "
                "its whole state at each time step; divide the state with fsdp instead, or give a rule for it, such "
                f"as ({path.rpartition('/')[2] + '$'!r}, PartitionSpec()) to keep it whole"
            )
        if len(shape) < -place or shape[place] % self.mesh.shape[self.tensor]:
            return None
        return PartitionSpec(*[None] * (len(shape) + place), self.tensor)

    def _shared_out(self, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
        """Also divide the longest axis that is free and divisible over `fsdp`; the last one if several are as long.

        If no axis is divisible, divide over the factors of `fsdp`, each along the axis whose parts are still longest.
        """
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        if self.fsdp is None or math.prod(shape) < _LEAST:
            return spec
        whole = self.factors or (self.fsdp,)
        if any(axis in _axes(entry) for entry in entries for axis in whole):
            return spec
        free = [axis for axis, entry in enumerate(entries) if entry is None]
        divisible = [axis for axis in free if shape[axis] % self._size(whole) == 0]
        if divisible:
            entries[max(divisible, key=lambda axis: (shape[axis], axis))] = self.factors or self.fsdp
            return PartitionSpec(*entries)
        length = {axis: shape[axis] for axis in free}
        for factor in self.factors or ():
            divisible = [axis for axis in free if length[axis] % self._size(factor) == 0]
            if divisible:
                axis = max(divisible, key=lambda axis: (length[axis], axis))
                entries[axis] = (*_axes(entries[axis]), factor)
                length[axis] //= self._size(factor)
        return PartitionSpec(*entries)

    def parts(self, spec: PartitionSpec) -> int:
        """Return the number of parts that a spec divides an array into."""
        return math.prod(self._size(entry) for entry in spec)

    def _size(self, entry: Any) -> int:
        """The number of devices along the mesh axes that an entry names."""
        return math.prod(self.mesh.shape[axis] for axis in _axes(entry))


def factored(partition: Partition, state: PyTree) -> Partition:
    """Replace the axis `fsdp` of a mesh by axes of prime sizes if some array has no axis that it divides.

    A kernel [1600, 6400] is on 512 devices then divided 64 times along its outputs and 8 times along its inputs. The
    order of the devices stays the same.

    Args:
        partition: the partition, not yet factored.
        state: the state to divide, as arrays or their shapes.
    """
    axis, mesh = partition.fsdp, partition.mesh
    if axis is None or axis in (partition.tensor, partition.sequence):
        return partition
    specs = partition.of_state(state)
    primes = _prime_factors(mesh.shape[axis])
    rings = _paths_of_rings(state)

    def gains(path: str, shape: tuple[int, ...], spec: PartitionSpec) -> bool:
        """Whether an array that `fsdp` leaves whole has a free axis that a part of the devices divides."""
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        if math.prod(shape) < _LEAST or path.startswith(rings) or any(axis in _axes(entry) for entry in entries):
            return False
        free = [size for size, entry in zip(shape, entries, strict=True) if entry is None]
        return any(math.gcd(size, mesh.shape[axis]) > 1 for size in free)

    if len(primes) < 2 or not any(gains(path, leaf.shape, spec) for path, leaf, spec in _with_specs(state, specs)):
        return partition
    names = tuple(f"{axis}.{index}" for index in range(len(primes)))
    shape, axes = [], []
    for name, size in mesh.shape.items():
        shape += primes if name == axis else [size]
        axes += names if name == axis else [name]
    if isinstance(mesh, Mesh):
        finer = Mesh(mesh.devices.reshape(shape), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    else:
        finer = AbstractMesh(tuple(shape), tuple(axes))
    return partition._replace(mesh=finer, factors=names)


def _prime_factors(number: int) -> list[int]:
    """The prime factors of a number, the largest first."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


class Placed(NamedTuple):
    """An array of a state and its layout on a mesh."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    parts: tuple[int, ...]  # along each axis of the array
    bytes: int  # of the whole array
    bytes_per_device: int


def layout(learner: Learner, partition: Partition) -> list[Placed]:
    """Return the layout of a learner's state on a mesh, without making an array."""
    state = jax.eval_shape(learner.init, jax.random.key(0))
    partition = factored(partition, state)
    rows = []
    for path, leaf, spec in _with_specs(state, partition.of_state(state)):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        parts = tuple(partition.parts(PartitionSpec(entry)) for entry in spec)
        parts += (1,) * (len(leaf.shape) - len(parts))
        rows.append(Placed(path, leaf.shape, str(leaf.dtype), spec, parts, size, size // math.prod(parts)))
    return rows


def _with_specs(state: PyTree, specs: PyTree) -> list[tuple[str, Any, PartitionSpec]]:
    """The path, the array and the PartitionSpec of each leaf of a state."""
    listed = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return [(_name(path), leaf, spec) for (path, leaf), spec in zip(flat, listed, strict=True)]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _paths_of_rings(tree: PyTree) -> tuple[str, ...]:
    """Return the paths of rings. Rules may divide their lanes, but `fsdp` must not divide their rows."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, Ring))[0]
    return tuple(_name(path) + "/" for path, node in flat if isinstance(node, Ring))
