"""Arithmetic that a model wrote: against a parser and a tree of our own, and against attacks."""

import re
import time
import warnings
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_jax.rewards import arithmetic
from ppo_jax.rewards.arithmetic import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_MAGNITUDE,
    MAX_TAIL,
    TOKEN,
    evaluate,
    last_number,
    numbers_used,
)

checked = settings(max_examples=500, deadline=None, database=None, derandomize=True)

CANARY = "canary"
ON_ONE_LINE = rf"""
__import__('os').system('touch {CANARY}') | open('{CANARY}', 'w') | exit() | x | True | not 1
9**9**9 | 2**-1 | (9**9)**9 | 7//2 | 7%2 | 1@2 | ~1 | 1<<9 | 1<2 | 1==1 | 1 if 1 else 2 | await 1
1/0 | 1/(2-2) | 0/0 | 1/0.0 | -1/-0 | 1.0/(0.1+0.2-0.3)
٣ | ３ | 1+² | ½ | 1−2 | 2×3 | 6÷2 | 1_000 | 0x10 | 0o7 | 0b1 | 1e9 | 1e999 | 1E-5 | 1j | 1.5j
lambda: 1 | (lambda: 1)() | f'{{1}}' | '1' | b'1' | (x := 1) | [1] | {{1}} | (1,) | () | 1.real
1 # one | 1; | 1 2 | 1 1+1 | 1+1=2 | 1+1 apples | 1+ | *1 | (1 | 1) | )( | 1 . | 007 | 1,000 | $5
1(2) | (1)(2) | 1.(2) | 0x1for x in y | 1or 2 | 1if 2else 3 | 1and 2 | '\d' | 1is 1
. | ... | .. | 1.. | 1.2.3 | 1. .5 | *
"""
ATTACKS = [
    *(attack for line in ON_ONE_LINE.split("\n") for attack in line.split(" | ")),  # "" among them
    *("9" * 10**5, "1+" * 10**5 + "1", "-" * 10**5 + "1", "(" * 10**5 + "1" + ")" * 10**5),
    *("(" * 127 + "1" + ")" * 127, "(" * 255, "-" * 255 + "1", "+1" * 128, "(" * 127 + ")" * 127),
    *("(" * 84 + "1 1" + ")" * 84, "1(" * 84 + ")" * 84, "*".join(["9" * 84] * 3)),
    *("1\0", "\0", "1\0+1", "\ud800", "1+\udfff", "\ufeff1", "1\u00a0+1", "\u200b1", "1\u20281"),
    *(" ", "\n", "1\\\n+1", "1\n+1", "(1\n)", "1\f", "1\t+1", "1\r2"),
]

tokens = [*"+-*/()", " ", "0", "1", "7", "12", "007", "0.1", "2.", ".5", "**", "//", ".", "..."]
texts_near_the_grammar = st.lists(st.sampled_from(tokens), max_size=12).map("".join)


class Parser:
    """The documented grammar, by recursive descent: an independent reading of it."""

    def __init__(self, text):
        self.tokens = re.findall(r"[0-9]+\.?[0-9]*|\.[0-9]+|[^ ]", text) + ["end"]
        self.numbers = []

    def take(self, *wanted):
        return self.tokens.pop(0) if self.tokens[0] in wanted else None

    def expression(self):
        value = self.product()
        while sign := self.take("+", "-"):
            value = value + self.product() if sign == "+" else value - self.product()
        return value

    def product(self):
        value = self.signed()
        while sign := self.take("*", "/"):
            value = value * self.signed() if sign == "*" else value / self.signed()
        return value

    def signed(self):
        if sign := self.take("+", "-"):
            return self.signed() if sign == "+" else -self.signed()
        if self.take("("):
            value = self.expression()
            assert self.take(")")
            return value
        return self.number(self.tokens.pop(0))

    def number(self, token):
        whole, dot, decimals = token.partition(".")
        assert (whole + decimals).isdigit()
        assert dot or whole == "0" * len(whole) or whole[0] != "0"
        self.numbers.append(Fraction(int(whole + decimals), 10 ** len(decimals)))
        return self.numbers[-1]


def oracle(text):
    """(value, numbers), or (None, None) for what the grammar does not have."""
    parser = Parser(text)
    try:
        value = parser.expression()
        assert parser.tokens == ["end"]
    except (AssertionError, ZeroDivisionError):
        return None, None
    return value, parser.numbers


@checked
@given(texts_near_the_grammar)
def test_the_grammar_is_the_documented_one(text):
    assert (evaluate(text), numbers_used(text)) == oracle(text)


