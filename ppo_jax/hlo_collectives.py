"""What a compiled step sends between devices: which, in which phase, over which axes, how much."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ppo_jax.hlo import Operation, Program, array_bytes, is_decode_loop

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
OTHER = "other"  # between the phases


class Collective(NamedTuple):
    """One kind of them in one place; `count` and `bytes` are of an iteration, or of a token in the
    decode loop, and the least that it takes where a loop of unknown length is around it."""

    phase: str
    kind: str
    axes: tuple[str, ...]  # of the mesh, that it goes along
    decoding: bool  # in the decode loop
    count: int
    bytes: float  # of the arrays as they are whole, on one device
    at_least: bool

    @property
    def place(self) -> tuple:
        return self[:4]


def collectives(
    program: Program, mesh: Mapping[str, int], phases: tuple[str, ...]
) -> list[Collective]:
    """All that a program runs, summed by place, the largest first.

    `mesh`: sizes of its axes. Loops of known length count as often as they run; of a branch the
    side that sends most.
    """
    found = _Reader(program, mesh, phases).of(program.entry, OTHER, False)
    sums: dict[tuple, Collective] = {}
    for one in found:
        before = sums.get(one.place, one._replace(count=0, bytes=0.0, at_least=False))
        sums[one.place] = one._replace(
            count=before.count + one.count,
            bytes=before.bytes + one.bytes,
            at_least=before.at_least or one.at_least,
        )
    return sorted(sums.values(), key=lambda one: -one.bytes)


def needless(found: list[Collective]) -> list[Collective]:
    """Those of the decode loop that no sharding asks for: each device decodes rows of its own, so
    that nothing but `tensor`, which splits the matrices, has to be summed or gathered there."""
    return [one for one in found if one.decoding and set(one.axes) - {"tensor"}]


class _Reader(NamedTuple):
    program: Program
    mesh: Mapping[str, int]
    phases: tuple[str, ...]

    def of(self, computation: str, phase: str, decoding: bool) -> list[Collective]:
        found = []
        for op in self.program.computations[computation]:
            here = next((name for name in op.scope if name in self.phases), phase)
            kind = op.opcode.removesuffix("-start")
            if kind in KINDS:
                found += self._one(computation, op, here, decoding)
            elif op.called and not op.opcode.endswith(("-done", "-update")):
                found += self._inside(op, here, decoding)
        return found

    def _inside(self, op: Operation, phase: str, decoding: bool) -> list[Collective]:
        decoding = decoding or is_decode_loop(self.program, op)
        sides = [self.of(name, phase, decoding) for name in op.called]
        if op.opcode == "conditional":
            return max(sides, key=lambda side: sum(one.bytes for one in side))
        found = [one for side in sides for one in side]
        if op.opcode == "fusion" and sum(array_bytes(op.type)) < sum(one.bytes for one in found):
            # A TPU's compiler writes down a sum of which each device keeps its share like this.
            found = [_scattered(one) for one in found]
        if op.opcode != "while" or is_decode_loop(self.program, op):
            return found
        trips = self.program.trips(op)
        unknown, trips = trips is None, 1 if trips is None else trips
        return [
            one._replace(
                count=one.count * trips,
                bytes=one.bytes * trips,
                at_least=one.at_least or unknown,
            )
            for one in found
        ]

    def _one(self, computation: str, op: Operation, phase: str, decoding: bool):
        kind = op.opcode.removesuffix("-start")
        total = math.prod(self.mesh.values())
        groups = device_groups(op.attributes, total)
        axes = crossed(groups, self.mesh)
        if not axes:  # each device by itself
            return []
        given = [self.program.operation(computation, name) for name in op.operands]
        size = sum(sum(array_bytes(source.type)) for source in given if source is not None)
        if kind == "all-gather":
            size *= max(len(group) for group in groups)
        if kind == "all-reduce":  # which a TPU may round on the way
            size = sum(array_bytes(op.type))
        return [Collective(phase, kind, axes, decoding, 1, float(size), False)]


def _scattered(one: Collective) -> Collective:
    return one._replace(kind="reduce-scatter") if one.kind == "all-reduce" else one


def device_groups(attributes: str, total: int) -> list[list[int]]:
    """The groups of devices a collective is done in, by their places in the mesh; for a permutation
    its pairs. All `total` devices where none are named."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return [
            [int(n) for n in group.split(",")] for group in re.findall(r"[\d,]+\d|\d", listed[1])
        ]
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return _iota(iota[1]).tolist()
    axes = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?(\[[^{]*))? \{([^}]*)\}", attributes
    )
    return _along(axes[1], axes[2], axes[3]) if axes else [list(range(total))]


def crossed(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    shape = tuple(mesh.values())
    places = [np.stack(np.unravel_index(group, shape)) for group in groups]
    differ = np.any([(at != at[:, :1]).any(axis=1) for at in places], axis=0)
    return tuple(name for name, varies in zip(mesh, differ, strict=True) if varies)


def _iota(text: str) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)`: devices in order as [4, 2], transposed, as [2, 4]."""
    numbers = [[int(n) for n in part.split(",")] for part in re.findall(r"[\d,]+", text)]
    target, source, *order = numbers
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids.transpose(order[0]) if order else ids).reshape(target)


def _ordered(text: str, ids_N: np.ndarray) -> np.ndarray:
    """`[4,2]T(1,0)`: devices in order as [4, 2], transposed; or their numbers one by one."""
    first, *order = [[int(n) for n in part.split(",")] for part in re.findall(r"[\d,]*\d", text)]
    if not order and 0 in first:
        return np.asarray(first)
    ids = ids_N.reshape(first)
    return (ids.transpose(order[0]) if order else ids).reshape(-1)


def _along(sizes: str, order: str | None, axes: str) -> list[list[int]]:
    """`mesh['a'=2,'b'=4] {'b':(1)2}`: groups along axes of a mesh of its own, or along a part of an
    axis: (what is above it) its size."""
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    ids = np.arange(math.prod(shape.values()))
    if order:
        ids = _ordered(order, ids)
    dims: list[int] = []
    along: list[int] = []
    for name, size in shape.items():
        parts = [(int(above), int(n)) for axis, above, n in chosen if axis == name and n]
        whole = any(axis == name and not n for axis, _, n in chosen)
        reached = 1
        for above, n in sorted(parts):
            dims += [above // reached, n]
            along.append(len(dims) - 1)
            reached = above * n
        dims.append(size // reached)
        along += [len(dims) - 1] if whole else []
    group = math.prod(dims[i] for i in along)
    rest = [i for i in range(len(dims)) if i not in along]
    return ids.reshape(dims).transpose(*rest, *along).reshape(-1, group).tolist()
