"""Kernels and copies of a compiled program, read off its optimised HLO text."""

import math
import re
from typing import NamedTuple

# What launches nothing of its own: names, views, and the calls that are followed instead.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier add-dependency domain".split()
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    **dict.fromkeys(("pred", "s4", "u4", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_NAMES = re.compile(r"[\w.\-]+")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Operation(NamedTuple):
    name: str
    opcode: str
    type: str
    rest: str  # from its operands on

    @property
    def scope(self) -> str:
        """The `jax.named_scope`s it was traced under, with the loops between them."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def trips(self) -> int | None:
        """Of a loop, where they are known when it is compiled."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def bodies(self) -> list[str]:
        """The computations that it runs: of a loop its body, of a branch its sides, of a call what
        is called."""
        sides = re.search(r"\bbranch_computations=\{([^}]*)\}", self.rest)
        if sides:
            return _NAMES.findall(sides[1])
        keys = {
            "while": "body",
            "call": "to_apply",
            "conditional": "(?:true|false)_computation",
        }
        if self.opcode not in keys:
            return []
        return re.findall(rf"\b{keys[self.opcode]}=%?([\w.\-]+)", self.rest)


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


def parse(text: str) -> tuple[dict[str, list[Operation]], str]:
    """(operations of each computation, the entry's name)."""
    computations: dict[str, list[Operation]] = {}
    entry, operations = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            operations = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif named := _NAME.match(line):
            operations.append(_operation(named[1], named[2]))
    return computations, entry


def _operation(name: str, text: str) -> Operation:
    """Split `type opcode(operands), attributes`; a tuple's type holds blanks and brackets."""
    end, depth = 0, 0
    while text[end] != " " or depth > 0:
        depth += (text[end] == "(") - (text[end] == ")")
        end += 1
    opcode, _, rest = text[end:].strip().partition("(")
    return Operation(name, opcode, text[:end], rest)


def first_bytes(type_: str) -> int:
    """Of the first array of a type."""
    dtype, shape = _ARRAY.findall(type_)[0]
    return math.prod([BYTES[dtype], *map(int, filter(None, shape.split(",")))])


def launches(computations: dict[str, list[Operation]], name: str) -> Launches:
    total = Launches()
    for op in computations[name]:
        total = total.plus(_launches_of(computations, op))
    return total


def _launches_of(computations: dict[str, list[Operation]], op: Operation) -> Launches:
    if op.opcode in FREE or op.opcode.endswith("-done"):
        return Launches()
    if op.bodies:
        return max(launches(computations, name) for name in op.bodies).times(op.trips or 1)
    if op.opcode.removesuffix("-start") == "copy":
        # The start of an asynchronous copy is a tuple: where to, where from, and a context.
        return Launches(1, 1, first_bytes(op.type))
    return Launches(1, fusions=int(op.opcode == "fusion"))


def loops(computations: dict[str, list[Operation]]) -> list[Operation]:
    return [op for ops in computations.values() for op in ops if op.opcode == "while"]


def decode_loops(text: str) -> list[dict[str, int]]:
    """Launches a token of each decode loop: those of unknown length in the rollout that no other
    one of them is nested in, in the program's order (fewer and fewer slots). What such a loop
    nests itself, the refill, is counted once a token, which is too often."""
    computations, _ = parse(text)
    found = []
    for op in loops(computations):
        # What the compiler has made loops of, a scatter say, has another name in the end.
        if op.trips is None and op.scope.endswith("rollout/while"):
            found.append(launches(computations, op.bodies[0])._asdict())
    return found


def collectives(text: str) -> dict[str, int]:
    """How many of each are in the program, not how often they run."""
    computations, _ = parse(text)
    opcodes = [op.opcode.removesuffix("-start") for ops in computations.values() for op in ops]
    return {name: opcodes.count(name) for name in COLLECTIVES if name in opcodes}


def phase_launches(text: str, scopes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Operations of each phase as the program lists them, each once, and the copies among them.
    What a fusion holds is not listed."""
    computations, entry = parse(text)
    reached = _reached(computations, entry)
    found = {scope: Launches() for scope in scopes}
    for name in reached:
        for op in computations[name]:
            scope = next((s for s in scopes if s in op.scope.split("/")), None)
            if scope is not None and not op.bodies:
                found[scope] = found[scope].plus(_launches_of(computations, op))
    return {scope: launched._asdict() for scope, launched in found.items()}


def _reached(computations: dict[str, list[Operation]], entry: str) -> list[str]:
    """The entry and every body, side and call below it: not the insides of fusions."""
    reached, waiting = [], [entry]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.append(name)
            waiting += [below for op in computations[name] for below in op.bodies]
    return reached
