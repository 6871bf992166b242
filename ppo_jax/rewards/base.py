"""What a reward is: on the device or on the host, alone or as a weighted list."""

import inspect
import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ppo_jax.errors import ConfigError
from ppo_jax.types import Array, PyTree, Rollout

SIGNATURES = (
    "expected fn(rollout, columns) -> scores_B or rewards_BT for a reward on the device, "
    "fn(prompts, responses, **columns) -> list[float] or dict[str, list[float]] for one on the "
    "host, or a list of those or of (weight, reward) pairs"
)


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
    for parameter in column_parameters(part.host):
        if parameter.name not in columns and parameter.default is parameter.empty:
            present = ", ".join(sorted(columns)) or "none"
            raise ConfigError(
                f"reward {part.name}: `{parameter.name}` is not a column of the data "
                f"(columns: {present})"
            )


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
    if isinstance(item, DeviceReward):
        return item.name
    function = getattr(item, "func", item)  # of a functools.partial
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name
