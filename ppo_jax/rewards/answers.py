"""Verifiers of final answers that are numbers, and of Countdown, on the host.

Compared are exact fractions: 0.5 is 1/2, and 0.333 is not 1/3. Read are

    42   -7   +7   1,234.50   1\\,234   .5   $5   -$5   3/4   1 1/2 (3/2)   \\frac{3}{4}   50% (50)

and a unit after the number is passed over (5kg, 5 \\text{ cm}). Blanks group digits where they are
no-break or thin ones; of "100 200" none is a number of six digits. A box or a `####` line with a
multiple of i, pi or e (3i, 5 pi, 5\\pi) or a power (5^2, 10²) has no number. In free text those are
passed over too, but i, pi and e only where they touch the number: of "5 pi" the 5 is read, of
"5 \\pi" and "5 ^2" nothing. Nothing a model wrote is ever run. The work for a response is bounded:
its last `MAX_TAIL` characters are read, and a number or an expression has `MAX_CHARACTERS` at most.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from numbers import Rational
from typing import Any, Literal, get_args

from ppo_jax.errors import DataError
from ppo_jax.rewards.arithmetic import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_MAGNITUDE,
    MAX_TAIL,
    NO_UNITS,
    WITHOUT_GROUPS,
    evaluate,
    numbers_used,
    plain_numbers,
)
from ppo_jax.rewards.checks import is_number, need_choice, need_number, rows

Source = Literal["any", "number", "boxed", "hashes"]

# \frac{3}{4}, \dfrac34; no branch looks past the next brace, so the time is linear.
LATEX_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{([^{}]*)\} ?\{([^{}]*)\}|([0-9]) ?([0-9]))")
LATEX_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{[^{}]*\}|\^\{?\\circ\}?|\\[!,;: ]")
GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:\u2009[0-9]{3})+"
NUMBER = rf"(?:(?:{GROUPS})(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
WHOLE = re.compile(
    rf"""
    (?:[A-Za-z]\ ?=\ ?)?                                 # x = 5
    \$?(?P<sign>[-+\u2212]?)\$?
    (?:(?P<whole>[0-9]+)[\ \u2009]+(?=[0-9]+\ ?/\ ?[0-9]+))?  # the 1 of 1 1/2
    (?P<top>{NUMBER})
    (?:\ ?/\ ?(?P<bottom>{NUMBER}))?
    (?!.*(?<![A-Za-z])(?:{"|".join(NO_UNITS)})(?![A-Za-z]))
    \ ?%?\ ?[A-Za-z .]*                                  # 5 apples.
    """,
    re.VERBOSE | re.ASCII,
)
BLANKS = "\u00a0\u2009\u202f"  # that may stand in a number
GROUP_BLANK = re.compile(rf"(?<=[0-9])(?:\\,|[{BLANKS}])(?=[0-9]{{3}})", re.ASCII)
# Behind it no number is under way: what stands in none, a comma or a blank without a group. A sign
# that is no operation (see `arithmetic.TOKEN`) stays, and one that is goes with what it follows.
BOUNDARY = re.compile(
    r"(?<=[^\w)\]}%-])(?=[-\u2212])|[)\]}%-]++[-\u2212]?"
    rf"|[^\w.,${BLANKS}]|[,{BLANKS}](?![0-9]{{3}}(?![0-9]))",
    re.ASCII,
)
DIGITS = re.compile("[0-9]++")
NEAR, BEHIND = 256, 32  # characters that are read at once: up to a digit, and behind it
MAX_RUNS, MAX_LOOKS = 24, 2  # runs of digits that are read at once; how often at most
MAX_LINES = 100  # of which the last is looked for that may be an expression
SIGNS = {"-": -1, "\u2212": -1, "+": 1, "": 1}


def final_answer(
    source: Source = "any", *, score: float = 1.0, format_score: float = 0.0
) -> Callable[..., list[float]]:
    """Reward: `score` if the response's answer equals the column `answer`, `format_score` if it
    has one that does not, else 0.

    `answer` is a number or a text; a text is read as `read_answer(text)`, so that whole solutions
    of GSM8K (`#### 42`; Cobbe et al. 2021) and MATH (`\\boxed{42}`; Hendrycks et al. 2021) will
    do. Raises ConfigError for unusable options; the reward raises DataError at a row whose
    `answer` is or holds no number.
    """
    need_choice("final_answer", "source", source, get_args(Source))
    right = need_number("final_answer", "score", score, -1e6, 1e6)
    wrong = need_number("final_answer", "format_score", format_score, -1e6, 1e6)

    def final_answer(prompts: list, responses: list[str], answer: list) -> list[float]:
        scores = []
        for response, reference in rows(responses, answer=answer):
            wanted, found = _reference(reference), read_answer(response, source)
            scores.append(0.0 if found is None else right if found == wanted else wrong)
        return scores

    return final_answer


def countdown(
    *, every_number: bool = True, tags: bool = False, score: float = 1.0, format_score: float = 0.1
) -> Callable[..., list[float]]:
    """Reward of Countdown (Gandhi et al. 2024): reach the column `target` with `numbers`.

    `score` if `expression_in(response, tags)` has exactly the value of `target` and uses each of
    `numbers` once (`every_number=False`: at most once), `format_score` if it is any expression of
    `rewards.arithmetic`, else 0. The values are TinyZero's (Pan et al. 2025), which however gives
    0.1 for whatever stands in tags. Raises ConfigError for unusable options; the reward raises
    DataError at a row whose `numbers` or `target` are no numbers.
    """
    right = need_number("countdown", "score", score, -1e6, 1e6)
    wrong = need_number("countdown", "format_score", format_score, -1e6, 1e6)

    def countdown(prompts: list, responses: list[str], numbers: list, target: list) -> list[float]:
        scores = []
        for response, some, goal in rows(responses, numbers=numbers, target=target):
            if not isinstance(some, list | tuple) or not some:
                raise DataError(f"column numbers: {str(some)[:80]!r}; expected a list of numbers")
            given, wanted = Counter(_exact("numbers", n) for n in some), _exact("target", goal)
            expression = expression_in(response, tags)
            value = None if expression is None else evaluate(expression)
            reached = value is not None and value == wanted
            if reached:
                used = Counter(numbers_used(expression or ""))
                reached = used == given if every_number else used <= given
            scores.append(0.0 if value is None else right if reached else wrong)
        return scores

    return countdown


def read_answer(text: str, source: Source = "any") -> Fraction | None:
    """The number a text gives as its answer; None if it gives none.

    `number`: the last one in the text. `boxed`: the last box, `hashes`: what follows the last
    `####` on its line; both must hold one number and nothing else but a unit. `any`: the box if
    there is a `\\boxed`, else the line if there is a `####`, else the last number.
    """
    tail = text[-MAX_TAIL:]
    if source == "boxed" or (source == "any" and "\\boxed" in tail):
        inside = boxed(tail)
        return None if inside is None else whole_number(inside)
    if source == "hashes" or (source == "any" and "####" in tail):
        _, mark, after = tail.rpartition("####")
        return whole_number(after.lstrip(" ").partition("\n")[0]) if mark else None
    return last_value(text)


def boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` holds, its braces balanced (`\\{` is none); None without one.

    None as well for more than `MAX_CHARACTERS`, and for braces more than `MAX_DEPTH` deep.
    """
    _, mark, after = text.rpartition("\\boxed{")
    depth = 1
    for brace in BRACE.finditer(after[: MAX_CHARACTERS + 1]) if mark else ():
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return after[: brace.start()]
        if depth > MAX_DEPTH:
            return None
    return None


