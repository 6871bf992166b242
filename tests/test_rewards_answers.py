"""Final answers and Countdown: against fractions worked out here, and against attacks."""

import itertools
import random
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hostile_texts
from ppo_jax.errors import ConfigError, DataError, RewardError
from ppo_jax.rewards.answers import (
    boxed,
    countdown,
    expression_in,
    final_answer,
    last_value,
    read_answer,
    whole_number,
)
from ppo_jax.rewards.arithmetic import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_TAIL,
    last_number,
)
from ppo_jax.rewards.base import check_columns, parse_rewards
from ppo_jax.rewards.host import Rows, call

checked = settings(max_examples=300, deadline=None, database=None, derandomize=True)

# The first solution of GSM8K's training set.
NATALIA = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)
FREE = {
    Fraction(3, 4): "It is 3/4 | 3 / 4 | $3/4$ | \\frac{3}{4} | $\\dfrac34$ | 3/4 cup | 6/8. | .75",
    Fraction(-3, 4): "-3/4 | -\\frac{3}{4} | \\frac{-3}{4} | 3/-4 | \u22120.75",
    Fraction(3, 2): "1 1/2 | 1\\frac{1}{2} | $1 \\tfrac{1}{2}$ | 14 cups of 1 1/2 | 1.5",
    Fraction(13, 2): "6 100/200 | 6\\,100/200 | 6\u00a0100/200",
    2: "14/7 | 50 % of 4 = 2 | 2% | 2 of 3kg/2 | 1/2/2",
    2025: "1/2/2025 | 2,025 | 2{,}025 | 2\\!025.0 | 2\\,025 | 2\u00a0025",
    12345678: "12\\,345\\,678 | 12,345,678 | $12\u2009345\u2009678.00 kg | "
    "or 5; 12\u202f345\u202f678",
    456: "1\u200923\u2009456 | 1234\u2009456 | 000\u2009456 | 1\\,0000\\,456 | "
    "1\\,000, 456 | 2^10 456 | 123 456 | sorted: 100 200 456 | 1, 2, 100 456 | $1 456 | 1\\ 456",
    100: "there are 2 100 gram bags",
    25: "25 pi | so 25 i | 25 cm^2 | 25m² | 25 m^{-1} | 25^\\circ | 25^{\\circ}C | 25, so "
    "x^{n+1} | 25 is 5^2",
    7: "8-5/5 = 7 | **7** | #7 | 3/4, 7 | 3 4/ 7 x/7",
    None: "none | 1/0 | 3 1/0 | \u0663 | 1e5 | 5^2 | "
    " 5^{2} | 5 ^ 2 | 5^{-2} | 5^(1/2) | 2^{1/2} | x^2 | x^{n+1} | 10² | 10⁻² | 5ⁿ | 3i | -2e | "
    "5pi | 5π | 5\\pi | 2^{\\frac{1}{2}} | " + "9" * 101 + " | ",
}
WHOLE = {
    42: "42 | $42$ | \\$42 | 42\\% | x = 42 | 42. | 42 \\text{ cm} | 42^\\circ | **42** | 84/2 | "
    "**$42$**. | $**42** | *42 km*",
    -1234: "-1,234 | \u22121234 | -\\$1,234.00 | -1{,}234",
    1000: "1\\,000 | $1\\,000.00$ | 1\u00a0000 | 1\u202f000 pies | 1\u2009000\u2009km",
    Fraction(5, 3): "1 2/3 | \\frac{5}{3} | 1\\frac{2}{3} | 5/3 miles | \\dfrac{5}{3}",
    7: "7 km | 6 100/100 | 6\\,100/100 | 7 in | 7 piece",
    None: "3i | 5 pi | 5pi | 2e | 2 e cm | 5 pi. | 1/2 i | 5^2 | 10² | 10 ^2 | 12 34 | 1\\,0000 | "
    "100 200 300 | 1 000 | 01\\,000 | 1,2 | (1, 2) | 2\\pi | \\sqrt{2} | "
    "\\frac{\\pi}{2} | x^2 | 42 43 | 3+4 | 1/0 | 5**2 | 3*4 | 3 *1/2 | - | ",
}


