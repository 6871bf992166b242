"""Prompts from a local file, and batches as a pure function of (seed, step).

A data file is `.jsonl` or `.jsonl.gz`: one JSON object a line, with `prompt` (a string, or a list
of `{role, content}` messages) and any other columns, which are handed to the reward; or with
`messages`, which stand for a prompt and, their last one, the column `response`. Every fault is a
`DataError` that reads `file:line: reason`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.columns import TextColumn, check_texts, numeric_column, take_texts, text_column
from ppo_jax.config import Config, DataOptions
from ppo_jax.data_rows import Row, usable_row, warn_left_out
from ppo_jax.errors import DataError
from ppo_jax.jsonl import read_lines
from ppo_jax.tokenizer import check_vocabulary
from ppo_jax.types import Prompts

REPOSITORY = Path(__file__).resolve().parent.parent
SUFFIXES = (".jsonl", ".jsonl.gz")


class Dataset(NamedTuple):
    """A data file in memory. All lists have one entry a kept row."""

    prompts: list[str | list[dict]]  # as in the file
    prompt_ids: list[list[int]]  # at most data.max_prompt_tokens each
    columns: dict[str, list]  # every column but `prompt`, as in the file
    numeric: dict[str, np.ndarray]  # the int32 and float32 columns, see `columns`
    lines: list[int]  # where each row stands in the file, counted from 1
    dropped: int  # rows left out by overlong="drop"
    truncated: int  # prompts cut by overlong="truncate"
    path: str  # the file that was read
    skipped: int = 0  # rows left out by bad_rows="skip"
    texts: dict[str, TextColumn] = {}  # those that rewards on the device read
    response_ids: list[list[int]] | None = None  # of given responses, where they are trained on
    rejected_ids: list[list[int]] | None = None  # of pairs: of the responses that lost
    targets_N: np.ndarray | None = None  # of preferences: margins or scores, float32


def load_dataset(
    options: DataOptions, tokenizer: Any, *, vocab_size: int, texts: Sequence[str] = ()
) -> Dataset:
    """Read, check and tokenise `options.path`; `DataError` names the faulty line.

    `texts` are the columns that a reward on the device reads as strings (`base.text_columns`).
    A relative path is looked up from the working directory, then from the repository's root. With
    bad_rows="skip" unusable rows are left out, with one warning. Three faults are not a row's own
    and remain errors: a file that breaks off, a token id outside the vocabulary (the tokenizer is
    another model's), and a prompt too long, which `options.overlong` decides on.
    """
    path = find_file(options.path)
    data = Dataset([], [], {}, {}, [], 0, 0, str(path))
    dropped = truncated = skipped = 0
    first, fault = None, ""
    for line, raw in read_lines(path):
        try:
            row = usable_row(raw, first, tokenizer, line, path)
            check_texts(row.columns, texts, f"{path}:{line}")
        except DataError as error:
            if options.bad_rows == "error":
                raise
            skipped += 1
            fault = fault or str(error)
            continue
        first = first or row
        check_vocabulary(row.ids, vocab_size, f"{path}:{line}")
        excess = _excess(row.ids, options, f"{path}:{line}")
        if excess and options.overlong == "drop":
            dropped += 1
            continue
        truncated += excess > 0
        _append(data, row, excess)
    if not data.lines:
        raise DataError(_why_empty(path, options, dropped, skipped, fault))
    if skipped:
        warn_left_out(skipped, fault)
    arrays = {name: numeric_column(values) for name, values in data.columns.items()}
    numeric = {name: array for name, array in arrays.items() if array is not None}
    places = [f"{path}:{line}" for line in data.lines] if texts else []
    read = {name: text_column(data.columns[name], tokenizer, vocab_size, places) for name in texts}
    return data._replace(
        numeric=numeric, dropped=dropped, truncated=truncated, skipped=skipped, texts=read
    )


def find_file(name: str) -> Path:
    """The existing data file meant by `name`; `DataError` with the nearest name if there is none.

    A relative name counts from the working directory, then from the repository's root.
    """
    given = Path(name).expanduser()
    candidates = [given] if given.is_absolute() else [given, REPOSITORY / given]
    path = next((c for c in candidates if c.exists()), None)
    if path is None:
        folders = [c.parent for c in candidates if c.parent.is_dir()]
        names = {p.name: p for f in folders for p in f.iterdir() if p.name.endswith(SUFFIXES)}
        near = difflib.get_close_matches(given.name, names, n=1, cutoff=0.0)
        if near:
            hint = f"nearest: {names[near[0]]}"
        else:
            hint = "no .jsonl file in that folder" if folders else f"no folder {given.parent}"
        raise DataError(f"data.path: no file {name!r}; {hint}")
    if path.is_dir():
        raise DataError(f"data.path: {name!r} is a folder; expected a .jsonl or .jsonl.gz file")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"data.path: {name!r} does not end in .jsonl or .jsonl.gz")
    return path


def first_rows(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` rows; all where None, or where there are fewer."""
    return dataset if count is None else take_rows(dataset, range(min(count, len(dataset.lines))))


def take_rows(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """These rows of a data set, in this order."""
    take = lambda values: [values[row] for row in rows]
    taken = lambda values: None if values is None else take(values)
    index = np.asarray(rows, np.int32)
    return dataset._replace(
        prompts=take(dataset.prompts),
        prompt_ids=take(dataset.prompt_ids),
        columns={name: take(values) for name, values in dataset.columns.items()},
        numeric={name: values[index] for name, values in dataset.numeric.items()},
        lines=take(dataset.lines),
        texts={
            name: column._replace(ids=take(column.ids), raw=take(column.raw))
            for name, column in dataset.texts.items()
        },
        response_ids=taken(dataset.response_ids),
        rejected_ids=taken(dataset.rejected_ids),
        targets_N=None if dataset.targets_N is None else dataset.targets_N[index],
    )


def prompt_width(dataset: Dataset) -> int:
    """Tokens of the longest prompt: P of the compiled program."""
    return max(len(ids) for ids in dataset.prompt_ids)


def batch_rows(
    n_rows: int, batch_prompts: int, *, seed: int, step: int, shuffle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of batch `step`, and how often each row already stands earlier in the same batch.

    Batches are cut from one endless stream of epochs, each a permutation of its own of all rows
    (file order without `shuffle`), so no row is skipped where a batch crosses the end of an epoch.
    With fewer rows than a batch rows repeat, and the second array tells their copies apart.
    """
    # Python integers: the position in the stream must not overflow in a long run.
    epoch, offset = divmod(int(step) * batch_prompts, n_rows)
    rows: list[int] = []
    while len(rows) < batch_prompts:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(n_rows) if shuffle else np.arange(n_rows)
        rows += order[offset : offset + batch_prompts - len(rows)].tolist()
        epoch, offset = epoch + 1, 0
    seen: dict[int, int] = {}
    occurrence = []
    for row in rows:
        occurrence.append(seen.get(row, 0))
        seen[row] = occurrence[-1] + 1
    return np.array(rows, np.int32), np.array(occurrence, np.int32)


def make_batch(
    dataset: Dataset, config: Config, step: int, *, pad_id: int, width: int | None = None
) -> Prompts:
    """Batch `step` of a run, numpy arrays [B, P]: a pure function of (config.run.seed, step).

    `width` is P, `prompt_width(dataset)` if not given. All samples of a prompt stand side by side.
    """
    rows, occurrence = batch_rows(
        len(dataset.prompts),
        config.prompts_per_batch,
        seed=config.run.seed,
        step=step,
        shuffle=config.data.shuffle,
    )
    samples = config.rollout.samples_per_prompt
    # A repeated row goes on counting its samples: (prompt, sample) seeds the sampler, and equal
    # seeds would give equal responses.
    sample_index_B = np.repeat(occurrence * samples, samples) + np.tile(
        np.arange(samples, dtype=np.int32), len(rows)
    )
    width = prompt_width(dataset) if width is None else width
    return _prompts(dataset, np.repeat(rows, samples), sample_index_B, pad_id, width)


def fixed_prompts(dataset: Dataset, count: int, *, pad_id: int, width: int) -> Prompts:
    """The first `count` rows of the file (all, if it has fewer), one sample each."""
    rows = np.arange(min(count, len(dataset.prompts)))
    return prompt_rows(dataset, rows, pad_id=pad_id, width=width)


def prompt_rows(dataset: Dataset, rows_B: np.ndarray, *, pad_id: int, width: int) -> Prompts:
    """The given rows of the file in this order, one sample each."""
    rows_B = rows_B.astype(np.int32)
    return _prompts(dataset, rows_B, np.zeros_like(rows_B), pad_id, width)


def batch_columns(dataset: Dataset, prompts: Prompts) -> dict[str, list]:
    """Every column as it stands in the file, one entry a row of the batch."""
    rows = np.asarray(prompts.prompt_index_B).tolist()
    return {name: [values[row] for row in rows] for name, values in dataset.columns.items()}


def batch_prompts(dataset: Dataset, prompts: Prompts) -> list[str | list[dict]]:
    """The prompts as they stand in the file (untruncated), one entry a row of the batch."""
    return [dataset.prompts[row] for row in np.asarray(prompts.prompt_index_B).tolist()]


def _prompts(
    dataset: Dataset, rows_B: np.ndarray, sample_index_B: np.ndarray, pad_id: int, width: int
) -> Prompts:
    ids_BP = np.full((len(rows_B), width), pad_id, np.int32)
    mask_BP = np.zeros((len(rows_B), width), bool)
    for i, row in enumerate(rows_B.tolist()):
        ids = dataset.prompt_ids[row]
        if len(ids) > width:
            where = f"{dataset.path}:{dataset.lines[row]}"
            raise DataError(f"{where}: prompt has {len(ids)} tokens, the batch is {width} wide")
        ids_BP[i, width - len(ids) :] = ids
        mask_BP[i, width - len(ids) :] = True
    columns: dict[str, Any] = {name: values[rows_B] for name, values in dataset.numeric.items()}
    columns |= {name: take_texts(column, rows_B) for name, column in dataset.texts.items()}
    return Prompts(ids_BP, mask_BP, rows_B, sample_index_B, columns)


def _append(data: Dataset, row: Row, excess: int) -> None:
    data.prompts.append(row.prompt)
    data.prompt_ids.append(row.ids[excess:])
    data.lines.append(row.line)
    for name, value in row.columns.items():
        data.columns.setdefault(name, []).append(value)


def _excess(ids: list[int], options: DataOptions, where: str) -> int:
    """Tokens beyond the longest prompt; a DataError where the options want none."""
    excess = len(ids) - options.max_prompt_tokens
    if excess > 0 and options.overlong == "error":
        raise DataError(
            f"{where}: prompt has {len(ids)} tokens, data.max_prompt_tokens is "
            f"{options.max_prompt_tokens}; raise it to {len(ids)}, or set data.overlong "
            "to 'drop' or 'truncate'"
        )
    return max(excess, 0)


def _why_empty(path: Path, options: DataOptions, dropped: int, skipped: int, fault: str) -> str:
    if dropped:
        return (
            f"{path}: all {dropped} prompts are longer than data.max_prompt_tokens = "
            f"{options.max_prompt_tokens}; raise it, or set data.overlong to 'truncate'"
        )
    if skipped:
        return f"{fault}; with all {skipped} rows left out (data.bad_rows) none remains"
    return f"{path}: no rows; expected one JSON object with `prompt` a line"
