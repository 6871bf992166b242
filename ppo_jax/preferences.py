"""What a reward model learns from: pairs of responses of which one was preferred, or responses
that have a score.

A data file has `prompt` and either `chosen` and `rejected`, with or without a `margin` by which
their scores are to differ, or `response` and `score`. A response is a string, or a list of one
message of the assistant. Every fault is a DataError that reads `file:line: reason`.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.config import Config, DataOptions
from ppo_jax.data import Dataset, batch_rows, load_dataset, prompt_rows, take_rows
from ppo_jax.data_rows import warn_left_out
from ppo_jax.errors import DataError
from ppo_jax.jsonl import json_type, shown
from ppo_jax.responses import as_rollout, text_of
from ppo_jax.returned import MAX_FLOAT32
from ppo_jax.tokenizer import check_vocabulary
from ppo_jax.types import Array, Rollout

PAIR, SCORED = ("chosen", "rejected"), ("response",)


class Rated(NamedTuple):
    """Rows of a batch: N pairs, or N responses that have a score."""

    rollout: Rollout  # its arrays [N, 2, ...], the chosen response first, or [N, 1, ...]
    targets_N: Array  # float32
    counts_N: Array  # float32: 1, or 0 where a row only fills the batch


def load_preferences(
    options: DataOptions, tokenizer: Any, *, vocab_size: int, eos: int | None, room: int
) -> Dataset:
    """Read, check and tokenise `options.path`: a data set whose `response_ids` are the chosen or
    the scored responses, with `rejected_ids`, of pairs alone, and `targets_N`: the margins, or the
    scores.

    A response gets `eos` at its end, and has at most `room` tokens with it: of a longer one
    `options.overlong` decides as of prompts; one that is cut does not end. With bad_rows="skip"
    rows whose responses cannot be used are left out, with one warning.
    """
    dataset = load_dataset(options, tokenizer, vocab_size=vocab_size)
    names = _names(dataset)
    kept: list[int] = []
    responses: list[tuple[list[int], ...]] = []
    targets: list[float] = []
    skipped, cut, fault = 0, 0, ""
    for row, line in enumerate(dataset.lines):
        where = f"{dataset.path}:{line}"
        try:
            texts, target = _texts(dataset, names, row, where), _target(dataset, names, row, where)
            whole = tuple(_tokens(text, tokenizer, eos, where) for text in texts)
        except DataError as error:
            if options.bad_rows == "error":
                raise
            skipped, fault = skipped + 1, fault or str(error)
            continue
        for ids in whole:
            check_vocabulary(ids, vocab_size, where)
        fitted = _fitted(whole, room, options.overlong, where)
        if fitted is not None:
            kept.append(row)
            responses.append(fitted)
            targets.append(target)
            cut += fitted != whole
    if not kept:
        raise DataError(fault or f"{dataset.path}: no row fits rollout.max_new_tokens={room}")
    if skipped:
        warn_left_out(skipped, fault)
    taken = take_rows(dataset, kept)
    return taken._replace(
        dropped=dataset.dropped + len(dataset.lines) - len(kept) - skipped,
        truncated=dataset.truncated + cut,
        skipped=dataset.skipped + skipped,
        response_ids=[r[0] for r in responses],
        rejected_ids=[r[1] for r in responses] if names == PAIR else None,
        targets_N=np.array(targets, np.float32),
    )


def responses_each(dataset: Dataset) -> int:
    """Responses of a row: 2 of a pair, else 1."""
    return 1 if dataset.rejected_ids is None else 2


def response_width(dataset: Dataset) -> int:
    """Tokens of the longest response: T of the compiled program."""
    return max(len(ids) for row in range(len(dataset.lines)) for ids in _responses(dataset, row))


def rated_batch(
    dataset: Dataset, config: Config, step: int, *, pad_id: int, widths: tuple[int, int]
) -> Rated:
    """Batch `step` of a run, numpy arrays: a pure function of (config.run.seed, step).

    It has rollout.batch_size responses, so half as many pairs. `widths` are (P, T).
    """
    rows_N, _ = batch_rows(
        len(dataset.lines),
        config.rollout.batch_size // responses_each(dataset),
        seed=config.run.seed,
        step=step,
        shuffle=config.data.shuffle,
    )
    return rated_rows(dataset, rows_N, pad_id=pad_id, widths=widths)


def rated_rows(
    dataset: Dataset, rows_N: np.ndarray, *, pad_id: int, widths: tuple[int, int]
) -> Rated:
    """The given rows in this order; -1 is a row that only fills the batch."""
    real_N = rows_N >= 0
    rows_N, each = np.where(real_N, rows_N, 0), responses_each(dataset)
    prompts = prompt_rows(dataset, np.repeat(rows_N, each), pad_id=pad_id, width=widths[0])
    responses = [ids for row in rows_N.tolist() for ids in _responses(dataset, row)]
    rollout = as_rollout(prompts, responses, widths[1])
    together = jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:]), rollout)
    assert dataset.targets_N is not None
    numbers: Any = dataset.targets_N[rows_N], real_N.astype(np.float32)
    return Rated(together, *numbers)


def _responses(dataset: Dataset, row: int) -> list[list[int]]:
    assert dataset.response_ids is not None
    lost = dataset.rejected_ids
    return [dataset.response_ids[row], *([] if lost is None else [lost[row]])]


def _names(dataset: Dataset) -> tuple[str, ...]:
    """The columns that hold the responses."""
    present = dataset.columns
    pair, scored = (all(name in present for name in names) for names in (PAIR, (*SCORED, "score")))
    if pair and scored:
        raise DataError(
            f"{dataset.path}: columns `chosen`, `rejected` and `response`, `score` in one file: "
            "expected pairs or scores"
        )
    if not pair and not scored:
        raise DataError(
            f"{dataset.path}: expected the columns `chosen` and `rejected`, or `response` and "
            f"`score` (columns: {shown(', '.join(['prompt', *present]))})"
        )
    return PAIR if pair else SCORED


def _texts(dataset: Dataset, names: tuple[str, ...], row: int, where: str) -> list[str]:
    texts = [_text(dataset.columns[name][row], name, where) for name in names]
    if len(set(texts)) < len(texts):
        raise DataError(f"{where}: chosen and rejected are the same")
    return texts


def _text(value: Any, name: str, where: str) -> str:
    text = text_of(value, name, where)
    if not text:
        raise DataError(f"{where}: {name} is empty")
    return text


def _target(dataset: Dataset, names: tuple[str, ...], row: int, where: str) -> float:
    name = "score" if names == SCORED else "margin"
    value = dataset.columns[name][row] if name in dataset.columns else 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is {json_type(value)}; expected a number")
    if abs(value) > MAX_FLOAT32:  # finite, by the parser; an int may be too large for any float
        raise DataError(f"{where}: {name} {shown(str(value))} is beyond the range of float32")
    if name == "margin" and value < 0:
        raise DataError(f"{where}: margin {value:.6g} is below 0: is the rejected one better?")
    return float(value)


def _tokens(text: str, tokenizer: Any, eos: int | None, where: str) -> list[int]:
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise DataError(f"{where}: the response {shown(text)} has no tokens")
    return ids if eos is None or ids[-1] == eos else [*ids, eos]


def _fitted(
    whole: tuple[list[int], ...], room: int, overlong: str, where: str
) -> tuple[list[int], ...] | None:
    """The responses with at most `room` tokens; None: the row is left out."""
    longest = max(map(len, whole))
    if longest > room and overlong == "error":
        raise DataError(
            f"{where}: a response has {longest} tokens with its EOS, rollout.max_new_tokens is "
            f"{room}; raise it, or set data.overlong to 'drop' or 'truncate'"
        )
    if longest > room and overlong == "drop":
        return None
    fitted = tuple(ids[:room] for ids in whole)
    # What is cut may be all that told two responses apart.
    return None if len(fitted) > 1 and fitted[0] == fitted[1] else fitted