@pytest.mark.parametrize("value", FREE, ids=str)
def test_the_last_number_of_free_text(value):
    for text in FREE[value].split(" | "):
        assert read_answer(text) == value, text
        assert last_value("word " * 2000 + text) == value, text


@pytest.mark.parametrize("value", WHOLE, ids=str)
def test_a_box_and_a_hash_line_hold_one_number(value):
    for text in WHOLE[value].split(" | "):
        assert whole_number(text) == value, text
        assert read_answer(f"So 7 is \\boxed{{{text}}} and not 9.") == value, text
        assert read_answer(f"7\n#### {text}\nand 9", "hashes") == value, text


def test_sources():
    text = "#### 5\n\\boxed{6} 7"
    assert [read_answer(text, s) for s in ("any", "boxed", "hashes", "number")] == [6, 6, 5, 7]
    assert read_answer(NATALIA) == 72
    assert [read_answer("7", source) for source in ("boxed", "hashes")] == [None, None]
    assert read_answer("\\boxed{5") is None  # cut off: no answer, not the number inside
    assert read_answer("\\boxed{5} " + "x" * MAX_TAIL) is None  # out of sight


signs = st.sampled_from(["", "-"])
wholes = st.integers(0, 10**9)


@checked
@given(signs, wholes, st.integers(1, 10**6), st.sampled_from(["", "so ", "x^2 = 3. Thus "]))
def test_fractions_are_read_as_python_reads_them(sign, top, bottom, before):
    value = Fraction(f"{sign}{top}/{bottom}")
    ways = [f"{top}/{bottom}", f"{top:,}/{bottom:,}", f"\\frac{{{top}}}{{{bottom}}}"]
    for way in ways:
        assert last_value(f"{before}{sign}{way}.") == value
        assert read_answer(f"{before}\\boxed{{{sign}{way}}}.") == value
    part = Fraction(1, bottom + 1)
    assert last_value(f"{before}{sign}{top} {part}") == Fraction(f"{sign}1") * (top + part)


@checked
@given(st.text("0123456789 .,-$%kg()+=*\n", max_size=60))
def test_without_slashes_it_is_the_last_number_of_arithmetic(text):
    assert last_value(text) == last_number(text)


ends = st.text("0123456789 .,-$%kgx()^+=*/\n", max_size=40)


@checked
@given(ends, ends, st.integers(0, 600))
def test_only_the_end_of_a_long_text_is_read(before, end, words):
    if (value := last_value(end)) is not None:
        assert last_value(before * 200 + "\n" + end + "\n" + "word " * words) == value


def test_where_the_look_from_the_end_ends():
    """Lists without blanks, and words with digits behind the answer; of those it finds some."""
    assert last_value(",".join(map(str, range(2000)))) == 1999
    assert last_value("-".join(["7"] * 2000)) == last_value("日7" * 2000) == 7
    assert last_value("4." + " x1" * 40) == last_value("4." + " word" * 500 + " x1" * 5) == 4
    assert last_value("4." + " x1" * 100) is None
    for text in ("Answer" + "." * 300 + "-5", "." * 300 + "\u2212$5"):
        assert last_value(text) == last_number(text) == -5
    for text in ("." * 300 + "8-5", "x" * 300 + "-5", "." * 300 + "x)-5", "x" * 300 + "--5"):
        assert last_value(text) == last_number(text) == 5
    assert last_value("9" * 300) is last_value("4 " + "1" + ",000" * 99) is None


nested = st.recursive(
    st.sampled_from(["x", "\\{", "\\}", "\\\\", "1"]),
    lambda below: st.lists(below, max_size=3).map(lambda some: "{" + "".join(some) + "}"),
)


