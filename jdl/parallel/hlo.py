"""Read from HLO text the work of a program on each device: matrix products, memory traffic, collectives.

The text is that of the program after it was split over the devices, and before the passes for this machine (whose
compiler computes bfloat16 in float32). What the compilers of accelerators are known to do next counts as done: an
all-reduce of which each device reads only its part becomes a reduce-scatter, which sends half as much, and a sum of
all-reduces becomes an all-reduce of the sum. A loop's body counts as often as it runs (once if that cannot be read
from the text), and all branches of a conditional count.
"""

import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_MOVES = ("bitcast", "copy", "convert", "reshape", "transpose")
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """One instruction of an HLO computation."""

    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes
    root: bool


class Collective(NamedTuple):
    """All collectives of one kind over the same groups of devices."""

    kind: str
    group: tuple[int, ...]  # the devices of one of the groups
    times: int  # per step
    bytes: float  # sent by each device per step, with a ring algorithm


class Program(NamedTuple):
    """The work of a step on one device."""

    flops: int  # of matrix products and convolutions; a multiply-add counts as two
    traffic: int  # bytes of their operands and results; operations between them are assumed to be fused
    collectives: list[Collective]
    unknown_loops: int = 0  # loops whose length the program does not say: each is counted once


def compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Program]:
    """Compile a program for this machine; return it and what it does on each device of any machine."""
    passes = "spmd-partitioning", "call-inliner"  # the first exists for several devices, the second for one
    with tempfile.TemporaryDirectory(prefix="jdl-") as folder:
        program = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_pass_re": "|".join(passes)})
        found = [file for name in passes for file in sorted(Path(folder).glob(f"*.after_{name}.*"))]
        text = found[0].read_text() if found else program.as_text()
    assert text is not None
    return program, read(text)


def read(text: str) -> Program:
    """Read a `Program` from the HLO text of a module."""
    computations, entry = _computations(text)
    times = _times(computations, entry)
    flops, traffic, found = 0, 0.0, Counter[tuple[str, tuple[int, ...]]]()
    sent: defaultdict[tuple[str, tuple[int, ...]], float] = defaultdict(float)
    for name, body in computations.items():
        types = {line.name: line.type for line in body}
        merged = mergeable(body)
        for line in body:
            if line.name in merged:
                continue
            if line.opcode in ("dot", "convolution"):
                operands = [_type_of(operand, types) for operand in _operands(line)[:2]]
                flops += times[name] * _flops(line, *map(_shape, operands))
                traffic += times[name] * sum(map(size, [line.type, *operands]))
            if (opcode := line.opcode.removesuffix("-start")) in _KINDS:
                group = _group(line.rest)
                for kind, result in split_by_use(line, opcode, len(group), body, computations):
                    found[kind, group] += times[name]
                    sent[kind, group] += times[name] * _sent(kind, result, len(group))
    collectives = [Collective(kind, group, found[kind, group], sent[kind, group]) for kind, group in sorted(found)]
    loops = [line for name, body in computations.items() if times[name] for line in body if line.opcode == "while"]
    unknown = sum(_trips(line, computations) is None for line in loops)
    return Program(int(flops), int(traffic), collectives, unknown)


def size(type_: str) -> float:
    """Return the bytes of an HLO type, or of all types in a tuple."""
    total = 0.0
    for kind, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", type_):
        width = _BYTES.get(kind) or int((re.findall(r"\d+", kind) or ["32"])[0]) / 8
        total += width * math.prod(_numbers(shape))
    return total


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _shape(type_: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", type_)
    return _numbers(found[1]) if found else []


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    found: dict[str, list[Instruction]] = {}
    entry, body = "", []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
            body = found.setdefault(name, [])
        elif (match := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)) is not None:
            type_, rest = _split_type(line[match.end() :])
            opcode, _, operands = rest.partition("(")
            body.append(Instruction(match[2], type_, opcode.strip(), operands, match[1] is not None))
    return found, entry


