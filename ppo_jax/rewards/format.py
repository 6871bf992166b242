"""Format rewards on the device: does the response match a regular expression?

The pattern becomes an automaton on bytes on the host (`regex_dfa`). What a token does to it is a
map from states to states, worked out once: tokens that do the same are of one kind. On the device a
response is followed by a scan over its T tokens, one look-up a token and row, whatever the pattern.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.length import without_stop
from ppo_jax.rewards.regex_dfa import Dfa, compile_dfa
from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array, Rollout

MAX_TABLE_BYTES = 1 << 26  # of the kinds of tokens
CHUNK = 1 << 22  # states worked on at once


class FormatTables(NamedTuple):
    """A row a token, a kind of tokens or a state of the automaton; state 0 is the start."""

    kind_V: Array  # int32
    next_KS: Array  # int16, the state after a token of kind K
    accepts_S: Array  # bool
    viable_S: Array  # bool, a match can still follow


def matches(
    pattern: str | bytes,
    *,
    must_end: bool = True,
    per_token: bool = False,
    name: str = "matches",
) -> DeviceReward:
    """1 if the whole response matches the regular expression, else 0; float32 [B].

    The response is the bytes of its tokens (`tokenizer.token_bytes`) without the stop token, for
    any tokenisation; special tokens have none. A `str` pattern is read as `re.fullmatch(pattern,
    text, re.ASCII | re.DOTALL)` reads it, and no response that is not valid UTF-8 matches; a
    `bytes` pattern is read byte by byte. What of the syntax is known, and what is refused, stands
    at `regex_dfa.compile_dfa`. To ask for something anywhere, write `.*` around it. With `must_end`
    a response that was cut off at the length limit counts as no match, whatever it says.

    `per_token` gives rewards [B, T] instead: -1 on the token that ruled a match out, or on the last
    one if the response only stopped too early, and 0 elsewhere. A row adds up to its score less 1,
    so the best policy is the same, and the blame lies where the fault is (a shaping by a potential,
    Ng et al. 1999, ICML: 1 while a match can still follow; exact for gamma = 1).

    Raises `ConfigError` for a pattern that is refused, that takes too many states or that can never
    match; `make_tables` raises it if the vocabulary's table would pass `MAX_TABLE_BYTES`.
    """
    if not isinstance(pattern, str | bytes):
        raise ConfigError(f"reward {name}: the pattern must be str or bytes, got {pattern!r}")
    dfa = compile_dfa(pattern, f"reward {name}")

    def score(rollout: Rollout, columns: dict[str, Array], tables: FormatTables) -> Array:
        state_B, viable_BT = _follow(rollout, tables)
        matches_B = tables.accepts_S[state_B]
        if must_end:
            matches_B = matches_B & rollout.ended_B
        if not per_token:
            return matches_B.astype(jnp.float32)
        return jnp.where(_faults(rollout, viable_BT, matches_B), -1.0, 0.0)

    def make_tables(tokenizer, vocab_size: int) -> FormatTables:
        return build_tables(*token_bytes(tokenizer, vocab_size), dfa, f"reward {name}")

    return DeviceReward(name, score, make_tables)


def build_tables(
    bytes_VN: np.ndarray, lengths_V: np.ndarray, dfa: Dfa, where: str = "reward matches"
) -> FormatTables:
    """Tables for a vocabulary given as bytes (uint8, `lengths_V` of each row count).

    Raises `ConfigError` where its kinds of tokens take more than `MAX_TABLE_BYTES`.
    """
    # Tokens whose bytes no part of the pattern tells apart need no work of their own.
    classes_VN = dfa.class_256[bytes_VN]
    spelled: dict[bytes, int] = {}
    rows = zip(classes_VN, lengths_V, strict=True)
    spelling_V = [spelled.setdefault(row[:size].tobytes(), len(spelled)) for row, size in rows]
    spellings = [np.frombuffer(spelling, np.uint8) for spelling in spelled]
    S = len(dfa.accepts_S)
    kinds: dict[bytes, int] = {}
    kind_U, step = [], max(1, CHUNK // S)
    for start in range(0, len(spellings), step):
        for after_S in _maps(spellings[start : start + step], dfa):
            kind_U.append(kinds.setdefault(after_S.tobytes(), len(kinds)))
            if len(kinds) * S * 2 > MAX_TABLE_BYTES:
                raise ConfigError(
                    f"{where}: the pattern has {S} states and tells so many tokens apart that its "
                    f"table passes {MAX_TABLE_BYTES >> 20} MiB: give a simpler pattern"
                )
    next_KS = np.frombuffer(b"".join(kinds), np.int16).reshape(-1, S)
    kind_V = np.array(kind_U, np.int32)[spelling_V]
    arrays: tuple = (kind_V, next_KS, dfa.accepts_S, dfa.viable_S)
    return FormatTables(*arrays)


def _maps(spellings: list[np.ndarray], dfa: Dfa) -> np.ndarray:
    """The state each sequence of byte classes leads to, from every state; int16 [U, S]."""
    lengths_U = np.array([len(spelling) for spelling in spellings])
    S = len(dfa.accepts_S)
    after_US = np.tile(np.arange(S, dtype=np.int16), (len(spellings), 1))
    for at in range(lengths_U.max()):
        rows = np.flatnonzero(lengths_U > at)
        class_R = np.array([spellings[row][at] for row in rows])
        after_US[rows] = dfa.next_SC[after_US[rows], class_R[:, None]]
    return after_US


def _follow(rollout: Rollout, tables: FormatTables) -> tuple[Array, Array]:
    """(the state after each response [B], whether a match can follow after each token [B, T])."""
    counts_BT = without_stop(rollout) > 0
    kind_BT = tables.kind_V[rollout.response_ids_BT]

    def step(state_B, token):
        kind_B, counts_B = token
        state_B = jnp.where(counts_B, tables.next_KS[kind_B, state_B].astype(jnp.int32), state_B)
        return state_B, tables.viable_S[state_B]

    start_B = jnp.zeros_like(rollout.lengths_B)
    state_B, viable_TB = lax.scan(step, start_B, (kind_BT.T, counts_BT.T))
    return state_B, viable_TB.T


def _faults(rollout: Rollout, viable_BT: Array, matches_B: Array) -> Array:
    """bool [B, T], True once in each row that has tokens and does not match."""
    before_BT = jnp.pad(viable_BT, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    early_BT = rollout.last_BT & viable_BT & ~matches_B[:, None]
    return (before_BT & ~viable_BT) | early_BT
