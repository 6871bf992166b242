"""A compiled program as XLA writes it down: the text of its optimised HLO, parsed."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("pred", "s4", "u4", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
ROLLOUT = "rollout"  # the scope that the decode loop was traced under
# What stands between that scope and its loop: how the rollout is put on its devices.
PLUMBING = re.compile(r"shard_map|(xla_)?pmap|closed_call|jit\(.*\)")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_NAMES = re.compile(r"[\w.\-]+")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COUNTED = ("get-tuple-element", "constant")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|called_computations|branch_computations"
    r"|(?:true|false)_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


class Operation(NamedTuple):
    """A line of a computation: `name = type opcode(arguments), attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def scope(self) -> tuple[str, ...]:
        """The `jax.named_scope`s it was traced under, with the loops between them."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        # Operations that were joined have their names in brackets, with what they share before.
        return tuple(part.lstrip("(") for part in found[1].split("/")) if found else ()

    @property
    def known_trips(self) -> int | None:
        """Of a loop, where its line says how often it runs."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        named = re.findall(r"%([\w.\-]+)", self.arguments)
        return named or [words[-1] for words in map(str.split, self.arguments.split(",")) if words]

    @property
    def called(self) -> list[str]:
        """Computations that it runs or holds: bodies, sides of a branch, calls, a fusion's inside.
        Not the arithmetic of a reduction, which no operation of its own does."""
        if "to_apply" in self.attributes and self.opcode != "call":
            return []
        found = [names or name for names, name in _CALLED.findall(self.attributes)]
        return [name for names in found for name in _NAMES.findall(names)]

    @property
    def bodies(self) -> list[str]:
        """Of those the ones whose operations are launched one by one: of a loop its body, of a
        branch its sides, of a call what is called."""
        if self.opcode == "while":
            return re.findall(r"\bbody=%?([\w.\-]+)", self.attributes)
        return self.called if self.opcode in ("call", "conditional") else []

    @property
    def written(self) -> str:
        """The type of what it writes. The start of an asynchronous operation is a tuple, of what it
        reads, where it writes and a context; that of a copy names the place to write first."""
        if not self.opcode.endswith("-start"):
            return self.type
        parts = _elements(self.type)
        return parts[0 if self.opcode == "copy-start" or len(parts) < 2 else 1]

    @property
    def space(self) -> int:
        """The memory that it writes to: 0 is the device's, others are chosen by the compiler (1: a
        TPU's own, on the chip)."""
        found = re.search(r"S\((\d+)\)", self.written.split("}")[0])
        return int(found[1]) if found else 0


class Program(NamedTuple):
    computations: dict[str, list[Operation]]
    entry: str

    def operation(self, computation: str, name: str) -> Operation | None:
        return next((op for op in self.computations[computation] if op.name == name), None)

    def trips(self, loop: Operation) -> int | None:
        """How often a loop runs, where that is known when it is compiled: by its line, or by a
        condition that compares a counter with a number, which is counted to from 0."""
        if loop.known_trips is not None:
            return loop.known_trips
        for name in re.findall(r"\bcondition=%?([\w.\-]+)", loop.attributes):
            ops = {op.name: op for op in self.computations.get(name, ())}
            root = next(reversed(ops.values()), None)
            if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
                return None
            counter, limit = (ops.get(operand) for operand in root.operands)
            if counter and limit and (counter.opcode, limit.opcode) == _COUNTED:
                return int(limit.arguments)
        return None


def parse(text: str) -> Program:
    """The computations of a program's text (`compiled.as_text()`)."""
    computations: dict[str, list[Operation]] = {}
    entry, operations = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            operations = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif named := _NAME.match(line):
            operations.append(_operation(named[1], named[2]))
    return Program(computations, entry)


def array_bytes(type_: str) -> list[int]:
    """Of each array of a type, a tuple's in order."""
    size = lambda dtype: BYTES.get(dtype, 1 if dtype.startswith("f8") else 0)
    return [
        math.prod([size(dtype), *map(int, filter(None, shape.split(",")))])
        for dtype, shape in _ARRAY.findall(type_)
    ]


def decode_loops(program: Program) -> list[Operation]:
    """The loops that draw a token each time round, in the program's order: fewer and fewer slots.

    They are of unknown length, in the rollout, and in no other loop: what a decode step nests, the
    refill of its slots, is a part of it.
    """
    return [op for op in operations(program) if is_decode_loop(program, op)]


def is_decode_loop(program: Program, op: Operation) -> bool:
    if op.opcode != "while" or ROLLOUT not in op.scope or program.trips(op) is not None:
        return False
    between = op.scope[op.scope.index(ROLLOUT) + 1 :]
    # What the compiler has made loops of, a scatter say, has another name in the end.
    return between[-1:] == ("while",) and all(map(PLUMBING.fullmatch, between[:-1]))


def operations(program: Program, entry: str | None = None) -> Iterator[Operation]:
    """Those of the program's entry, or of another computation, and of all that it launches; not the
    insides of fusions."""
    for name in launched(program, program.entry if entry is None else entry):
        yield from program.computations[name]


def launched(program: Program, entry: str) -> list[str]:
    """A computation and all those whose operations it launches one by one."""
    reached, waiting = {}, [entry]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = None
            waiting += [below for op in program.computations[name] for below in op.bodies]
    return list(reached)


def _operation(name: str, text: str) -> Operation:
    end = _closing(text, " ")
    opcode, _, rest = text[end:].strip().partition("(")
    inside = _closing(rest, ")")
    return Operation(name, text[:end], opcode, rest[:inside], rest[inside + 1 :])


def _elements(type_: str) -> list[str]:
    """Of a tuple's type."""
    rest, found = type_.removeprefix("(").removesuffix(")"), []
    while rest:
        end = _closing(rest, ",")
        found.append(rest[:end].strip())
        rest = rest[end + 1 :]
    return found


def _closing(text: str, sign: str) -> int:
    """Where `sign` first stands outside of brackets; types, operands and literals hold pairs."""
    depth = 0
    for match in re.finditer(r"[()\[\]{}]|" + re.escape(sign), text):
        found = match[0]
        if found == sign and depth == 0:
            return match.start()
        depth += (found in "([{") - (found in ")]}")
    return len(text)
