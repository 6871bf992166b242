"""Verifiers of final answers that are numbers, and of Countdown, on the host.

Compared are exact fractions: 0.5 is 1/2, and 0.333 is not 1/3. Read are

    42   -7   +7   1,234.50   .5   $5   -$5   3/4   1 1/2 (as 3/2)   \\frac{3}{4}   50% (as 50)

and a unit after the number is passed over (5kg, 5 \\text{ cm}). Nothing a model wrote is ever run.
The work for a response is bounded: its last `MAX_TAIL` characters are read, and a number or an
expression has `MAX_CHARACTERS` at most.
"""

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from numbers import Rational
from typing import Any, Literal, get_args

from ppo_jax.errors import DataError
from ppo_jax.rewards.arithmetic import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_MAGNITUDE,
    MAX_TAIL,
    TOKEN,
    evaluate,
    numbers_used,
)
from ppo_jax.rewards.checks import is_number, need_choice, need_number, rows

Source = Literal["any", "number", "boxed", "hashes"]

# \frac{3}{4}, \dfrac34; no branch looks past the next brace, so the time is linear.
LATEX_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{([^{}]*)\} ?\{([^{}]*)\}|([0-9]) ?([0-9]))")
LATEX_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{[^{}]*\}|\^\{?\\circ\}?|\\[!,;: ]")
NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
DIGIT = re.compile("[0-9]")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
WHOLE = re.compile(
    rf"""
    (?:[A-Za-z]\ ?=\ ?)?                                 # x = 5
    \$?(?P<sign>[-+\u2212]?)\$?
    (?:(?P<whole>[0-9]+)\ +(?=[0-9]+\ ?/\ ?[0-9]+))?     # the 1 of 1 1/2
    (?P<top>{NUMBER})
    (?:\ ?/\ ?(?P<bottom>{NUMBER}))?
    \ ?%?\ ?[A-Za-z .]*                                  # 5 apples.
    """,
    re.VERBOSE | re.ASCII,
)
NEAR = 256  # characters from the end that mostly hold the last number; more are read if not
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

    None as well for braces more than `MAX_DEPTH` deep.
    """
    _, mark, after = text.rpartition("\\boxed{")
    depth = 1
    for brace in BRACE.finditer(after) if mark else ():
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
    plain = " ".join(LATEX_WORDS.sub(" ", _plain(text)).replace("*", "").split())
    match = WHOLE.fullmatch(plain.removeprefix("$").removesuffix("$").strip())
    if match is None:
        return None
    value = _ratio(match["top"], match["bottom"])
    if value is None:
        return None
    return SIGNS[match["sign"]] * (value + int(match["whole"] or 0))


def last_value(text: str) -> Fraction | None:
    """The last number in free text, by the rules of `arithmetic.last_number`, fractions whole.

    Of `14/7` that is 2, of `1 1/2` 3/2, of the date `1/2/2025` 2025; None for a division by 0, if
    there is no number, and out of bounds.
    """
    if DIGIT.search(text[-MAX_TAIL:]) is None:
        return None
    for size in (NEAR, MAX_TAIL):
        tail = text
        if len(text) > size:
            # The first word of the tail may have lost its beginning.
            tail = " ".join(text[-size:].split(maxsplit=1)[1:])
        tail = _plain(tail)
        found = [token for token in TOKEN.finditer(tail) if token["number"]]
        tokens = [t for t in found if not t["rest"] or t["rest"].isalpha()][-4:]
        # Three at most have a say: a whole number, a fraction, and what tells it from a date.
        if len(tokens) == 4 or len(text) <= size:
            break
    if not tokens:
        return None
    gap = lambda i: tail[tokens[i - 1].end() : tokens[i].start()] if len(tokens) >= 1 - i else "\n"
    divided = lambda i: gap(i).strip(" ") == "/" and len(gap(i)) <= 3
    top = tokens[-2] if divided(-1) and not divided(-2) and not tokens[-2]["rest"] else None
    if top is None:
        return _signed(tokens[-1], _ratio(tokens[-1]["number"]))
    ratio = _ratio(top["number"], tokens[-1]["number"])
    if ratio is None:
        return None
    if tokens[-1]["minus"]:
        ratio = -ratio
    is_mixed = gap(-2) == " " and not top["minus"] and "." not in top["number"] and 0 <= ratio < 1
    if is_mixed and tokens[-3]["number"].isdigit() and not tokens[-3]["rest"]:
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
    lines = [] if tags else [line for line in tail.split("\n") if line.strip() and "=" not in line]
    return lines[-1] if lines else None


def _plain(text: str) -> str:
    """The text with LaTeX's spellings of numbers as plain ones."""
    if "\\" not in text and "{,}" not in text:
        return text
    for spelling, plain in (("\\!", ""), ("{,}", ","), ("\\$", "$"), ("\\%", "%")):
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
    below = Fraction((bottom or "1").replace(",", ""))
    if below == 0:
        return None
    value = Fraction(top.replace(",", "")) / below
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
