"""Calling a reward that is ordinary Python, and holding what it gives to the contract."""

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ppo_jax.errors import RewardError
from ppo_jax.returned import as_number, as_text, what_raised
from ppo_jax.rewards.base import Part, column_parameters, parameters_of

SEEDS = "seeds"  # column a host reward may take: a whole number a row, the same when resumed
OnError = Literal["abort", "mask"]
Mark = Callable[..., None]  # told which row a function has got to


class Rows(NamedTuple):
    """What a host reward is given: one entry a row in each list."""

    numbers: list[int]  # of the rows in their batch, for messages
    prompts: list[Any]
    responses: list[str]
    columns: dict[str, list]

    def pick(self, index: Iterable[int]) -> "Rows":
        some = list(index)
        pick = lambda values: [values[i] for i in some]
        columns = {name: pick(values) for name, values in self.columns.items()}
        return Rows(pick(self.numbers), pick(self.prompts), pick(self.responses), columns)

    def where(self, i: int) -> str:
        return f"row {self.numbers[i]} (prompt {str(self.prompts[i])[:80]!r})"


class HostScores(NamedTuple):
    """Scores of one part: under its name, or under `name/key` for each key of a returned dict.

    Weights are not applied. A row that failed is NaN in all of them.
    """

    scores: dict[str, np.ndarray]  # float32 [B]; none, if no row at all has a score
    failed: dict[int, str]  # number of a row in its batch -> why it has no score


def call(
    part: Part,
    rows: Rows,
    *,
    on_error: OnError = "abort",
    seconds: float = math.inf,
    mark: Mark | None = None,
) -> HostScores:
    """HostScores of a host reward for these rows.

    The function gets those columns that it takes by keyword; `mark` is told the place of each row
    that it takes from `prompts` or `responses`. Raises RewardError naming the function, the row and
    its prompt if the function raises, returns another length or type, or anything but finite
    numbers; with `on_error="mask"` such a row has failed, and after a call that failed as a whole
    rows are tried one by one, for `seconds` at most.
    """
    deadline = time.monotonic() + seconds
    try:
        return _call(part, rows, on_error, mark or (lambda *row: None))
    except RewardError as error:
        if on_error == "abort":
            raise
        why = str(error)
        if len(rows.numbers) == 1:
            return HostScores({}, {rows.numbers[0]: why})
    singles = []
    for row in range(len(rows.numbers)):
        one, late = rows.pick([row]), time.monotonic() > deadline
        stands = functools.partial(mark, row) if mark else None
        singles.append(
            no_time(one, why) if late else call(part, one, on_error=on_error, mark=stands)
        )
    return join(part, singles, [1] * len(singles))


def no_time(rows: Rows, together: str = "") -> HostScores:
    """Rows that no call of their own was made for; `together`: why the one for all failed."""
    why = f"no time was left for it{f' alone; {together}' if together else ''}"
    return HostScores({}, dict.fromkeys(rows.numbers, why))


def join(part: Part, pieces: Sequence[HostScores], sizes: Sequence[int]) -> HostScores:
    """The scores of consecutive rows, called in pieces of these sizes, put together.

    Raises RewardError if pieces have scores of different names.
    """
    names = next((list(piece.scores) for piece in pieces if piece.scores), [])
    for piece in pieces:
        if piece.scores and set(piece.scores) != set(names):
            raise RewardError(
                f"reward {part.name}: returned the scores {sorted(piece.scores)} for some rows, "
                f"{sorted(names)} for others; expected the same names for every row"
            )
    lacking = [np.full(size, np.nan, np.float32) for size in sizes]
    scores = {
        name: np.concatenate(
            [piece.scores.get(name, nan) for piece, nan in zip(pieces, lacking, strict=True)]
        )
        for name in names
    }
    return HostScores(scores, {row: why for piece in pieces for row, why in piece.failed.items()})


def _call(part: Part, rows: Rows, on_error: OnError, mark: Mark) -> HostScores:
    assert part.host is not None
    at = [-1]

    def note(row: int) -> None:
        at[0] = row
        mark(row)  # may have been told a row already, and ignores this one then

    prompts, responses = Watched(rows.prompts, note), Watched(rows.responses, note)
    taken = _taken_columns(part.host, rows.columns)
    columns = {name: Watched(values, note) for name, values in taken.items()}
    try:
        result = part.host(prompts, responses, **columns)
    except (Exception, SystemExit) as error:
        where = stood_at(rows, at[0])
        raise RewardError(f"reward {part.name} raised on {where}: {what_raised(error)}") from error
    scores, failed = {}, {}
    for name, values in _named(part, result, rows).items():
        scores[name], bad = _checked(name, values, rows)
        if bad and on_error == "abort":
            row, why = next(iter(bad.items()))
            raise RewardError(f"reward {name}, {rows.where(row)}: {why}")
        failed |= {rows.numbers[row]: why for row, why in bad.items()}
    missing = np.isin(rows.numbers, list(failed))
    return HostScores({k: np.where(missing, np.nan, v) for k, v in scores.items()}, failed)