@checked
@given(st.text(max_size=40) | st.text("0123456789.+-*/() \n\t_ejxif'#", max_size=40))
def test_any_text_has_a_value_or_none(text):
    # Line ends and tabs may stand around an expression, not in it.
    inner = text.strip(" \t\r\n")
    ours = set(inner) <= set("0123456789.+-*/() ")
    assert (evaluate(text), numbers_used(text)) == (oracle(inner) if ours else (None, None))


digits = st.tuples(st.integers(0, 10**6), st.integers(0, 4))
trees = st.recursive(
    digits,
    lambda below: st.tuples(st.sampled_from("+-*/"), below, below) | st.tuples(st.just("-"), below),
    max_leaves=10,
)
LEVEL = {"+": 1, "-": 1, "*": 2, "/": 2}


def tree_value(tree):
    if isinstance(tree[0], int):
        return Fraction(tree[0], 10 ** tree[1])
    first, *second = [tree_value(branch) for branch in tree[1:]]
    match tree[0]:
        case "-":
            return first - second[0] if second else -first
        case "+":
            return first + second[0]
        case "*":
            return first * second[0]
    return first / second[0]


def tree_numbers(tree):
    if isinstance(tree[0], int):
        return [tree_value(tree)]
    return [number for branch in tree[1:] for number in tree_numbers(branch)]


def written(tree, gap="", always=False, level=0):
    """The tree as text: with all parentheses, or with those alone that it needs at this level."""
    if isinstance(tree[0], int):
        whole, decimals = divmod(tree[0], 10 ** tree[1])
        return f"{whole}.{decimals:0{tree[1]}}" if tree[1] else str(whole)
    if len(tree) == 2:
        own, text = 3, "-" + gap + written(tree[1], gap, always, 3)
    else:
        own = LEVEL[tree[0]]
        left, right = (written(tree[i + 1], gap, always, own + i) for i in range(2))
        text = left + gap + tree[0] + gap + right
    return f"({gap}{text}{gap})" if always or own < level else text


@checked
@given(trees)
def test_trees_have_their_value_however_they_are_written(tree):
    try:
        wanted = tree_value(tree), tree_numbers(tree)
    except ZeroDivisionError:
        wanted = None, None
    for gap, always in product(("", " "), (False, True)):
        text = f"\n{gap}{written(tree, gap, always)}{gap}\r\n"
        if len(text) <= MAX_CHARACTERS:
            assert (evaluate(text), numbers_used(text)) == wanted


