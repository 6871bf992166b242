"""What a GPU launches for a token, and what a decode step copies that it should only read."""

import re
from collections import Counter
from typing import NamedTuple

from ppo_jax.hlo import (
    ROLLOUT,
    Operation,
    Program,
    array_bytes,
    decode_loops,
    launched,
    operations,
)

# What launches nothing of its own: names, views, and the calls that are followed instead.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier add-dependency domain".split()
)
# A fusion of these alone moves an array without computing anything.
MOVES = FREE | frozenset(
    "copy transpose reshape concatenate slice dynamic-slice pad convert reverse".split()
)
# Foreign calls that name a place in memory and do no work.
PLACES = re.compile("ConcatBitcast|AllocateBuffer|PrepareAsyncCall.*|Sharding")
VIEWS = ("bitcast", "reshape", "get-tuple-element", "optimization-barrier", "opt-barrier")


class Launches(NamedTuple):
    """Of one run of a computation: loops of known length are counted as often as they run, others
    once; of a branch, the side with most kernels."""

    kernels: int = 0
    copies: int = 0
    copy_bytes: int = 0
    fusions: int = 0  # of the kernels

    def times(self, count: int) -> "Launches":
        return Launches(*(n * count for n in self))

    def plus(self, other: "Launches") -> "Launches":
        return Launches(*(a + b for a, b in zip(self, other, strict=True)))


class Moved(NamedTuple):
    """An array that a decode step was given and that it writes again, unchanged."""

    name: str  # of the operation
    type: str
    bytes: int


def decode_steps(program: Program) -> list[Launches]:
    """Launches of a token of each decode loop (`decode_loops`). What such a loop nests itself, the
    refill, is counted once a token, which is too often."""
    return [launches(program, op.bodies[0]) for op in decode_loops(program)]


def launches(program: Program, computation: str) -> Launches:
    total = Launches()
    for op in program.computations[computation]:
        total = total.plus(_launches_of(program, op))
    return total


def _launches_of(program: Program, op: Operation) -> Launches:
    if op.opcode in FREE or op.opcode.endswith("-done"):
        return Launches()
    if op.bodies:
        return max(launches(program, name) for name in op.bodies).times(program.trips(op) or 1)
    if op.opcode.removesuffix("-start") == "copy":
        return Launches(1, 1, sum(array_bytes(op.written)))
    return Launches(1, fusions=int(op.opcode == "fusion"))


def phase_launches(program: Program, scopes: tuple[str, ...]) -> dict[str, Launches]:
    """Operations of each phase as the program lists them, each once, and the copies among them.
    What a fusion holds is not listed."""
    found = {scope: Launches() for scope in scopes}
    for op in operations(program):
        scope = next((name for name in op.scope if name in found), None)
        if scope is not None and not op.bodies:
            found[scope] = found[scope].plus(_launches_of(program, op))
    return found


def custom_calls(program: Program, computation: str | None = None) -> dict[str, int]:
    """How many calls of each foreign kernel the program lists, or a computation with all that it
    launches: cuBLAS's and cuDNN's by name."""
    found: Counter[str] = Counter()
    for op in operations(program, computation):
        target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
        if op.opcode.startswith("custom-call") and target and not PLACES.fullmatch(target[1]):
            found[target[1]] += 1
    return dict(found.most_common())


def moved(program: Program, least: int) -> list[Moved]:
    """Arrays of at least so many bytes that a decode step copies, casts or joins out of those it
    was given: weights and caches, which it should only read. A TPU's moves into its memory on the
    chip are none: they are how it reads."""
    return _moved(program, _in_loops(program), least)


def moved_before(program: Program, least: int) -> list[Moved]:
    """The same of the rollout outside of its decode loops: the sampler's copy of the weights."""
    inside = set(_in_loops(program))
    outside = [name for name in launched(program, program.entry) if name not in inside]
    return _moved(program, outside, least, scope=ROLLOUT)


def _in_loops(program: Program) -> list[str]:
    bodies = [name for loop in decode_loops(program) for name in launched(program, loop.bodies[0])]
    return list(dict.fromkeys(bodies))


def _moved(program: Program, names: list[str], least: int, scope: str | None = None) -> list[Moved]:
    found = [one for name in names for one in _moves(program, name, scope)]
    return [one for one in found if one.bytes >= least]


def _moves(program: Program, computation: str, scope: str | None) -> list[Moved]:
    """Of arrays that come in by the computation's parameters."""
    by_name = {op.name: op for op in program.computations[computation]}

    def given(name: str) -> bool:
        op = by_name.get(name)
        while op is not None and op.opcode in VIEWS:
            op = by_name.get(op.operands[0])
        return op is not None and op.opcode == "parameter"

    found = []
    for op in by_name.values():
        if not _only_moves(program, op) or op.space != 0:
            continue
        if scope is not None and scope not in op.scope:
            continue
        if any(given(name) for name in op.operands):
            size = sum(array_bytes(op.written))
            found.append(Moved(op.name, op.written.split("{")[0], size))
    return found


def _only_moves(program: Program, op: Operation) -> bool:
    if op.opcode == "fusion":
        inside = [one.opcode for name in op.called for one in program.computations[name]]
        return set(inside) <= MOVES and set(inside) - FREE != set()
    return op.opcode.removesuffix("-start") in MOVES - FREE
