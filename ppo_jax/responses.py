"""Given responses: their tokens, and batches of them in the form of a rollout."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppo_jax.config import DataOptions
from ppo_jax.data import Dataset, take_rows
from ppo_jax.errors import DataError
from ppo_jax.types import Prompts, Rollout


def response_ids(dataset: Dataset, tokenizer, vocab_size: int) -> list[list[int]]:
    """Tokens of each row's `response`: its own `response_ids`, else the text's.

    Raises DataError naming the line of a row without a usable one.
    """
    if "response" not in dataset.columns:
        present = ", ".join(["prompt", *dataset.columns])
        raise DataError(f"{dataset.path}: no column `response` (columns: {present})")
    given = dataset.columns.get("response_ids", [None] * len(dataset.prompts))
    result = []
    for line, text, ids in zip(dataset.lines, dataset.columns["response"], given, strict=True):
        where = f"{dataset.path}:{line}"
        if not isinstance(text, str):
            raise DataError(f"{where}: response is {type(text).__name__}, expected a string")
        if ids is None:
            ids = tokenizer.encode(text, add_special_tokens=False)
        valid = lambda i: type(i) is int and 0 <= i < vocab_size
        if not isinstance(ids, list) or not ids or not all(map(valid, ids)):
            raise DataError(
                f"{where}: the response has no tokens, or one outside the vocabulary of "
                f"{vocab_size}"
            )
        result.append(ids)
    return result


def ended(
    dataset: Dataset, ids: list[list[int]], options: DataOptions, *, eos: int | None, room: int
) -> Dataset:
    """The rows whose responses `ids` fit into `room` tokens, with their `response_ids`, each with
    its EOS at the end.

    A longer one is an error, dropped, or cut (and then without its EOS), as `options.overlong` says
    of prompts. Raises DataError.
    """
    kept, result, cut = [], [], 0
    for row, (line, tokens) in enumerate(zip(dataset.lines, ids, strict=True)):
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
    if not kept:
        raise DataError(
            f"{dataset.path}: all responses are longer than rollout.max_new_tokens = {room}; raise "
            "it, or set data.overlong to 'truncate'"
        )
    return take_rows(dataset, kept)._replace(
        dropped=dataset.dropped + len(dataset.lines) - len(kept),
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