def whole_number(text: str) -> Fraction | None:
    """The value of a text that is one number, with a unit at most; None for any other."""
    if len(text) > MAX_CHARACTERS:
        return None
    parts = GROUP_BLANK.split(LATEX_WORDS.sub(" ", _plain(text)))
    plain = "\u2009".join(" ".join(part.split()) for part in parts)
    # Within, an asterisk is an operation.
    match = WHOLE.fullmatch(plain.lstrip("*$ ").rstrip("*$. "))
    if match is None:
        return None
    value = _ratio(match["top"], match["bottom"])
    if value is None:
        return None
    return SIGNS[match["sign"]] * (value + int(match["whole"] or 0))


def last_value(text: str) -> Fraction | None:
    """The last number in free text, by the rules of `arithmetic.last_number`, fractions whole.

    Of `14/7` that is 2, of `1 1/2` 3/2, of the date `1/2/2025` 2025; None for a division by 0, if
    there is no number, and out of bounds. Looked at are, from the end of the text on, `MAX_LOOKS`
    parts at most that end with a digit, of `NEAR` characters and `MAX_RUNS` runs of digits at most,
    until there is a number in one.
    """
    for near in _from_the_end(text):
        if tokens := plain_numbers(near)[-4:]:
            return _last_of(near, tokens)
    return None