@checked
@given(nested, nested)
def test_boxes_have_balanced_braces(first, second):
    assume(len(first + second) <= MAX_CHARACTERS)
    assert boxed(f"{second}\\boxed{{{first}{second}}} {first}") == first + second
    assert boxed(f"\\boxed{{{first}") is None


def test_boxes_within_bounds():
    deep = lambda n: "{" * n + "}" * n
    assert boxed("\\boxed{" + deep(MAX_DEPTH - 1) + "}") == deep(MAX_DEPTH - 1)
    assert boxed("\\boxed{" + deep(MAX_DEPTH) + "}") is None
    assert boxed("\\boxed{\\boxed{3}}") == "3"
    assert boxed("\\boxed{" + "x" * MAX_CHARACTERS + "}") == "x" * MAX_CHARACTERS
    assert boxed("\\boxed{x" + "x" * MAX_CHARACTERS + "}") is None


def test_scores_of_final_answers():
    responses = ["It is 0.5.", "\\boxed{1/2}", "50%", "none", "0.3333"]
    scores = final_answer()([""] * 5, responses, ["1/2", 0.5, Fraction(1, 2), 1, "1/3"])
    assert scores == [1, 1, 0, 0, 0]
    scores = final_answer("boxed", score=2, format_score=0.1)([""] * 3, responses[:3], [1, 0.5, 50])
    assert scores == [0, 2, 0]
    assert final_answer(format_score=0.1)([""], ["71"], [NATALIA]) == [0.1]
    assert final_answer()([], [], []) == []


def test_errors_name_option_and_row():
    with pytest.raises(ConfigError, match="source is 'box'; expected one of any, number"):
        final_answer("box")
    for bad in (float("nan"), True, "1"):
        with pytest.raises(ConfigError, match="format_score is .*; expected a finite number"):
            countdown(format_score=bad)
    for bad in ("no number", None, True, [1], float("inf")):
        with pytest.raises(DataError, match="column answer: "):
            final_answer()(["", ""], ["1", "2"], [1, bad])
    with pytest.raises(DataError, match="column answer: 1 values for 2 responses"):
        final_answer()(["", ""], ["1", "2"], [1])
    for numbers, target in ((3, 3), ([], 3), (["3"], 3), ([3], "3")):
        with pytest.raises(DataError, match="column (numbers|target): "):
            countdown()([""], ["3"], [numbers], [target])


def test_as_rewards_of_an_experiment():
    first, second = parse_rewards([(2, final_answer()), countdown()])
    assert (first.name, second.name) == ("final_answer", "countdown")
    check_columns(second, ["numbers", "target"])
    with pytest.raises(ConfigError, match="`answer` is not a column"):
        check_columns(first, ["target"])
    rows = Rows([4, 5, 6], ["p", "q", "r"], ["1", "2", "3"], {"answer": [1, "x", 3]})
    with pytest.raises(
        RewardError, match=r"raised on row 5 \(prompt 'q'\): DataError: column answer"
    ):
        call(first, rows)
    masked = call(first, rows, on_error="mask")
    assert masked.scores["final_answer"][[0, 2]].tolist() == [1, 1]
    assert list(masked.failed) == [5]