def _split_type(text: str, end: str = " ") -> tuple[str, str]:
    """Split a text into the type at its beginning, which may be a tuple of types, and the rest."""
    if not text.startswith("("):
        found = re.match(r"\w+(\[[\d,<=]*\](\{[^}]*\})?)?", text)
        type_ = found[0] if found else text.partition(end)[0]
        return type_, text[len(type_) :].strip()
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: index + 1], text[index + 1 :].strip()
    return text, ""


def _called(line: Instruction) -> Iterator[str]:
    """Yield the computations that an instruction runs.

    The computations that a reduction applies to pairs of numbers are left out.
    """
    names = ("calls", "body") + (("to_apply",) if line.opcode == "call" else ())
    for name in names:
        yield from re.findall(rf"\b{name}=%?([\w.\-]+)", line.rest)
    yield from re.findall(r"_computation=%?([\w.\-]+)", line.rest)
    for branches in re.findall(r"branch_computations=\{([^}]*)\}", line.rest):
        yield from (branch.strip().lstrip("%") for branch in branches.split(","))


def _times(computations: dict[str, list[Instruction]], entry: str) -> Counter[str]:
    """Count how often each computation runs."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name]:
            trips = (_trips(line, computations) or 1) if line.opcode == "while" else 1
            for inner in _called(line):
                if inner in computations:
                    visit(inner, count * trips)

    visit(entry, 1)
    return times


def _trips(line: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Return how often a loop runs, None if the program does not say.

    This is the number that XLA has noted, or else the constant that the loop's counter, which starts at 0, is
    compared with.
    """
    if (known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line.rest)) is not None:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", line.rest)
    body = computations.get(condition[1], []) if condition else []
    compared = next((one for one in body if one.root and "direction=LT" in one.rest), None)
    limits = [
        int(one.rest.partition(")")[0])
        for one in body
        if compared and one.name in _names(compared)[1:] and one.opcode == "constant" and one.type[:2] in ("s3", "s6")
    ]
    return limits[0] if limits else None


def _operands(line: Instruction) -> list[str]:
    """Return the names of the operands; an element of a tuple is written as "name#1"."""
    return re.findall(r"%([\w.\-#]+)", line.rest.partition(")")[0])


def _names(line: Instruction) -> list[str]:
    return [operand.partition("#")[0] for operand in _operands(line)]


def _type_of(operand: str, types: dict[str, str]) -> str:
    name, _, place = operand.partition("#")
    type_ = types.get(name, "")
    for index in place.split("#") if place else ():
        inside, parts = type_.removeprefix("(").removesuffix(")"), []
        while inside:
            part, inside = _split_type(re.sub(r"^(, |/\*index=\d+\*/)*", "", inside), end=",")
            parts.append(part)
        type_ = parts[int(index)]
    return type_


def mergeable(body: list[Instruction]) -> set[str]:
    """Return the names of the all-reduces that can be merged into another one of the same computation.

    If the results of two all-reduces of equal size over the same devices are used for nothing but their sum, one
    all-reduce of the sum replaces both. The first of the two is returned here, and `read` leaves it out. (This drops
    whole collectives; `split_by_use` says as which kind a remaining one counts.)
    """
    summed: dict[str, Instruction] = {}  # the all-reduce kept, by the name of what moves or adds its result
    found = set()
    uses = Counter(name for line in body for name in _names(line))
    for line in body:
        of = [summed[name] for name in _names(line) if name in summed]
        if line.opcode == "all-reduce" and uses[line.name] == 1:
            summed[line.name] = line
        elif line.opcode in _MOVES and uses[line.name] == 1 and of:
            summed[line.name] = of[0]
        elif line.opcode == "add" and len(of) == 2 and len({(size(one.type), _group(one.rest)) for one in of}) == 1:
            found.add(of[0].name)
            if uses[line.name] == 1:
                summed[line.name] = of[1]
    return found


