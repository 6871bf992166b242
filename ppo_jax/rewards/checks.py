"""What host rewards ask of their options, columns and packages; one clear line where it lacks."""

import importlib.util
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.returned import as_code
from ppo_jax.text import install_hint


def need_package(reward: str, package: str, extra: str) -> None:
    """Raises ConfigError with how to get it if a package is not installed. Imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"reward {reward}: the package {package} is not installed: "
            f"{install_hint(package, extra)}"
        )


def need_number(reward: str, option: str, value: Any, low: float, high: float = math.inf) -> float:
    """The value of an option as a float; ConfigError unless low <= value <= high, and finite."""
    if is_number(value) and low <= value <= high:
        return float(value)
    wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    raise ConfigError(f"reward {reward}: {option} is {value!r}; expected a finite number {wanted}")


def need_whole(reward: str, option: str, value: Any, low: int) -> int:
    """The value of an option; ConfigError unless it is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(
            f"reward {reward}: {option} is {as_code(value)}; expected a whole number of at least "
            f"{low}"
        )
    return value


def whole_argument(name: str, value: Any, low: int, high: int) -> int:
    """The value of an argument; ConfigError unless it is a whole number from `low` to `high`."""
    nearest = nearest_whole(value, low, high)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and nearest == value:
        return nearest
    raise ConfigError(
        f"{name}={as_code(value)}: must be a whole number from {low} to {high}; "
        f"nearest valid: {nearest}"
    )


def nearest_whole(value: Any, low: int, high: int) -> int:
    """The whole number from `low` to `high` next to a value; `low` for what is no number."""
    try:
        number = int(value) if isinstance(value, numbers.Integral) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return low
    return max(low, min(number, high))


def need_choice(reward: str, option: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the choices, for an option that is none of them."""
    if value not in choices:
        raise ConfigError(
            f"reward {reward}: {option} is {value!r}; expected one of {', '.join(choices)}"
        )


def is_number(value: Any) -> bool:
    """A finite real number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Rational) or math.isfinite(value)


def rows(responses: Sequence[str], **columns: Sequence) -> Iterator[tuple]:
    """(response, value of each column) row by row.

    Raises DataError for columns of another length, and at a row whose response is no string.
    """
    for name, values in columns.items():
        if len(values) != len(responses):
            raise DataError(f"column {name}: {len(values)} values for {len(responses)} responses")
    for response, *values in zip(responses, *columns.values(), strict=True):
        if not isinstance(response, str):
            raise DataError(f"a response is a {type(response).__name__}; expected a string")
        yield response, *values


def texts(column: str, value: Any) -> list[str]:
    """A column's string or non-empty list of strings, as a list; DataError for anything else."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given or not all(map(_is_text, given)):
        raise DataError(
            f"column {column}: {str(value)[:80]!r} of type {type(value).__name__}; expected a "
            "string, or a list of strings that is not empty"
        )
    return list(given)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
