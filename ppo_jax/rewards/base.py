"""What a reward is: on the device or on the host, alone or as a weighted list."""

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.returned import MAX_FLOAT32, as_code
from ppo_jax.rewards.checks import is_number
from ppo_jax.types import Array, PyTree, Rollout

SIGNATURES = (
    "expected fn(rollout, columns) -> scores_B or rewards_BT for a reward on the device, "
    "fn(prompts, responses, **columns) -> list[float] or dict[str, list[float]] for one on the "
    "host, or a list of those or of (weight, reward) pairs"
)


class DeviceReward(NamedTuple):
    """A reward inside the compiled step. Its tables are arguments of the step, never closures."""

    name: str
    fn: Callable[[Rollout, dict[str, Any], PyTree], Array]  # (rollout, columns, tables)
    make_tables: Callable[[Any, int], PyTree]  # (tokenizer, vocab_size) -> numpy arrays
    texts: tuple[str, ...] = ()  # columns of strings it reads: `columns[name]` is a `types.Texts`


class LearnedReward(NamedTuple):
    """A reward inside the compiled step that is a model's: see `rewards.learned`."""

    name: str
    path: str  # of a reward model's run, or of a sequence classifier of one output


class Part(NamedTuple):
    """One summand of the reward: `device`, `host` or `learned` is set, the others are None."""

    name: str
    weight: float
    device: DeviceReward | None
    host: Callable | None
    learned: LearnedReward | None = None
    known: tuple[str, tuple[str, ...]] | None = None  # a column, and what may stand there


NAMED = DeviceReward, LearnedReward, Part
ROWS = ".rows"  # `<name>.rows`: 1 at the rows that the part of that name speaks of; see `by_task`


def parse_rewards(reward) -> list[Part]:
    """The parts of what an experiment names as its reward, in order, with unique names.

    Takes a `DeviceReward`, a `LearnedReward`, a device function, a host function, a `Part`, a pair
    (weight, reward), or a list of any of these. A name that is taken gets the suffix `_2`, `_3`, ….
    Raises `ConfigError` for anything else and for a weight that is not a finite number.
    """
    given = reward if _is_list(reward) else [reward]
    if not given:
        raise ConfigError(f"reward: the list is empty; {SIGNATURES}")
    pairs = (item if _is_pair(item) else (1.0, item) for item in given)
    found = [_parse_one(item, _parse_weight(weight, item)) for weight, item in pairs]
    _check_tasks([part.name for part in found])
    parts: list[Part] = []
    for part in found:
        taken = {other.name for other in parts}
        name, count = part.name, 1
        while name in taken:
            count += 1
            name = f"{part.name}_{count}"
        parts.append(part._replace(name=name))
    return parts


def _check_tasks(names: list[str]) -> None:
    """A part and the rows that it speaks of are found by their names, which must be their own."""
    for name in names:
        task = name.removesuffix(ROWS)
        if names.count(name) > 1 and task + ROWS in names:
            raise ConfigError(
                f"reward {name}: a second one of that name, where {task} is a task (by_task); give "
                "one of them another name"
            )


def text_columns(parts: Iterable[Part]) -> tuple[str, ...]:
    """The columns of strings that rewards on the device read, each once."""
    found = (name for part in parts if part.device is not None for name in part.device.texts)
    return tuple(dict.fromkeys(found))


def check_columns(part: Part, columns: Collection[str]) -> None:
    """Raises `ConfigError` if the host function asks for a keyword that is not a column."""
    if part.host is None:
        return
    for parameter in column_parameters(part.host):
        if parameter.name not in columns and parameter.default is parameter.empty:
            present = ", ".join(sorted(columns)) or "none"
            raise ConfigError(
                f"reward {part.name}: `{parameter.name}` is not a column of the data "
                f"(columns: {present})"
            )


def check_values(part: Part, columns: dict[str, list], lines: list[int], path: str) -> None:
    """Raises `DataError` at the first row whose value in the column of `part.known` is none of its
    values; `lines` are the rows' own in the file."""
    if part.known is None:
        return
    column, known = part.known
    for line, value in zip(lines, columns[column], strict=True):
        for one in value if isinstance(value, list) else [value]:
            if one not in known:
                raise DataError(
                    f"{path}:{line}: {column} is {str(one)[:80]!r}, which has no reward; known: "
                    f"{', '.join(known)}"
                )


def _is_list(reward) -> bool:
    # A reward with a name of its own and a (weight, reward) pair are tuples too.
    is_sequence = isinstance(reward, list | tuple) and not isinstance(reward, NAMED)
    return is_sequence and not _is_pair(reward)


def _is_pair(item) -> bool:
    """A tuple or list of two whose first entry cannot be a reward, so it stands for a weight."""
    if isinstance(item, NAMED) or not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return not callable(item[0]) and not isinstance(item[0], list | tuple)


def _parse_weight(weight, item) -> float:
    if not is_number(weight) or abs(weight) > MAX_FLOAT32:
        raise ConfigError(
            f"reward {_name(item)}: weight {as_code(weight)} is not a finite number of float32; "
            f"{SIGNATURES}"
        )
    return float(weight)


def _parse_one(item, weight: float) -> Part:
    if isinstance(item, DeviceReward):
        return Part(item.name, weight, item, None)
    if isinstance(item, LearnedReward):
        return Part(item.name, weight, None, None, item)
    if isinstance(item, Part):
        return item._replace(weight=weight * item.weight)
    parameters = parameters_of(item)
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


def parameters_of(function) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not callable, or a builtin that does not tell
        return []


def column_parameters(function) -> list[inspect.Parameter]:
    by_keyword = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    return [p for p in parameters_of(function)[2:] if p.kind in by_keyword]


def _name(item) -> str:
    if isinstance(item, NAMED):
        return item.name
    function = getattr(item, "func", item)  # of a functools.partial
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name
