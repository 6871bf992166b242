"""What a reward is: on the device or on the host, alone or as a weighted list."""

import inspect
import math
import numbers
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.types import Array, PyTree, Rollout

SIGNATURES = (
    "expected fn(rollout, columns) -> scores_B or rewards_BT for a reward on the device, "
    "fn(prompts, responses, **columns) -> list[float] or dict[str, list[float]] for one on the "
    "host, or a list of those or of (weight, reward) pairs"
)
REPLAY_SECONDS = 10.0  # spent at most on finding the row a failed host reward stumbled over


class DeviceReward(NamedTuple):
    """A reward inside the compiled step. Its tables are arguments of the step, never closures."""

    name: str
    fn: Callable[[Rollout, dict[str, Array], PyTree], Array]  # (rollout, columns, tables)
    make_tables: Callable[[Any, int], PyTree]  # (tokenizer, vocab_size) -> numpy arrays


class Part(NamedTuple):
    """One summand of the reward: `device` or `host` is set, the other is None."""

    name: str
    weight: float
    device: DeviceReward | None
    host: Callable | None


def parse_rewards(reward) -> list[Part]:
    """The parts of what an experiment names as its reward, in order, with unique names.

    Takes a `DeviceReward`, a device function, a host function, a (weight, reward) pair, or a list
    of any of these. A name that is taken gets the suffix `_2`, `_3`, ….
    Raises `ConfigError` for anything else and for a weight that is not a finite number.
    """
    given = reward if _is_list(reward) else [reward]
    if not given:
        raise ConfigError(f"reward: the list is empty; {SIGNATURES}")
    parts: list[Part] = []
    for item in given:
        weight, item = item if _is_pair(item) else (1.0, item)
        part = _parse_one(item, _parse_weight(weight, item))
        taken = {other.name for other in parts}
        name, count = part.name, 1
        while name in taken:
            count += 1
            name = f"{part.name}_{count}"
        parts.append(part._replace(name=name))
    return parts


def check_columns(part: Part, columns: Collection[str]) -> None:
    """Raises `ConfigError` if the host function asks for a keyword that is not a column."""
    if part.host is None:
        return
    for parameter in _column_parameters(part.host):
        if parameter.name not in columns and parameter.default is parameter.empty:
            present = ", ".join(sorted(columns)) or "none"
            raise ConfigError(
                f"reward {part.name}: `{parameter.name}` is not a column of the data "
                f"(columns: {present})"
            )


def host_scores(
    part: Part, prompts: Sequence, responses: Sequence[str], columns: dict[str, list]
) -> dict[str, np.ndarray]:
    """Calls a host reward and checks what comes back.

    The function gets those columns that it takes by keyword. The result is float32 of shape [B]
    under the part's name, or under `name/key` for each key of a returned dict; the weight is not
    applied. Raises `RewardError` naming the function, the row and its prompt if the function
    raises, returns another length or type, or anything but finite numbers.
    """
    check_columns(part, columns)
    taken = _taken_columns(part.host, columns)
    assert part.host is not None
    try:
        result = part.host(list(prompts), list(responses), **taken)
    except Exception as error:
        where = _failing_row(part.host, prompts, responses, taken)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(f"reward {part.name} raised on {where}: {what}") from error
    if not isinstance(result, dict):
        return {part.name: _checked(part.name, result, prompts)}
    if not result:
        raise RewardError(f"reward {part.name} returned an empty dict; expected a list a key")
    return {
        name: _checked(name, values, prompts)
        for name, values in ((f"{part.name}/{key}", value) for key, value in result.items())
    }


def _is_list(reward) -> bool:
    # A DeviceReward and a (weight, reward) pair are tuples too.
    is_sequence = isinstance(reward, list | tuple) and not isinstance(reward, DeviceReward)
    return is_sequence and not _is_pair(reward)


def _is_pair(item) -> bool:
    """A tuple or list of two whose first entry cannot be a reward, so it stands for a weight."""
    if isinstance(item, DeviceReward) or not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return not callable(item[0]) and not isinstance(item[0], list | tuple)


def _parse_weight(weight, item) -> float:
    is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight):
        raise ConfigError(
            f"reward {_name(item)}: weight {weight!r} is not a finite number; {SIGNATURES}"
        )
    return float(weight)


