"""The automata of regular expressions against Python's `re`, on the host."""

import random
import re
import time

import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.regex_dfa import Dfa, compile_dfa

LETTERS = ["a", "b", "0", "_", " ", "\n", "<", "é", "ü", "日", "本", "😀", "\ud7ff", "\ue000"]


def re_fullmatch(pattern: str | bytes, text: bytes) -> bool:
    if isinstance(pattern, bytes):
        return re.fullmatch(pattern, text, re.DOTALL) is not None
    try:
        return re.fullmatch(pattern, text.decode(), re.ASCII | re.DOTALL) is not None
    except UnicodeDecodeError:
        return False


def accepts(dfa: Dfa, text: bytes) -> bool:
    state = 0
    for byte in text:
        state = dfa.next_SC[state, dfa.class_256[byte]]
    return bool(dfa.accepts_S[state])


def random_texts(dfa: Dfa, rng: random.Random, count: int, limit: int) -> list[bytes]:
    """Bytes that mostly stay on the way to a match, some broken, some of letters at random."""
    far_S = np.where(dfa.accepts_S, 0, 10**6)  # steps to a match
    for _ in far_S:
        far_S = np.minimum(far_S, far_S[dfa.next_SC].min(axis=1) + 1)
    ways = [_ways(dfa, far_S, state) for state in range(len(far_S))]
    found = []
    for _ in range(count):
        kind = rng.randrange(8)
        if kind == 0:
            found.append("".join(rng.choices(LETTERS, k=rng.randrange(limit // 4))).encode())
            continue
        text = _walk(ways, rng, limit)
        if kind == 1 and text:  # a byte is lost, doubled or another
            at = rng.randrange(len(text))
            middle = rng.choice([b"", 2 * text[at : at + 1], bytes([rng.randrange(256)])])
            text = text[:at] + middle + text[at + 1 :]
        found.append(text[:limit])
    return found


def _ways(dfa: Dfa, far_S: np.ndarray, state: int):
    """Whether a state accepts, and (class's bytes, state) of its steps: on the way, and nearer."""
    after_C = dfa.next_SC[state]
    members = [np.flatnonzero(dfa.class_256 == c).tolist() for c in range(len(after_C))]
    steps = [(members[c], after) for c, after in enumerate(after_C.tolist())]
    on_way = [step for step in steps if dfa.viable_S[step[1]]]
    return bool(dfa.accepts_S[state]), on_way, [s for s in on_way if far_S[s[1]] < far_S[state]]


def _walk(ways, rng: random.Random, limit: int) -> bytes:
    text, state, straight = [], 0, rng.choice([0.5, 0.95, 1.0])
    while len(text) < limit:
        accepting, on_way, nearer = ways[state]
        if not on_way or (accepting and rng.random() < 0.3):
            break
        members, state = rng.choice(nearer if nearer and rng.random() < straight else on_way)
        text.append(rng.choice(members))
    return bytes(text)


def random_pattern(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(9) if depth else rng.randrange(3)
    if kind < 2:
        return re.escape(rng.choice(LETTERS))
    if kind == 2:
        first, last = sorted(rng.choices(LETTERS, k=2))
        negated = rng.choice(["", "^"])
        some = [".", r"\d", r"\W", r"\s", r"\D", f"[{negated}{first}-{last}]"]
        return rng.choice([*some, f"[{negated}{re.escape(first)}\\w]", f"[^{re.escape(last)}]"])
    inner = random_pattern(rng, depth - 1)
    if kind < 5:
        repeat = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{,2}", "{2,}?"]
        return f"(?:{inner}){rng.choice(repeat)}"
    other = random_pattern(rng, depth - 1)
    return f"({inner}|{other})" if kind == 5 else inner + other


def smallest(dfa: Dfa) -> int:
    """States that some continuation tells apart, by plain refinement (Moore)."""
    block_S, count = dfa.accepts_S.astype(int), 0
    while len(set(block_S)) > count:
        count = len(set(block_S))
        told = np.concatenate([block_S[:, None], block_S[dfa.next_SC]], axis=1)
        block_S = np.unique(told, axis=0, return_inverse=True)[1].reshape(-1)
    return count


def test_random_patterns_equal_python():
    rng, seen = random.Random(0), []
    for _ in range(400):
        pattern = random_pattern(rng, 4)
        try:
            dfa = compile_dfa(pattern, "here")
        except ConfigError as error:
            assert "can never match" in str(error)  # such as [^\x00-...]: nothing is left
            continue
        assert smallest(dfa) == len(dfa.accepts_S)
        for text in random_texts(dfa, rng, 40, 24):
            seen.append(re_fullmatch(pattern, text))
            assert accepts(dfa, text) == seen[-1], (pattern, text)
    assert len(seen) > 10_000 and 0.3 < np.mean(seen) < 0.9


@pytest.mark.parametrize(
    "pattern",
    [r"\x41\u00e9\U0001F600", r"[]a]", r"[^]a-]*", r"a{,2}b{", r"{", r"(?P<x>a)|(?:b)(?#c)"]
    + [r"(?x) a b # c", r"(?s)a.", r"(?a)\w", r"^a+$", r"\Aa\Z", r"a\.\*\n\t\\", r"a||b", r"(|a)+b"]
    + [r"(a*)*b", r"(a*|b)c", r"((a|b)*(b|é))*", r"(?:a?){5}a{5}", r"[\d\D]", r"[a\-z]+", "a{0}b"]
    + [rb"\xff[\x80-\xfe]?", rb"[^a]*", rb"\w+\s", rb"(?s)."],
    ids=ascii,
)
def test_syntax_equals_python(pattern):
    rng = random.Random(0)
    dfa = compile_dfa(pattern, "here")
    seen = []
    for text in random_texts(dfa, rng, 300, 12):
        seen.append(re_fullmatch(pattern, text))
        assert accepts(dfa, text) == seen[-1], text
    assert any(seen) and not all(seen)


def test_every_border_of_utf8():
    near = {
        cut + d for cut in (0x80, 0x800, 0xD800, 0xE000, 0x10000, 0x110000) for d in (-2, -1, 0)
    }
    near |= {0, 0x7C0, 0xFC0, 0x1000, 0xFFF, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x20AC, 0xE9}
    points = sorted(p for p in near if p < 0x110000 and not 0xD800 <= p < 0xE000)
    for low in points:
        for high in points:
            if low <= high:
                dfa = compile_dfa(f"[\\U{low:08x}-\\U{high:08x}]", "here")
                for point in points:
                    assert accepts(dfa, chr(point).encode()) == (low <= point <= high)
    anything = compile_dfa(".", "here")
    wrong = [
        b"\x80",
        b"\xc0\x80",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
    ]
    assert not any(accepts(anything, text) for text in [*wrong, b"", b"ab"])


def test_sizes():
    assert len(compile_dfa("(a|b)*abb", "here").accepts_S) == 5  # one of them lost
    assert len(compile_dfa("a{3}|a{3}", "here").accepts_S) == 5
    dfa = compile_dfa(rb".*", "here")
    assert dfa.next_SC.shape == (1, 1) and dfa.viable_S.all()
    assert len(compile_dfa(".{0,1000}", "here").accepts_S) == 8002
    assert compile_dfa("[ -~]{0,2000}", "here").next_SC.dtype == np.int16


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "a backreference"),
        (r"(a)?(?(1)b|c)", "a conditional group"),
        (r"(?=a)a", "a lookaround"),
        (r"(?<!a)b", "a lookaround"),
        (r"(?!)", "a lookaround"),
        (r"a$b", "an anchor"),
        (r"^a|b$", "an anchor"),
        (r"\bword\b", "a word boundary"),
        (r"a*+", "a possessive repeat"),
        (r"(?>a)", "an atomic group"),
        (r"(?i)a", "IGNORECASE"),
        (r"(?m)a", "MULTILINE"),
        (r"a(?i:b)", "IGNORECASE"),
        (r"(?-s:.)", "the flag s"),
        (r"(?u)\w", "incompatible"),
        (rb"(?L)a", "LOCALE"),
        ("(a", "unterminated"),
        ("*a", "nothing to repeat"),
        ("a" * 200 + "[", "unterminated"),
        ("a\nb(", "unterminated"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        (r"(a|b)*a(a|b){20}", "more than 8192 states"),
        (r".{2000}", "more than 8192 states"),
        (r"((a{100}){100}){100}", "more than 65536 nodes"),
        (r"(){4000000000}", "more than 65536 nodes"),
        (r"(((a{0,30}){0,30}){0,30})", "more than 2097152 steps"),
        (r"[^\x00-\U0010ffff]", "can never match"),
        ("a\ud800", "can never match"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_refusals_name_the_pattern(pattern, reason):
    with pytest.raises(ConfigError) as caught:
        compile_dfa(pattern, "reward mine")
    message = str(caught.value)
    assert message.startswith(f"reward mine: the pattern {pattern[:80]!r}")
    assert reason in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    "pattern",
    ["(((a{0,30}){0,30}){0,30})", "(a?){8000}", "(?:[a-z]?[0-9]?){4000}", "(.{0,60}){0,60}"]
    + ["((a|)*b?){3000}", r"(?:\w*\s*){2000}x"],
)
def test_a_pattern_that_takes_long_is_refused_soon(pattern):
    """In processor time, of which a busy machine takes more; unlimited it would be minutes."""
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"^reward mine: the pattern '.*' cannot be used: its au"):
        compile_dfa(pattern, "reward mine")
    assert time.process_time() - start < 10
