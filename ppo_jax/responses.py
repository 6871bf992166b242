"""Given responses: their tokens, and batches of them in the form of a rollout."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppo_jax.config import DataOptions
from ppo_jax.data import Dataset, take_rows
from ppo_jax.data_rows import warn_left_out
from ppo_jax.errors import DataError
from ppo_jax.jsonl import json_type, shown
from ppo_jax.types import Prompts, Rollout

# Columns of data made for other trainers -> what to do about them.
OTHERS = {
    "completion": "; nearest: `completion`, which is to be named `response`",
    "chosen": "; nearest: `chosen`, which is to be named `response` (`ppo-jax reward-model` reads "
    "`chosen` and `rejected`)",
}


def response_ids(
    dataset: Dataset, tokenizer: Any, vocab_size: int, *, bad_rows: str = "error"
) -> list[list[int]]:
    """Tokens of each row's `response`, a string or a list of one message of the assistant: its own
    `response_ids`, else the text's.

    Raises DataError naming the line of a row without a usable one; with bad_rows="skip" such a row
    has no tokens, and one warning says how many there are.
    """
    if "response" not in dataset.columns:
        present = shown(", ".join(["prompt", *dataset.columns]))
        near = next((hint for name, hint in OTHERS.items() if name in dataset.columns), "")
        raise DataError(f"{dataset.path}: no column `response` (columns: {present}){near}")
    given = dataset.columns.get("response_ids", [None] * len(dataset.prompts))
    result, faults = [], []
    for line, value, ids in zip(dataset.lines, dataset.columns["response"], given, strict=True):
        try:
            result.append(_tokens(value, ids, tokenizer, vocab_size, f"{dataset.path}:{line}"))
        except DataError as error:
            if bad_rows == "error":
                raise
            result.append([])
            faults.append(error)
    if faults:
        warn_left_out(len(faults), faults[0])
    return result


def text_of(value: Any, name: str, where: str) -> str:
    """The text of a column's value, a string or a list of one message of the assistant. DataError
    for anything else."""
    match value:
        case [{"role": "assistant", "content": str(content)}]:
            return content
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {name} is {json_type(value)}; expected a string, or a list of one message "
            "of the assistant"
        )
    return value


def _tokens(value: Any, ids: Any, tokenizer: Any, vocab_size: int, where: str) -> list[int]:
    text = text_of(value, "response", where)
    if ids is None:
        ids = tokenizer.encode(text, add_special_tokens=False)
    valid = lambda i: type(i) is int and 0 <= i < vocab_size
    if not isinstance(ids, list) or not ids or not all(map(valid, ids)):
        raise DataError(
            f"{where}: the response has no tokens, or one outside the vocabulary of {vocab_size}"
        )
    return ids


def end_token(tokenizer: Any, eos_token_ids: tuple[int, ...]) -> int | None:
    """What a response ends with: of a model's stop ids the one that its tokenizer, and so its chat
    template, means, else the first."""
    own = tokenizer.eos_token_id
    return own if own in eos_token_ids else next(iter(eos_token_ids), None)


def ended(
    dataset: Dataset, ids: list[list[int]], options: DataOptions, *, eos: int | None, room: int
) -> Dataset:
    """The rows whose responses `ids` have tokens and fit into `room` of them, with `response_ids`:
    those, each with its EOS at the end.

    A longer one is an error, dropped, or cut (and then without its EOS), as `options.overlong` says
    of prompts. Raises DataError.
    """
    kept, result, cut = [], [], 0
    for row, (line, tokens) in enumerate(zip(dataset.lines, ids, strict=True)):
        if not tokens:
            continue
        whole = [*tokens, eos] if eos is not None and tokens[-1] != eos else tokens
        if len(whole) > room and options.overlong == "error":
            raise DataError(
                f"{dataset.path}:{line}: the response has {len(whole)} tokens with its EOS, "
                f"rollout.max_new_tokens is {room}; raise it, or set data.overlong to 'drop' or "
                "'truncate'"
            )
        if len(whole) > room and options.overlong == "drop":
            continue
        cut += len(whole) > room
        kept.append(row)
        result.append(whole[:room])
    skipped = sum(not tokens for tokens in ids)
    if not kept:
        raise DataError(
            f"{dataset.path}: no response is left: {skipped} cannot be used (data.bad_rows), the "
            f"others are longer than rollout.max_new_tokens = {room}"
        )
    return take_rows(dataset, kept)._replace(
        skipped=dataset.skipped + skipped,
        dropped=dataset.dropped + len(dataset.lines) - len(kept) - skipped,
        truncated=dataset.truncated + cut,
        response_ids=result,
    )


def as_rollout(prompts: Prompts, responses: Sequence[list[int]], width: int) -> Rollout:
    """Given responses in the form of a rollout, numpy arrays; one without tokens is not there."""
    ids_BT: Any = np.zeros((len(responses), width), np.int32)
    lengths_B: Any = np.asarray([len(ids) for ids in responses], np.int32)
    for row, ids in zip(ids_BT, responses, strict=True):
        row[: len(ids)] = ids
    mask_BT: Any = (np.arange(width) < lengths_B[:, None]).astype(np.float32)
    nothing_B: Any = np.zeros(len(responses), np.float32)
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=ids_BT,
        mask_BT=mask_BT,
        lengths_B=lengths_B,
        ended_B=nothing_B == 0,
        logprobs_BT=0 * mask_BT,
        values_BT=None,
        kept_ids_BTK=None,
        slot_steps_B=nothing_B,
    )