COUNTDOWN = [  # (response, numbers, target, score if every number, if some will do)
    ("<answer>(25 - 3) * 4</answer>", [25, 3, 4], 88, 1, 1),
    ("Let me see.\n<answer> 3*(25-4) </answer>\nDone.", [25, 3, 4], 63, 1, 1),
    ("<answer>25 * 4</answer>", [25, 3, 4], 100, 0.1, 1),
    ("<answer>4 * 4</answer>", [4, 3], 16, 0.1, 0.1),
    ("<answer>4 * 4</answer>", [4, 4], 16, 1, 1),
    ("<answer>4 + 3</answer>", [4, 3], 8, 0.1, 0.1),
    ("<answer>1/3*3</answer>", [1, 3, 3], 1, 1, 1),  # exact
    ("<answer>4 * 4 = 16</answer>", [4, 4], 16, 0, 0),
    ("<answer>5 + 2</answer> no <answer>4 + 3</answer>", [4, 3], 7, 1, 1),
    ("<answer>4 + 3", [4, 3], 7, 0, 0),
    ("4 * 3 = 12, no\n4 + 3\n4 + 3 = 7\n\n", [4, 3], 7, 1, 1),
    ("4 + 3 = 7", [4, 3], 7, 0, 0),
    ("I cannot.", [4, 3], 7, 0, 0),
    ("", [4, 3], 7, 0, 0),
    ("<answer>-(3 - 4)</answer>", [4, 3], 1, 1, 1),
    ("<answer>43 - 36</answer>", [4, 3, 3, 6], 7, 0.1, 0.1),
    ("<answer>4 ** 3</answer>", [4, 3], 64, 0, 0),
    ("<answer>4/(3-3)</answer>", [4, 3, 3], 0, 0, 0),
]


@pytest.mark.parametrize("response, numbers, target, every, some", COUNTDOWN)
def test_countdown(response, numbers, target, every, some):
    columns = {"numbers": [numbers], "target": [target]}
    assert countdown()([""], [response], **columns) == [every]
    assert countdown(every_number=False)([""], [response], **columns) == [some]
    with_tags = 0 if "</answer>" not in response else every
    assert countdown(tags=True)([""], [response], **columns) == [with_tags]
    bare = {0: 0, 0.1: 0, 1: 3}[every]
    assert countdown(score=3, format_score=0)([""], [response], **columns) == [bare]


def test_expressions_are_found_at_the_end():
    assert expression_in("a\n b\n \n") == " b"
    assert expression_in("a\nb = c") == expression_in("a" + "\n=" * 99) == "a"
    assert expression_in("a" + "\n=" * 100) is expression_in("") is None
    assert expression_in("a\nb", tags=True) is None
    assert expression_in("<answer>1</answer><answer>2") == "1"


def test_random_expressions_score_by_their_value():
    """Built with the value and the numbers known, in fractions."""
    draw, reward = random.Random(0), countdown()
    operations = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__}
    operations["/"] = Fraction.__truediv__
    responses, numbers, targets, wanted = [], [], [], []
    for _ in range(1000):
        given = [draw.randint(1, 99) for _ in range(draw.randint(2, 6))]
        pieces = [(str(n), Fraction(n)) for n in given]
        while len(pieces) > 1:
            (a, x), (b, y) = (pieces.pop(draw.randrange(len(pieces))) for _ in range(2))
            sign = draw.choice("+-*/" if y else "+-*")
            pieces.append((f"({a} {sign} {b})", operations[sign](x, y)))
        expression, value = pieces[0]
        off = draw.choice([0, 0, 1, Fraction(1, 10**9)])
        draw.shuffle(given)
        responses.append(f"<answer>{expression}</answer>")
        numbers.append(given)
        targets.append(value + off)
        wanted.append(0.1 if off else 1)
    assert reward([""] * 1000, responses, numbers, targets) == wanted
    more = [some + [some[0]] for some in numbers]
    assert set(reward([""] * 1000, responses, more, targets)) == {0.1}
    less = [some[1:] + [100] for some in numbers]
    assert set(reward([""] * 1000, responses, less, targets)) == {0.1}


@pytest.mark.parametrize("reward", [final_answer(), countdown()], ids=["answer", "countdown"])
def test_a_hundred_thousand_hostile_outputs(reward, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 10**5
    responses = list(itertools.islice(itertools.cycle(hostile_texts.TEXTS), count))
    columns = {"answer": [71] * count}
    if reward.__name__ == "countdown":
        columns = {"numbers": [[3, 4]] * count, "target": [71] * count}
    start = time.process_time()
    scores = reward([""] * count, responses, **columns)
    assert time.process_time() - start < 10
    assert set(scores) <= {0, 0.1}
    assert list(tmp_path.iterdir()) == []
