"""JSON lines from files that nobody vouches for: one object a line, every fault in one line.

Python's parser takes more than JSON allows and than a run can use; what would be stumbled over
later is refused here, where its line is still known.
"""

import codecs
import gzip
import json
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from ppo_jax.errors import DataError

# Line end included. A prompt this long takes the byte tokenizer 20 seconds and 3 GiB.
MAX_LINE_BYTES = 16 * 2**20
MAX_SHOWN = 60  # characters of a string of the file in an error
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes) of every line that is not blank, gunzipped if the file ends in .gz.

    At most MAX_LINE_BYTES + 1 bytes of a line are read, so that neither a file without line ends
    nor a gzip bomb fills the memory; `parse_object` refuses the lines that are longer.
    """
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(_bounded_lines(file), start=1):
                if len(raw) > MAX_LINE_BYTES or _without_mark(raw).strip():
                    yield line, raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{line + 1}: cannot be read: {error}") from error


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line; `where` (file:line) begins the DataError if it holds none.

    The strings in it can be written as UTF-8, its numbers are finite and no key stands twice.
    """
    try:
        return _parsed(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def json_type(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def shown(text: str) -> str:
    """A string of the file as an error shows it: quoted, on one line, and not at any length."""
    return repr(text) if len(text) <= MAX_SHOWN else repr(text[:MAX_SHOWN]) + "..."


def _bounded_lines(file: BufferedIOBase) -> Iterator[bytes]:
    while raw := file.readline(MAX_LINE_BYTES + 1):
        yield raw
        while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE_BYTES + 1)  # the rest of the line is passed over


def _without_mark(raw: bytes) -> bytes:
    # Some editors begin a file with a byte order mark: it begins a later line where such files
    # were joined. Anywhere else it is a character like any other.
    return raw.removeprefix(codecs.BOM_UTF8)


def _parsed(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"the line has more than {MAX_LINE_BYTES} bytes")
    # Text in UTF-16, or a block that was never written. The escape \u0000 is JSON and stays in the
    # string: to the tokenizer it is a character as any other, and the reward gets it as it is.
    if b"\0" in raw:
        raise ValueError(f"not JSON: NUL byte at position {raw.index(0) + 1}")
    row = DECODER.decode(_without_mark(raw).rstrip(b" \t\r\n").decode())
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {json_type(row)}")
    # An escape may stand for half of a surrogate pair, which neither a tokenizer nor a file takes.
    if SURROGATE.search(raw):
        for name, value in row.items():
            _check_writable(name, value)
    return row


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"not UTF-8: byte 0x{byte:02x} at position {error.start + 1}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python's parser keeps the last of equal keys, others the first: which one was meant?
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {shown(name)} stands twice in one object")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python refuses what would take it too long
        most = sys.get_int_max_str_digits()
        count = len(digits.removeprefix("-"))
        raise ValueError(f"an integer has {count} digits, at most {most} can be read") from None


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {shown(digits)} is beyond the range of a float")
    return value


def _reject_constant(name: str) -> None:
    # Python's parser lets NaN and Infinity through; in a column they would poison the reward.
    raise ValueError(f"not JSON: {name} is not a JSON number")


def _check_writable(name: str, value: Any) -> None:
    try:
        json.dumps({name: value}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = f"column {shown(name)} holds half of a surrogate pair (\\ud8..)"
        raise ValueError(message) from None


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_finite,
    parse_constant=_reject_constant,
)