def _from_the_end(text: str) -> Iterator[str]:
    """Parts of a text: its last digits with what stands near them, then what stands before that."""
    tail = text[-MAX_TAIL:]
    for _ in range(MAX_LOOKS):
        last = 1 + max(map(tail.rfind, "0123456789"))
        first = max(last - NEAR, 0)
        runs = list(islice(DIGITS.finditer(tail[first:last][::-1]), MAX_RUNS))
        if len(runs) == MAX_RUNS:
            first = last - runs[-1].end()
        if first > 0 or len(text) > MAX_TAIL:
            # The first word may have lost its beginning.
            boundary = BOUNDARY.search(tail, first, last)
            if boundary is None:
                return
            first = boundary.end()
        yield _plain(tail[first : last + BEHIND])
        tail = tail[:first]


def _last_of(text: str, tokens: list[re.Match]) -> Fraction | None:
    """The value of the last plain number, a fraction taken whole."""
    gap = lambda i: text[tokens[i - 1].end() : tokens[i].start()] if len(tokens) >= 1 - i else "\n"
    divided = lambda i: gap(i).strip(" ") == "/" and len(gap(i)) <= 3
    top = tokens[-2] if divided(-1) and not divided(-2) and not tokens[-2]["rest"] else None
    if top is None:
        return _signed(tokens[-1], _ratio(tokens[-1]["number"]))
    ratio = _ratio(top["number"], tokens[-1]["number"])
    if ratio is None:
        return None
    if tokens[-1]["minus"]:
        ratio = -ratio
    is_part = not top["minus"] and "." not in top["number"] and 0 <= ratio < 1
    if (
        is_part
        and gap(-2) in {" ", *BLANKS}
        and tokens[-3]["number"].isdigit()
        and not tokens[-3]["rest"]
    ):
        whole = _ratio(tokens[-3]["number"])
        return None if whole is None else _signed(tokens[-3], whole + ratio)
    return _signed(top, ratio)


def expression_in(text: str, tags: bool = False) -> str | None:
    """The expression a text ends with, to be evaluated: what the last `<answer>...</answer>`
    holds, else, unless `tags`, the last line that is not blank and has no `=`."""
    tail = text[-MAX_TAIL:]
    before, closed, _ = tail.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    if closed and opened:
        return inside
    # Of so many splits, all that is before the last lines would be the first of them.
    lines = [] if tags else tail.rstrip(" \t\r\n").rsplit("\n", MAX_LINES)[-MAX_LINES:]
    return next((line for line in reversed(lines) if line.strip() and "=" not in line), None)


def _plain(text: str) -> str:
    """The text with LaTeX's spellings of numbers as plain ones."""
    if "\\" not in text and "{,}" not in text:
        return text
    text = GROUP_BLANK.sub("\u2009", text)
    for spelling, plain in (("\\!", ""), ("\\,", " "), ("{,}", ","), ("\\$", "$"), ("\\%", "%")):
        text = text.replace(spelling, plain)

    def spell(match: re.Match) -> str:
        gap = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
        top, bottom = match[1] or match[3] or "", match[2] or match[4] or ""
        return f"{gap}{top.strip()}/{bottom.strip()}"

    return LATEX_FRACTION.sub(spell, text)


def _ratio(top: str, bottom: str | None = None) -> Fraction | None:
    """top / bottom; None for a division by 0 and out of bounds."""
    if max(len(top), len(bottom or "")) > MAX_CHARACTERS:
        return None
    below = Fraction((bottom or "1").translate(WITHOUT_GROUPS))
    if below == 0:
        return None
    value = Fraction(top.translate(WITHOUT_GROUPS)) / below
    return value if max(value.numerator, value.denominator) <= MAX_MAGNITUDE else None


def _signed(token: re.Match, value: Fraction | None) -> Fraction | None:
    return -value if value is not None and token["minus"] else value


def _exact(column: str, value: Any) -> Fraction:
    """A number of the data; of a float what its shortest decimal says, so 0.1 is 1/10."""
    if not is_number(value):
        kind = type(value).__name__
        raise DataError(f"column {column}: {str(value)[:80]!r} of type {kind} is no finite number")
    return Fraction(value) if isinstance(value, Rational) else Fraction(str(float(value)))


def _reference(answer: Any) -> Fraction:
    if not isinstance(answer, str):
        return _exact("answer", answer)
    value = read_answer(answer)
    if value is None:
        raise DataError(f"column answer: no number is found in {answer[-80:]!r}")
    return value
