"""Regular expressions as nondeterministic automata on bytes (Thompson 1968, CACM 11(6)).

Python's own parser reads the pattern, so the syntax is Python's. What no automaton can do, and what
means nothing for a match of the whole, is refused by name.
"""

import re
from re import _constants as op  # pyright: ignore
from re import _parser as parser  # pyright: ignore
from typing import Any, NamedTuple

MAX_NODES = 1 << 16
TEXT_TOP = 0x10FFFF  # the last code point
# Where UTF-8 takes one more byte, and before the surrogates.
LENGTH_TOPS = (0x7F, 0x7FF, 0xD7FF, 0xFFFF, TEXT_TOP)
DIGITS = [(0x30, 0x39)]
SPACES = [(0x09, 0x0D), (0x20, 0x20)]
WORDS = [*DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
CATEGORIES = {
    op.CATEGORY_DIGIT: (DIGITS, False),
    op.CATEGORY_NOT_DIGIT: (DIGITS, True),
    op.CATEGORY_SPACE: (SPACES, False),
    op.CATEGORY_NOT_SPACE: (SPACES, True),
    op.CATEGORY_WORD: (WORDS, False),
    op.CATEGORY_NOT_WORD: (WORDS, True),
}
REFUSED = {
    op.GROUPREF: "a backreference",
    op.GROUPREF_EXISTS: "a conditional group",
    op.ASSERT: "a lookaround",
    op.ASSERT_NOT: "a lookaround",
    op.FAILURE: "a lookaround",  # what the parser makes of (?!)
    op.AT: "an anchor or a word boundary inside",
    op.ATOMIC_GROUP: "an atomic group",
    op.POSSESSIVE_REPEAT: "a possessive repeat",
}
FLAGS = re.ASCII | re.DOTALL | re.VERBOSE

Ranges = list[tuple[int, int]]  # of code points or of bytes, both ends included


class Nfa(NamedTuple):
    """An automaton under construction; it starts in node 0."""

    edges: list[list[tuple[int, int, int]]]  # (first byte, last byte, node) of each node
    free: list[list[int]]  # nodes that are reached without reading
    is_text: bool


class Refused(Exception):
    """The pattern is beyond what an automaton, or this one, can do."""


def read(pattern: str | bytes) -> tuple[Nfa, int]:
    """The automaton of a pattern and the node where it ends; `compile_dfa` says what is known.

    Raises `re.error` (or ValueError, OverflowError, RecursionError) where Python's parser does, and
    `Refused` for what it cannot turn into an automaton of at most `MAX_NODES`.
    """
    parsed = parser.parse(pattern, re.ASCII | re.DOTALL if isinstance(pattern, str) else re.DOTALL)
    _check_flags(parsed.state.flags)
    items = list(parsed)
    # A match of the whole begins and ends there anyway.
    while items and items[0] in [(op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)]:
        del items[0]
    while items and items[-1] in [(op.AT, op.AT_END), (op.AT, op.AT_END_STRING)]:
        del items[-1]
    nfa = Nfa([], [], isinstance(pattern, str))
    return nfa, _sequence(nfa, items, _node(nfa))


def _check_flags(flags: int) -> None:
    if flags & ~FLAGS:
        raise Refused(f"it sets a flag ({re.RegexFlag(flags & ~FLAGS)!r})")


def _node(nfa: Nfa) -> int:
    if len(nfa.edges) >= MAX_NODES:
        raise Refused(f"written out it takes more than {MAX_NODES} nodes")
    nfa.edges.append([])
    nfa.free.append([])
    return len(nfa.edges) - 1


def _sequence(nfa: Nfa, items, start: int) -> int:
    """Adds what matches the items in turn from `start` on; the node where it ends.

    No part ever adds a way back into the node it starts from: others may start there too.
    """
    for kind, arg in items:
        start = _item(nfa, kind, arg, start)
    return start


def _item(nfa: Nfa, kind: Any, arg: Any, start: int) -> int:
    top = TEXT_TOP if nfa.is_text else 0xFF
    if kind is op.LITERAL:
        return _characters(nfa, [(arg, arg)], start)
    if kind is op.NOT_LITERAL:
        return _characters(nfa, _others([(arg, arg)], top), start)
    if kind is op.ANY:
        return _characters(nfa, [(0, top)], start)
    if kind is op.IN:
        return _characters(nfa, _class(arg, top), start)
    if kind is op.BRANCH:
        end = _node(nfa)
        for items in arg[1]:
            nfa.free[_sequence(nfa, items, start)].append(end)
        return end
    if kind is op.SUBPATTERN:
        _, added, removed, items = arg
        _check_flags(added)
        if removed & re.DOTALL:
            raise Refused("it takes the flag s away")
        return _sequence(nfa, items, start)
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
        low, high, items = arg
        return _repeat(nfa, low, high, items, start)
    raise Refused(f"it has {REFUSED.get(kind, str(kind))}")


def _repeat(nfa: Nfa, low: int, high: int, items, start: int) -> int:
    for _ in range(low):
        start = _sequence(nfa, items, _after(nfa, start))
    end = _after(nfa, start)
    if high == op.MAXREPEAT:
        nfa.free[_sequence(nfa, items, end)].append(end)
        return end
    for _ in range(high - low):
        start = _sequence(nfa, items, _after(nfa, start))
        nfa.free[start].append(end)
    return end


def _after(nfa: Nfa, start: int) -> int:
    """A new node behind `start`: it bounds the copies of what is empty, too."""
    node = _node(nfa)
    nfa.free[start].append(node)
    return node


def _characters(nfa: Nfa, ranges: Ranges, start: int) -> int:
    end = _node(nfa)
    # Sequences that end alike share their ends: `.` takes 7 nodes beside the end, not 17.
    nodes: dict[tuple[tuple[int, int], ...], int] = {(): end}
    for low, high in ranges:
        for sequence in _utf8(low, high) if nfa.is_text else [[(low, high)]]:
            for cut in range(len(sequence) - 1, 0, -1):
                tail = tuple(sequence[cut:])
                if tail not in nodes:
                    nodes[tail] = _node(nfa)
                    nfa.edges[nodes[tail]].append((*tail[0], nodes[tail[1:]]))
            nfa.edges[start].append((*sequence[0], nodes[tuple(sequence[1:])]))
    return end


def _class(items, top: int) -> Ranges:
    ranges: Ranges = []
    negated = bool(items) and items[0][0] is op.NEGATE
    for kind, arg in items[negated:]:
        if kind is op.CATEGORY:
            found, negates = CATEGORIES[arg]
            ranges += _others(found, top) if negates else found
        else:
            ranges.append((arg, arg) if kind is op.LITERAL else arg)
    return _others(ranges, top) if negated else ranges


def _others(ranges: Ranges, top: int) -> Ranges:
    """What lies outside of all ranges, from 0 to `top`."""
    found, at = [], 0
    for low, high in sorted(ranges):
        if low > at:
            found.append((at, low - 1))
        at = max(at, high + 1)
    return [*found, (at, top)] if at <= top else found


def _utf8(low: int, high: int) -> list[Ranges]:
    """Sequences of byte ranges that make up the UTF-8 of a range of code points, less the
    surrogates, which UTF-8 does not have."""
    found = []
    for bottom, top in zip((0, *(t + 1 for t in LENGTH_TOPS)), LENGTH_TOPS, strict=False):
        first = max(low, 0xE000 if bottom == 0xD800 else bottom)
        last = min(high, top)
        if first <= last:
            found += _same_length(chr(first).encode(), chr(last).encode())
    return found


def _same_length(low: bytes, high: bytes) -> list[Ranges]:
    if low[0] == high[0]:
        rests = _same_length(low[1:], high[1:]) if len(low) > 1 else [[]]
        return [[(low[0], low[0]), *rest] for rest in rests]
    least, most = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    found, first, last = [], low[0], high[0]
    if low[1:] != least:
        found += [[(first, first), *rest] for rest in _same_length(low[1:], most)]
        first += 1
    if high[1:] != most:
        found += [[(last, last), *rest] for rest in _same_length(least, high[1:])]
        last -= 1
    if first <= last:
        found.append([(first, last), *([(0x80, 0xBF)] * len(least))])
    return found