def _parse_one(item, weight: float) -> Part:
    if isinstance(item, DeviceReward):
        return Part(item.name, weight, item, None)
    parameters = _parameters(item)
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    first_two = [p.name for p in parameters[:2] if p.kind in positional]
    if first_two == ["prompts", "responses"]:
        return Part(_name(item), weight, None, item)
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    required = [p for p in parameters[2:] if p.default is p.empty and p.kind not in variadic]
    if first_two == ["rollout", "columns"] and not required:
        fn = lambda rollout, columns, tables: item(rollout, columns)
        return Part(_name(item), weight, DeviceReward(_name(item), fn, _no_tables), None)
    shown = repr(item)
    if callable(item):
        shown = f"{_name(item)}({', '.join(map(str, parameters))})"
    raise ConfigError(f"reward: {shown} is not a reward; {SIGNATURES}")


def _no_tables(tokenizer, vocab_size: int) -> PyTree:
    return ()


def _parameters(function) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not callable, or a builtin that does not tell
        return []


def _column_parameters(function) -> list[inspect.Parameter]:
    by_keyword = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    return [p for p in _parameters(function)[2:] if p.kind in by_keyword]


def _taken_columns(function, columns: dict[str, list]) -> dict[str, list]:
    parameters = _parameters(function)
    # A column called like one of the first two would be passed twice.
    reserved = {p.name for p in parameters[:2]}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return {key: value for key, value in columns.items() if key not in reserved}
    names = {p.name for p in _column_parameters(function)}
    return {key: value for key, value in columns.items() if key in names}


def _name(item) -> str:
    if isinstance(item, DeviceReward):
        return item.name
    function = getattr(item, "func", item)  # of a functools.partial
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name


def _at(row: int, prompts: Sequence) -> str:
    return f"row {row} (prompt {str(prompts[row])[:80]!r})"


def _failing_row(function, prompts, responses, columns) -> str:
    """Replays the rows one by one: a traceback does not say which one the function stood at."""
    deadline = time.monotonic() + REPLAY_SECONDS
    for row in range(len(prompts)):
        if time.monotonic() > deadline:
            break
        one_row = {key: [values[row]] for key, values in columns.items()}
        try:
            function([prompts[row]], [responses[row]], **one_row)
        except Exception:
            return _at(row, prompts)
    return (
        f"a batch of {len(prompts)} rows (no row alone does it; prompt 0 {str(prompts[0])[:80]!r})"
    )


def _checked(name: str, result, prompts: Sequence) -> np.ndarray:
    """The scores of one part as float32 [B], or a `RewardError`."""
    scores_B = np.zeros(len(prompts), np.float32)
    for row, value in enumerate(_as_list(name, result, prompts)):
        number = _number(value)
        if number is None or not math.isfinite(number):
            raise RewardError(
                f"reward {name}, {_at(row, prompts)}: {str(value)[:80]!r} of type "
                f"{type(value).__name__} is not a finite number"
            )
        scores_B[row] = number
    return scores_B


def _as_list(name: str, values, prompts: Sequence) -> list | tuple:
    size = len(prompts)
    if not isinstance(values, list | tuple) and hasattr(values, "__array__"):
        array = np.asarray(values)  # numpy, JAX or torch
        # [B, 1] is not let through: it would broadcast against [B].
        if array.shape != (size,):
            raise RewardError(f"reward {name} returned shape {array.shape}; expected ({size},)")
        values = array.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward {name} returned {type(values).__name__} {str(values)[:80]!r}; "
            f"expected a list of {size} numbers, or a dict of such lists"
        )
    if len(values) != size:
        lacking = f"; none for {_at(len(values), prompts)}" if len(values) < size else ""
        raise RewardError(f"reward {name} returned {len(values)} values for {size} rows{lacking}")
    return values


def _number(value) -> float | None:
    """As float32 holds it (beyond its range: inf), or None if it is no number."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "__array__"):
        value = np.asarray(value).item()  # scalars of numpy, JAX or torch
    if not isinstance(value, numbers.Real):
        return None
    with np.errstate(over="ignore"):
        try:
            return float(np.float32(float(value)))
        except OverflowError:  # an int or a fraction beyond float64
            return math.inf
