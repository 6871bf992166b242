"""Lines of JSON: what is refused, where, and how much is read of what has no end."""

import contextlib
import gzip
import json
import sys
import tracemalloc

import pytest

from ppo_jax import jsonl
from ppo_jax.errors import DataError
from ppo_jax.jsonl import json_type, parse_object, read_lines, shown

MARK = b"\xef\xbb\xbf"
DIGITS = sys.get_int_max_str_digits()


def lines_of(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return list(read_lines(path))


def objects(path, content):
    return [(line, parse_object(raw, f"{path}:{line}")) for line, raw in lines_of(path, content)]


def refused(raw):
    with pytest.raises(DataError) as caught:
        parse_object(raw, "a.jsonl:7")
    place, reason = str(caught.value).split(": ", 1)
    assert place == "a.jsonl:7" and "\n" not in reason and len(reason) < 200
    return reason


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n", b" \n\t\n\n"])
def test_blank_lines_and_line_ends(tmp_path, name, end, last):
    content = end.join([b'{"a": 1}', b"", b"  ", b' {"a": 2} ']) + last
    assert objects(tmp_path / name, content) == [(1, {"a": 1}), (4, {"a": 2})]


def test_byte_order_mark_begins_any_line_of_joined_files(tmp_path):
    part = MARK + b'{"a": "b"}\n'
    content = part + part + MARK + b"\n" + b'{"a": "\xef\xbb\xbf"}\n'
    expected = [(1, {"a": "b"}), (2, {"a": "b"}), (4, {"a": "\ufeff"})]
    assert objects(tmp_path / "a.jsonl", content) == expected
    assert lines_of(tmp_path / "empty.jsonl", MARK) == []
    assert "not JSON: " in refused(MARK + MARK + b'{"a": 1}')
    assert refused(b"{" + MARK + b'"a": 1}').startswith("not JSON: Expecting property name")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' stands twice in one object"),
        (b'{"a": [{"b": 1, "b": 1}]}', "key 'b' stands twice in one object"),
        (b'{"\\n": 1, "\\u000a": 1}', r"key '\n' stands twice in one object"),
        (b'{"a\0": 1}', "not JSON: NUL byte at position 4"),
        (b"plain text", "not JSON: Expecting value at column 1"),
        (b'["prompt", "a"]', "expected a JSON object, got a list"),
        (b'"prompt"', "expected a JSON object, got a string"),
        (b'{"a": 1}\xc2\xa0\n', "not JSON: Extra data at column 9"),
        (b"null", "expected a JSON object, got null"),
        (b'{"a": NaN}', "not JSON: NaN is not a JSON number"),
        (b"\0\0\0", "not JSON: NUL byte at position 1"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON: NUL byte at position 2"),
        ("é".encode("latin-1"), "not UTF-8: byte 0xe9 at position 1"),
        ("😀".encode()[:2], "not UTF-8: byte 0xf0 at position 1"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at position 8"),
        (b'{"a": "\t"}', "not JSON: Invalid control character at column 8"),
        (b'{"a": "b\n', "not JSON: Unterminated string starting at column 7"),
        (b'{"a": 1\n', "not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": 1} {"a": 2}\n', "not JSON: Extra data at column 10"),
        (b'{"a": [-Infinity]}', "not JSON: -Infinity is not a JSON number"),
        (b'{"a": -1e999}', "the number '-1e999' is beyond the range of a float"),
        (b'{"a": "\\udc00"}', r"column 'a' holds half of a surrogate pair (\ud8..)"),
        (
            b'{"a": 1, "b": [{"c": "\\ud83d"}]}',
            r"column 'b' holds half of a surrogate pair (\ud8..)",
        ),
        (b'{"\\ud800": 1}', r"column '\ud800' holds half of a surrogate pair (\ud8..)"),
    ],
)
def test_refused_lines(raw, reason):
    assert refused(raw) == reason


def test_numbers_too_long_to_convert():
    most = int("9" * DIGITS)
    assert parse_object(b'{"a": %s}' % (b"9" * DIGITS), "") == {"a": most}
    reason = f"an integer has {DIGITS + 1} digits, at most {DIGITS} can be read"
    assert refused(b'{"a": -%s}' % (b"9" * (DIGITS + 1))) == reason
    assert refused(b'{"a": %s.0}' % (b"9" * 10_000)).endswith("beyond the range of a float")


@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting(left, right):
    def nested(depth):
        return b'{"a":' + left * depth + rb'"\ud83d\ude00"' + right * depth + b"}"

    assert parse_object(nested(200), "")
    for depth in (10**5, 10**6):
        assert refused(nested(depth)) == "lists or objects are nested too deeply"
    # Where the parser's stack just suffices the check's may not: a fault of the line even so.
    for depth in range(800, 1000):
        with contextlib.suppress(DataError):
            parse_object(nested(depth), "")


def test_escapes_that_are_characters():
    row = {"prompt": "a\0b", "n": ["😀", "\0", "\u2028"]}
    assert parse_object(json.dumps(row).encode(), "") == row
    assert parse_object(json.dumps(row, ensure_ascii=False).encode(), "") == row


def test_a_line_of_ten_megabytes_is_read(tmp_path):
    row = {"prompt": "x" * 10_000_000}
    assert objects(tmp_path / "a.jsonl", json.dumps(row).encode()) == [(1, row)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("length", [12, 13, 14, 25, 26, 27, 39, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_too_long_a_line_counts_as_one(tmp_path, monkeypatch, name, length, end):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 12)
    long = b'{"a":"%s"}' % (b"b" * (length - 8)) + end
    short = b'{"a": 1}' + end
    found = lines_of(tmp_path / name, short + long + b" " * 40 + end + short)
    assert [line for line, _ in found] == [1, 2, 3, 4]
    assert max(len(raw) for _, raw in found) == 13
    assert refused(found[1][1]) == refused(found[2][1]) == "the line has more than 12 bytes"
    assert parse_object(found[3][1], "") == {"a": 1}
    fits = b'{"a":"bc"}' + end
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", len(fits))
    assert objects(tmp_path / name, fits + fits) == [(1, {"a": "bc"}), (2, {"a": "bc"})]


def test_what_has_no_line_end_is_not_read_whole(tmp_path, monkeypatch):
    """Compressed 1000 times over, as in a bomb: the memory goes by the limit on a line."""
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**16)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "' + b"a" * 2**25))
    tracemalloc.start()
    try:
        ((line, raw),) = read_lines(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (line, len(raw)) == (1, 2**16 + 1) and peak < 2**21


def test_a_file_that_breaks_off_names_the_line(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 3, compresslevel=0)
    path.write_bytes(whole[:-10])
    with pytest.raises(
        DataError, match=r"cut\.jsonl\.gz:\d: cannot be read: Compressed file ended"
    ):
        list(read_lines(path))
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz:1: cannot be read: Not a gzipped file"):
        list(read_lines(path))


def test_words_for_types_and_strings():
    values = {"a list": [], "an object": {}, "a string": "", "a boolean": True, "null": None}
    assert {json_type(value): value for value in values.values()} == values
    assert json_type(1) == json_type(0.5) == "a number"
    assert shown("a\x1b\n\u202e") == r"'a\x1b\n\u202e'"
    assert shown("b" * 10**6) == f"'{'b' * jsonl.MAX_SHOWN}'..."
