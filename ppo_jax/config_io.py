"""Configs as strict JSON: nested frozen dataclasses to plain dictionaries and back.

JSON has no infinities, so a float that is not finite is written as the string "inf", "-inf" or
"nan"; tuples are written as lists. Reading undoes both where the field's type asks for it.
"""

import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.ranges import check_type
from ppo_jax.storage import as_path, write_atomic

T = TypeVar("T")

NONFINITE = ("inf", "-inf", "nan")


def to_dict(config: Any) -> dict[str, Any]:
    """A nested dataclass as a dictionary that strict JSON can hold."""
    return {
        field.name: _encode(getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def from_dict(cls: type[T], data: Any, *, where: str = "config") -> T:
    """The dataclass `cls` from what `to_dict` gave; a key that is missing keeps its default.

    Raises ConfigError for an unknown key or a value of the wrong type, after `where`, the name of
    the source, with the dotted key, what was expected and the nearest valid name.
    """
    try:
        return _build(cls, data, "", cls)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def save_config(path: Path, config: Any) -> None:
    """Write a config as JSON, atomically."""
    write_atomic(path, json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n")


def load_config(path: Path) -> Config:
    """The Config of a run's `config.json`; ConfigError if it is missing or not one."""
    try:
        data = json.loads(as_path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    return from_dict(Config, data, where=str(path))


def diff(a: Any, b: Any) -> list[str]:
    """Each difference between two configs as `dotted.key: old -> new`."""
    return list(_differences(to_dict(a), to_dict(b), ""))


def nearest_key(cls: type, key: str) -> str | None:
    """The dotted key of the dataclass that was most likely meant by `key`, or None."""
    keys = list(_dotted_keys(cls))
    name = key.rsplit(".", 1)[-1]
    misplaced = [known for known in keys if known.rsplit(".", 1)[-1] == name]
    if misplaced:  # the right name in the wrong section, or in none
        return difflib.get_close_matches(key, misplaced, n=1, cutoff=0.0)[0]
    if close := difflib.get_close_matches(key, keys, n=1, cutoff=0.7):
        return close[0]
    by_name = {known.rsplit(".", 1)[-1]: known for known in keys}
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)
    return by_name[close[0]] if close else None


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _build(cls: type, data: Any, prefix: str, root: type) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'top level'}: must be an object, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            near = nearest_key(root, prefix + name)
            hint = f"did you mean {near}?" if near else f"valid here: {', '.join(fields)}"
            raise ConfigError(f"unknown key {prefix}{name}; {hint}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"missing key {prefix}{name}")
    values = {name: _decode(hints[name], data[name], prefix + name, root) for name in data}
    for name, value in values.items():
        check_type(prefix + name, value, hints[name])
    return cls(**values)


def _decode(hint: Any, value: Any, key: str, root: type) -> Any:
    """The value as its field holds it; one of a wrong type is passed on as it is."""
    options = _options(hint)
    section: Any = next(filter(dataclasses.is_dataclass, options), None)
    if section is not None and (value is not None or type(None) not in options):
        return _build(section, value, f"{key}.", root)
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        return tuple(value)
    if float in options and int not in options and _is_number(value):
        try:
            return float(value)
        except OverflowError:
            expected = f"at most {sys.float_info.max:.2g} in size"
            raise ConfigError(
                f"{key}: an integer beyond float's range; expected {expected}"
            ) from None
    return value


def _is_number(value: Any) -> TypeGuard[int | str]:
    return value in NONFINITE or (isinstance(value, int) and not isinstance(value, bool))


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        for option in _options(hints[field.name]):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                yield from _dotted_keys(option, f"{prefix}{field.name}.")


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)} -> {json.dumps(new)}"
