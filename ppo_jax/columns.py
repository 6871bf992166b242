"""Columns of the data as rewards on the device get them: numbers as arrays, texts tokenised."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.errors import DataError
from ppo_jax.jsonl import json_type, shown
from ppo_jax.returned import MAX_FLOAT32
from ppo_jax.tokenizer import check_vocabulary
from ppo_jax.types import Texts


class TextColumn(NamedTuple):
    """A column of texts in memory: of each row the alternatives, as token ids and as UTF-8."""

    ids: list[list[list[int]]]
    raw: list[list[bytes]]
    alternatives: int  # of the row that has most
    tokens: int  # of the longest text
    width: int  # its bytes


def numeric_column(values: list) -> np.ndarray | None:
    """The column as a device-side reward gets it: int32 (bool, int) or float32, else None.

    A column with a null, or with a number its 32-bit type cannot hold, is not numeric: host-side
    rewards still get it as it stands in the file.
    """
    if not all(isinstance(value, bool | int | float) for value in values):
        return None
    if any(isinstance(value, float) for value in values):
        within = all(abs(v) <= MAX_FLOAT32 for v in values)
        return np.array(values, np.float32) if within else None
    info = np.iinfo(np.int32)
    return np.array(values, np.int32) if all(info.min <= v <= info.max for v in values) else None


def check_texts(columns: dict[str, Any], names: Iterable[str], where: str) -> None:
    """DataError, naming `where` (file:line), unless each named column of a row holds a text, or a
    list of texts, none of them empty."""
    for name in names:
        if name not in columns:
            present = shown(", ".join(columns)) if columns else "none"
            raise DataError(f"{where}: no column {shown(name)}, which a reward reads ({present})")
        value = columns[name]
        for text in value if isinstance(value, list) and value else [value]:
            if not isinstance(text, str):
                kind = json_type(text) if text != [] else "an empty list"
                raise DataError(
                    f"{where}: {shown(name)} holds {kind}; a reward reads it: expected a string, "
                    "or a list of strings"
                )
            if not text:
                raise DataError(f"{where}: {shown(name)} holds an empty string; a reward reads it")


def text_column(
    values: Sequence[str | list[str]], tokenizer: Any, vocab_size: int, places: Sequence[str]
) -> TextColumn:
    """A column that `check_texts` has passed, tokenised without special tokens.

    DataError, naming its place (file:line), for a row with a token that the model does not have.
    """
    rows = [[value] if isinstance(value, str) else value for value in values]
    encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    ids = [[encode(text) for text in row] for row in rows]
    for texts, where in zip(ids, places, strict=True):
        for text in texts:
            check_vocabulary(text, vocab_size, where)
    raw = [[text.encode() for text in row] for row in rows]
    longest = lambda lists: max(1, *(len(item) for row in lists for item in row))
    return TextColumn(ids, raw, max(map(len, rows)), longest(ids), longest(raw))


def take_texts(column: TextColumn, rows_B: np.ndarray) -> Texts:
    """The texts of these rows, padded with 0 to the widest of the whole column."""
    B, C = len(rows_B), column.alternatives
    ids_BCN = np.zeros((B, C, column.tokens), np.int32)
    bytes_BCM = np.zeros((B, C, column.width), np.uint8)
    lengths_BC, sizes_BC = np.zeros((B, C), np.int32), np.zeros((B, C), np.int32)
    for i, row in enumerate(rows_B.tolist()):
        for c, (ids, raw) in enumerate(zip(column.ids[row], column.raw[row], strict=True)):
            ids_BCN[i, c, : len(ids)] = ids
            bytes_BCM[i, c, : len(raw)] = np.frombuffer(raw, np.uint8)
            lengths_BC[i, c], sizes_BC[i, c] = len(ids), len(raw)
    arrays: tuple = (ids_BCN, lengths_BC, bytes_BCM, sizes_BC)
    return Texts(*arrays)