@pytest.mark.parametrize(
    "text, value, numbers",
    [
        ("0.1 + 0.2", Fraction(3, 10), [Fraction(1, 10), Fraction(1, 5)]),
        ("(25 - 3) * 4 / 8", 11, [25, 3, 4, 8]),
        ("1 / 3 * 3", 1, [1, 3, 3]),
        ("--2 - -3", 5, [2, 3]),
        ("(-" * 85 + "1" + ")" * 85, -1, [1]),
        ("\n 1.*.5\r\n", Fraction(1, 2), [1, Fraction(1, 2)]),
    ],
)
def test_known_values(text, value, numbers):
    assert evaluate(text) == value
    assert type(evaluate(text)) is Fraction
    assert numbers_used(text) == numbers


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text[:20]))
def test_attacks_are_refused_without_a_trace(text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert evaluate(text) is None
        assert numbers_used(text) is None
    assert seen == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_bounds_are_where_they_are_said_to_be():
    largest = str(MAX_MAGNITUDE)
    assert evaluate(largest) == evaluate(f"-{largest}*-1") == MAX_MAGNITUDE
    assert evaluate(f"1/{largest}") == Fraction(1, MAX_MAGNITUDE)
    beyond = ["+1", "0", "*1.1", "+1-1"]
    assert [evaluate(largest + rest) for rest in beyond] == [None] * 4
    beyond = [f"-{largest}-1", f"1/{largest}/10", f"0.{10**100}1"]
    assert [evaluate(text) for text in beyond] == [None] * 3
    assert evaluate("1".rjust(MAX_CHARACTERS)) == 1
    assert evaluate("1".rjust(MAX_CHARACTERS + 1)) is None
    for deep in (lambda n: "(" * n + "1" + ")" * n, lambda n: "+" * n + "1"):
        assert evaluate(deep(MAX_DEPTH)) == 1
        assert evaluate(deep(MAX_DEPTH + 1)) is None
    assert evaluate("+1" * (MAX_DEPTH + 1)) is None  # a sum of MAX_DEPTH + 1 terms and a sign
    assert evaluate("1" + "+1" * MAX_DEPTH) == MAX_DEPTH + 1


@checked
@given(texts_near_the_grammar | trees.map(written) | st.sampled_from(ATTACKS))
def test_the_work_is_bounded_by_the_length(text):
    """As many nodes as characters at most, and every operand within the bound."""
    values = []

    def counting(*arguments):
        values.append(one_value(*arguments))
        return values[-1]

    one_value = arithmetic._value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_value", counting)
        evaluate(text)
    assert len(values) <= min(len(text), MAX_CHARACTERS)
    assert all(max(abs(v.numerator), v.denominator) <= MAX_MAGNITUDE for v in values)


FREE_TEXT = {
    42: "The answer is 42. | #### 42 | \\boxed{42} | $42$ | 1, 2 and 42 | 40+2=42 | 答案n是42。",
    7: "7% | 7kg | the 7th | 7. Next | 007 | wait...7 | 14/7 | **7** | x=7",
    -7: "-7 | x = -$7 | $-7 | -7% | \u22127 | (-7) | x=-7",
    5: "8-5 | f(1)-5 | 8 - 5 | so--5 | x_1-5 | 8%-5 | {8}-5",  # dashes and operations
    Fraction(-1, 2): "-.5 | -0.50 | **-.5**",
    Fraction(2469135, 2): "1,234,567.50 | $1,234,567.50! | 1234567.5",
    567: "1,23,567 | 1234,567 | 1,234, 567 | 1\u200923\u2009567 | 1234\u2009567 | 1 567",
    3: "3 x2 | 3 step_7 | 3 H2O | 3 1e5 | 3 1e-5 | 3 2.5E+7x | 3 0x10 | 3 1_000 | 3 5x10 | 3 2pi",
    1000: "1\u2009000 | $1\u202f000.00 | 1000 2^9 | 1000 10² | 1000 x^{n+1} | 1000 2i | 1000 2e",
    4: "4 1.2.3 | 4 10.0.0.1 | 4 ٣ | 4 ３ | 4 \ud800 | 4 \0 | 4 - | 4 $ | 4 .",
    None: " | none | x2 | - | $ | . | , | 1e5 | 1.2.3 | ٣ | \ud800",
}


@pytest.mark.parametrize("value", FREE_TEXT, ids=str)
def test_last_number(value):
    for text in FREE_TEXT[value].split(" | "):
        assert last_number(text) == value, text
        assert last_number(f"First 9, then: {text} and so on") == (value or 9), text


def test_a_last_number_out_of_bounds_hides_those_before_it():
    large = ["9" * count for count in (101, 300, MAX_TAIL, 10**4)]
    for last in (*large, "0." + "3" * 101, "1" + ",111" * 99, "0" * 300 + "7"):
        assert last_number(f"3 {last}") is None
        assert last_number(f"{last} 3") == 3
    assert last_number("0." + "3" * 99) == Fraction(int("3" * 99), 10**99)


@checked
@given(st.text(max_size=20), st.integers(-(10**9), 10**9), st.integers(0, 9))
def test_last_number_reads_what_python_writes(before, number, places):
    value = Fraction(number, 10**places)
    for text in (f"{number:,}", f"{number}", f"${number}"):
        assert last_number(f"{before}: {text}") == number
    assert last_number(f"{before}: {'-' * (value < 0)}{written((abs(number), places))}.") == value


def test_last_number_reads_the_end_of_a_long_text():
    filler = "word " * MAX_TAIL
    assert last_number("six 7 " + filler) is None
    assert last_number(filler + "7 " + filler[: MAX_TAIL - 10]) == 7
    for cut in ("x7", "-7", "17", "1,007", "1.7"):  # whose beginning is just out of sight
        assert last_number(cut + " " + "w" * (MAX_TAIL - 2)) is None


def test_attacks_take_no_time():
    """Milliseconds in all; the limit leaves room for a busy machine."""
    start = time.monotonic()
    for text in ATTACKS:
        evaluate(text)
        numbers_used(text)
        last_number(text)
    assert time.monotonic() - start < 5


def test_free_text_is_read_in_linear_time():
    """About a second in all; in quadratic time texts of this length take many minutes."""
    units = "1 | 1, | ,111 | 1,111 | 1. | 1e | 1e- | - | $ | -$1 | a1 | _ | 1_ | ( |  ".split(" | ")
    start = time.monotonic()
    for unit, end in product(units, ("", "1", "e5", "x")):
        text = "1" + unit * 10**5 + end
        assert sum(len(token[0]) for token in TOKEN.finditer(text)) <= len(text)
    assert time.monotonic() - start < 30
