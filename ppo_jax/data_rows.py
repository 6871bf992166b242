"""One row of a data file: its line parsed, its prompt and columns checked, its prompt tokenised."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.errors import DataError
from ppo_jax.jsonl import json_type, parse_object, shown
from ppo_jax.tokenizer import encode_prompt

# A host-side reward is called as fn(prompts, responses, **columns).
REWARD_ARGUMENTS = ("prompts", "responses")


class Row(NamedTuple):
    line: int
    prompt: str | list
    ids: list[int]
    columns: dict[str, Any]


def usable_row(raw: bytes, first: Row | None, tokenizer: Any, line: int, path: Path) -> Row:
    """A line of a file, which other rows have to be like `first`. DataError names its place."""
    where = f"{path}:{line}"
    columns = parse_object(raw, where)
    if "messages" in columns and "prompt" not in columns:
        if "response" in columns:
            raise DataError(
                f"{where}: columns `messages` and `response`: the last of the messages is the "
                "response; leave one of the two out"
            )
        columns |= _split(columns.pop("messages"), where)
    prompt = _checked_prompt(columns, where)
    del columns["prompt"]
    _check_columns(columns, first, where)
    ids = encode_prompt(tokenizer, prompt, where=where)
    if not ids:
        raise DataError(f"{where}: prompt has no tokens")
    return Row(line, prompt, ids, columns)


def warn_left_out(count: int, first: object) -> None:
    """What bad_rows="skip" has done, on stderr: one line, with the first row's fault."""
    print(f"ppo-jax: warning: rows left out: {count}, the first {first}", file=sys.stderr)


def _split(messages: Any, where: str) -> dict[str, Any]:
    """A conversation as a prompt and the assistant's answer, which is its last message."""
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise DataError(
            f"{where}: messages: expected a list of two or more that ends with the assistant's"
        )
    return {"prompt": messages[:-1], "response": last.get("content")}


def _checked_prompt(row: dict, where: str) -> str | list:
    # Whitespace alone, or special tokens alone, make a prompt like any other.
    if "prompt" not in row:
        present = shown(", ".join(row)) if row else "none"
        hint = ""
        if any(isinstance(row.get(name), list) for name in ("chosen", "rejected")):
            hint = (
                "; of whole conversations in `chosen` and `rejected` the messages that both begin "
                "with are expected as `prompt`, what follows as `chosen` and `rejected`"
            )
        raise DataError(f"{where}: no column `prompt`; columns present: {present}{hint}")
    prompt = row["prompt"]
    if not isinstance(prompt, str | list):
        raise DataError(
            f"{where}: prompt is {json_type(prompt)}; expected a string or a list of messages"
        )
    if not prompt:
        raise DataError(f"{where}: prompt is empty")
    return prompt


def _check_columns(columns: dict, first: Row | None, where: str) -> None:
    for name in columns:
        if name in REWARD_ARGUMENTS:
            raise DataError(f"{where}: column {name!r} is a reward's own argument; rename it")
    if first is None:
        return
    for name in first.columns:
        if name not in columns:
            raise DataError(f"{where}: no column {shown(name)}, which line {first.line} has")
    for name in columns:
        if name not in first.columns:
            raise DataError(f"{where}: column {shown(name)}, which line {first.line} does not have")