def _flops(line: Instruction, left: list[int], right: list[int]) -> int:
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
        terms = math.prod(left[axis] for axis in _numbers(contracted[1] if contracted else ""))
    else:
        labels = re.search(r"dim_labels=\w+_(\w+)->", line.rest)
        features = right[labels[1].index("o")] if labels else 1
        terms = math.prod(right) // max(features, 1)
    return 2 * terms * math.prod(_shape(line.type))


def split_by_use(
    line: Instruction, kind: str, devices: int, body: list[Instruction], computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, float]]:
    """Yield the kinds that a collective counts as, each with the bytes of its results on one device.

    An all-reduce may have several results. Those of which each device reads only its slice (`read_in_slices`) count
    together as one reduce-scatter, the others together as one all-reduce. Any other collective counts as what it is.
    """
    if kind != "all-reduce":
        yield kind, size(line.type)
        return
    parts = [one for one in body if one.opcode == "get-tuple-element" and line.name in _names(one)]
    scattered = [one for one in parts or [line] if read_in_slices(one.name, devices, body, computations)]
    whole = size(line.type) - sum(size(one.type) for one in scattered)
    if scattered:
        yield "reduce-scatter", sum(size(one.type) for one in scattered) / devices
    if whole:
        yield kind, whole


def read_in_slices(
    name: str, devices: int, body: list[Instruction], computations: dict[str, list[Instruction]]
) -> bool:
    """Whether each device reads only a slice of the array `name`, at most a share of 1 / `devices`.

    The array is followed through instructions that only move it, and into fusions. `split_by_use` asks this about each
    result of an all-reduce, to decide whether it counts as a reduce-scatter.
    """
    types = {line.name: line.type for line in body}
    users = [line for line in body if name in _names(line)]
    for user in users:
        if user.opcode == "dynamic-slice":
            if size(user.type) * devices > size(types[name]):
                return False
        elif user.opcode in _MOVES and not user.root:
            if not read_in_slices(user.name, devices, body, computations):
                return False
        elif user.opcode == "fusion":
            inside = next((computations[one] for one in _called(user) if one in computations), [])
            number = str(_names(user).index(name))
            given = [one.name for one in inside if one.opcode == "parameter" and one.rest.partition(")")[0] == number]
            if not given or not read_in_slices(given[0], devices, inside, computations):
                return False
        else:
            return False
    return bool(users)


def _sent(kind: str, result: float, devices: int) -> float:
    """Return the bytes that each device of a group sends, from the bytes of the result on each device."""
    if devices < 2:
        return 0.0
    share = (devices - 1) / devices
    return (
        result
        * {
            "all-reduce": 2 * share,
            "all-gather": share,
            "reduce-scatter": share * devices,
            "all-to-all": share,
            "collective-permute": 1.0,
        }[kind]
    )


def _group(rest: str) -> tuple[int, ...]:
    """Return the devices of a collective's first group, from any of XLA's notations for groups."""
    if (pairs := re.search(r"source_target_pairs=\{([\d,{}]*)\}", rest)) is not None:
        moved = [pair for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1]) if pair[0] != pair[1]]
        return tuple(int(number) for number in moved[0]) if moved else ()
    if (listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest)) is not None:
        return tuple(_numbers(listed[1]))
    if (iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)) is not None:
        groups, dims = _numbers(iota[1]), _numbers(iota[2])
        order = _numbers(iota[3]) if iota[3] else list(range(len(dims)))
        return tuple(_transposed(dims, order)[: groups[-1]])
    if (mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)) is not None:
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        over = set(re.findall(r"'([^']+)'", mesh[2]))
        devices = [0]
        stride = math.prod(int(count) for count in axes.values())
        for axis, count in axes.items():
            stride //= int(count)
            if axis in over:
                devices = [device + stride * place for device in devices for place in range(int(count))]
        return tuple(devices)
    return ()


def _transposed(dims: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return the numbers 0, 1, 2, ... in the shape `dims`, with the axes permuted by `order`, flattened."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    numbers = [0]
    for axis in order:
        numbers = [number + strides[axis] * place for number in numbers for place in range(dims[axis])]
    return numbers