def _named(part: Part, result: Any, rows: Rows) -> dict[str, Any]:
    """What a reward returned, by the name of each score."""
    if not isinstance(result, dict):
        return {part.name: result}
    where = stood_at(rows, -1)
    try:
        named = {f"{part.name}/{key}": values for key, values in result.items()}
    except Exception as error:  # an int may have too many digits to be written
        raise RewardError(
            f"reward {part.name} returned a {type(result).__name__} for {where} whose keys cannot "
            f"be read: {what_raised(error)}"
        ) from error
    if not named:
        raise RewardError(
            f"reward {part.name} returned an empty dict for {where}; expected a list a key"
        )
    return named


def stood_at(rows: Rows, row: int) -> str:
    """The row a function was seen to take last; it may have left the rows behind, or take them
    without Python's iteration."""
    if len(rows.numbers) == 1:
        return rows.where(0)
    if 0 <= row < len(rows.numbers):
        return rows.where(row)
    return f"a batch of {len(rows.numbers)} rows, the first of them {rows.where(0)}"


class Watched(list):
    """A list that tells which entry was taken last, -1 once an iteration has ended."""

    def __init__(self, values: Iterable, note: Mark):
        super().__init__(values)
        self.note = note

    def __iter__(self) -> Iterator:
        for row, value in enumerate(super().__iter__()):
            self.note(row)
            yield value
        self.note(-1)

    def __getitem__(self, index):
        if isinstance(index, int | np.integer) and -len(self) <= index < len(self):
            self.note(int(index) % len(self))
        return super().__getitem__(index)

    def __reduce__(self):  # a reward may hand it to processes of its own
        return list, (list(self),)


def _taken_columns(function: Callable, columns: dict[str, list]) -> dict[str, list]:
    parameters = parameters_of(function)
    # A column called like one of the first two would be passed twice.
    reserved = {p.name for p in parameters[:2]}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return {key: value for key, value in columns.items() if key not in reserved}
    names = {p.name for p in column_parameters(function)}
    return {key: value for key, value in columns.items() if key in names}


def _checked(name: str, values: Any, rows: Rows) -> tuple[np.ndarray, dict[int, str]]:
    """The scores of one part as float32 [B], and what is wrong with which rows."""
    scores_B, bad = np.zeros(len(rows.numbers), np.float32), {}
    for row, value in enumerate(_as_list(name, values, rows)):
        number = as_number(value)
        if number is None or not math.isfinite(number):
            kind = type(value).__name__
            bad[row] = f"{as_text(value)} of type {kind} is not a finite number"
        else:
            scores_B[row] = number
    return scores_B, bad


def _as_list(name: str, values: Any, rows: Rows) -> list | tuple:
    size = len(rows.numbers)
    if not isinstance(values, list | tuple) and hasattr(values, "__array__"):
        try:
            array = np.asarray(values)  # numpy, JAX or torch
        except Exception as error:  # one that is part of a gradient, or not on this device
            raise RewardError(
                f"reward {name} returned a {type(values).__name__} that is no array for "
                f"{stood_at(rows, -1)}: {what_raised(error)}"
            ) from error
        # [B, 1] is not let through: it would broadcast against [B].
        if array.shape != (size,):
            raise RewardError(
                f"reward {name} returned shape {array.shape} for {stood_at(rows, -1)}; "
                f"expected ({size},)"
            )
        values = array.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward {name} returned {type(values).__name__} {as_text(values)} for "
            f"{stood_at(rows, -1)}; expected a list of {size} numbers, or a dict of such lists"
        )
    try:
        values = list(values)
    except Exception as error:  # of a class of its own
        raise RewardError(
            f"reward {name} returned a {type(values).__name__} that cannot be read for "
            f"{stood_at(rows, -1)}: {what_raised(error)}"
        ) from error
    if len(values) != size:
        short = len(values) < size
        which = f"none for {rows.where(len(values))}" if short else f"the first: {rows.where(0)}"
        raise RewardError(f"reward {name} returned {len(values)} values for {size} rows; {which}")
    return values
