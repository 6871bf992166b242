"""Regular expressions as automata on bytes: what a device can follow token by token.

The nondeterministic automaton of a pattern is made deterministic (subsets of its nodes), then as
small as can be (Hopcroft 1971, "An n log n algorithm for minimizing states in a finite automaton").
Bytes that no part of the pattern tells apart share a column of its table.
"""

import re
from typing import NamedTuple

import numpy as np

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.regex_nfa import Nfa, Refused, read

MAX_STATES = 8192  # before the automaton is made as small as can be
MAX_STEPS = 1 << 21  # from node to node, to make it: about half a second


class Dfa(NamedTuple):
    """The smallest complete automaton of a pattern; state 0 is the start."""

    next_SC: np.ndarray  # int16, the state after a byte of class C
    class_256: np.ndarray  # uint8, class of each byte
    accepts_S: np.ndarray  # bool, what was read matches
    viable_S: np.ndarray  # bool, something can follow that makes it match


def compile_dfa(pattern: str | bytes, where: str) -> Dfa:
    """The automaton that accepts exactly the bytes a pattern matches as a whole.

    A `str` pattern is one of text, as `re.fullmatch(pattern, text, re.ASCII | re.DOTALL)` reads it:
    `.` and classes stand for characters, whatever their number of bytes, and bytes that are not
    valid UTF-8 never match. A `bytes` pattern is one of single bytes. Known are literals, escapes
    (`\\n \\x41 \\d \\w \\s` ..., the categories ASCII), classes, `.` (any character, line ends
    included), groups of any kind, `|`, `* + ? {m,n}`, lazy or not, which is the same for a match of
    the whole; `^ \\A` at the very beginning and `$ \\Z` at the very end, which say nothing new; and
    the inline flags `a s x`.

    Raises `ConfigError`, one line that begins with `where` and names the pattern, for anything
    else, for a pattern that matches nothing at all, and for one that takes more than `MAX_STATES`
    or `MAX_STEPS`.
    """
    shown = repr(pattern) if len(pattern) <= 80 else f"{pattern[:80]!r}..."
    try:
        nfa, end = read(pattern)
        dfa = _minimise(*_subsets(nfa, end))
    except (re.error, ValueError, OverflowError, RecursionError, Refused) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{where}: the pattern {shown} cannot be used: {reason}") from None
    if not dfa.viable_S[0]:
        raise ConfigError(f"{where}: the pattern {shown} can never match")
    return dfa


def _subsets(nfa: Nfa, end: int) -> tuple[list[list[int]], list[bool], np.ndarray]:
    """The deterministic automaton: next state by state and class, which accept, class of bytes."""
    cuts = {cut for edges in nfa.edges for low, high, _ in edges for cut in (low, high + 1)}
    class_256 = np.searchsorted(sorted(cuts - {0, 256}), np.arange(256), side="right")
    classes, count = class_256.tolist(), int(class_256[-1]) + 1
    start, steps = _closure(nfa, {0}, end)
    states, queue, table = {start: 0}, [start], []
    for state in queue:
        moves: list[set[int]] = [set() for _ in range(count)]
        for node in state:
            for low, high, target in nfa.edges[node]:
                for number in range(classes[low], classes[high] + 1):
                    moves[number].add(target)
        row = []
        for move in moves:
            after, more = _closure(nfa, move, end)
            steps += more
            if steps > MAX_STEPS:
                raise Refused(f"its automaton takes more than {MAX_STEPS} steps to make")
            if after not in states:
                if len(states) >= MAX_STATES:
                    raise Refused(f"its automaton takes more than {MAX_STATES} states")
                states[after] = len(states)
                queue.append(after)
            row.append(states[after])
        table.append(row)
    return table, [end in state for state in queue], class_256.astype(np.uint8)


def _closure(nfa: Nfa, nodes: set[int], end: int) -> tuple[frozenset[int], int]:
    """All that is reached without reading, of which only what reads, or the end, matters; and the
    steps that took."""
    found, stack, steps = set(nodes), list(nodes), 1 + len(nodes)
    while stack:
        free = nfa.free[stack.pop()]
        steps += len(free)
        for node in free:
            if node not in found:
                found.add(node)
                stack.append(node)
    return frozenset(node for node in found if nfa.edges[node] or node == end), steps


def _minimise(table: list[list[int]], accepts: list[bool], class_256: np.ndarray) -> Dfa:
    block_S = _blocks(table, accepts)
    # Numbered in the order they are met, so that the start is 0.
    order = list(dict.fromkeys(block_S))
    number = {block: new for new, block in enumerate(order)}
    first = {number[block]: state for state, block in reversed(list(enumerate(block_S)))}
    rows = [[number[block_S[after]] for after in table[first[new]]] for new in range(len(order))]
    accepts_S = np.array([accepts[first[new]] for new in range(len(order))])
    next_SC = np.array(rows, np.int16)
    # In a minimal automaton all that cannot lead to a match is one state, which nothing leaves.
    lost_S = ~accepts_S & (next_SC == np.arange(len(order))[:, None]).all(1)
    return Dfa(next_SC, class_256, accepts_S, ~lost_S)


def _blocks(table: list[list[int]], accepts: list[bool]) -> list[int]:
    """The block of each state: states are in one if no continuation tells them apart (Hopcroft)."""
    before: list[dict[int, list[int]]] = [{} for _ in table[0]]
    for state, row in enumerate(table):
        for sources, after in zip(before, row, strict=True):
            sources.setdefault(after, []).append(state)
    blocks = [{s for s, yes in enumerate(accepts) if yes is kind} for kind in (True, False)]
    block_S = [0 if yes else 1 for yes in accepts]
    work = {0, 1}
    while work:
        splitter = list(blocks[work.pop()])
        for sources in before:
            hit: dict[int, set[int]] = {}
            for after in splitter:
                for state in sources.get(after, ()):
                    hit.setdefault(block_S[state], set()).add(state)
            for block, inside in hit.items():
                if len(inside) == len(blocks[block]):
                    continue
                # The smaller part becomes a new block, and the one to split by.
                if 2 * len(inside) <= len(blocks[block]):
                    small = inside
                    blocks[block] -= small
                else:
                    small = blocks[block] - inside
                    blocks[block] = inside
                for state in small:
                    block_S[state] = len(blocks)
                work.add(len(blocks))
                blocks.append(small)
    return block_S
