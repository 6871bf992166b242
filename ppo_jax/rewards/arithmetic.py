"""Exact, safe arithmetic on text that a model wrote: for verifiers of sums, prices, Countdown.

What counts as an expression, after blanks and line ends around it are taken off:

    expression = product (("+" | "-") product)*
    product    = signed (("*" | "/") signed)*
    signed     = ("+" | "-")* (number | "(" expression ")")
    number     = whole | digits "." [digits] | "." digits

Digits are ASCII; a whole number has no leading zeros; between these parts only spaces may stand.
There are no powers, `//`, `%`, exponents (`1e9`), other bases, underscores, names or calls. Nothing
is ever run: Python's own parser makes the tree, and only the nodes of this grammar are worked out,
in fractions. The work is bounded by `MAX_CHARACTERS`, `MAX_DEPTH` and `MAX_MAGNITUDE`, so no text
needs a time limit.
"""

import ast
import operator
import re
from fractions import Fraction
from itertools import accumulate

MAX_CHARACTERS = 256  # of an expression, and of one number in free text
MAX_DEPTH = 100  # of parentheses, and of operations: a sum of n terms is n - 1 deep
MAX_MAGNITUDE = 10**100  # of the numerator and of the denominator of every number on the way
MAX_TAIL = 4096  # characters of free text that are read, from its end

ALPHABET = re.compile(r"[0-9.+\-*/() ]*")
BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}

NO_UNITS = ("i", "pi", "e")  # but numbers
WITHOUT_GROUPS = str.maketrans("", "", ",\u00a0\u2009\u202f")  # of a number's digits

# No branch gives back more than a few characters of what it has looked at: the time is linear.
TOKEN = re.compile(
    r"""
    (?<!\w)[A-Za-z_]++[0-9]\w*+               # a word with digits: in x2 they are no number
    |
    (?<=\^)\ ?(?:                             # nor in an exponent
        {[^{}\n]*+} | \([^()\n]*+\) | [{(]?[-+\u2212]?[0-9][\w.]*+
    )
    |
    (?=[-\u2212]?\$?[0-9.])
    (?P<minus>(?<![\w)\]}%-])[-\u2212])?      # no sign but a dash or an operation: 3-5, (1)-5, --5
    \$?
    (?P<number>
        # 1,234.50; but 1,23,456 is a list of three, and so is 1,2345,678
        (?<![0-9],) [0-9]{1,3} (?:,[0-9]{3}(?![0-9]))++ (?:\.[0-9]++)?
        # likewise with blanks that no line ends at; but 3 100/200 is mixed
        | (?<![0-9][\u00a0\u2009\u202f]) [1-9][0-9]{0,2}
          (?:[\u00a0\u2009\u202f][0-9]{3}(?![0-9]))++ (?:\.[0-9]++)?+ (?!\ ?/)
        | [0-9]++ (?:\.[0-9]++)?
        | (?<![0-9.])\.[0-9]++                # .5, though not in a row of dots: ...5
    )
    (?P<rest>                                 # letters of a unit (5kg), or no plain number:
        (?:
            \ ?\^(?!\ ?{?\ ?\\circ)           # 5^2, but 90^\circ
            | [\u00b2\u00b3\u00b9\u2070-\u207f\u03c0] | \ ?\\pi\b  # superscripts, and pi
        )?
        (?:[eE][-+]?[0-9]|\.[0-9]|\w)*+       # 1e5, 1.2.3
    )
    """,
    re.VERBOSE | re.ASCII,
)


class _Refused(Exception):
    """The text is no expression of the grammar, or beyond the bounds."""


def evaluate(text: str) -> Fraction | None:
    """The exact value of an arithmetic expression ("0.1" is 1/10).

    None for any other text, for a division by zero and beyond the bounds.
    """
    worked_out = _work_out(text)
    return None if worked_out is None else worked_out[0]


def numbers_used(text: str) -> list[Fraction] | None:
    """The numbers written in an expression, from left to right; None where `evaluate` says None.

    Signs are operations: in "-5" the number used is 5.
    """
    worked_out = _work_out(text)
    return None if worked_out is None else worked_out[1]


def last_number(text: str) -> Fraction | None:
    """The last plain decimal number in free text; None if there is none, or it is out of bounds.

    Reads `1,234.50` (groups of three: of `1,23` the last is 23), `$5`, `-$5`, `50%` (as 50), `.5`
    and `5kg`. No-break and thin blanks group as commas do; plain ones stand between numbers: of
    `1 234` the last is 234. A minus sign belongs to the number only where nothing stands before it
    that it could be taken from: of `8-5` the last is 5. Passed over, as if they were not there, are
    powers (both numbers of `5^2`, `10²`), digits in a word (`x2`), multiples of i, e and pi that
    touch them (`3i`, `5pi`), other notations (`1e5`, `0x10`, `1_000`, `1.2.3`) and digits that are
    not ASCII.
    Of a text longer than `MAX_TAIL`, whole words from its end are read.
    """
    tail = text
    if len(text) > MAX_TAIL:
        # The first word of the tail may have lost its beginning.
        tail = " ".join(text[-MAX_TAIL:].split(maxsplit=1)[1:])
    plain = plain_numbers(tail)
    if not plain or len(plain[-1]["number"]) > MAX_CHARACTERS:
        return None
    value = Fraction(plain[-1]["number"].translate(WITHOUT_GROUPS))
    return (-value if plain[-1]["minus"] else value) if _in_bounds(value) else None


def plain_numbers(text: str) -> list[re.Match]:
    """The tokens of all plain decimal numbers in a text; `last_number` says what they are."""
    tokens = [token for token in TOKEN.finditer(text) if token["number"]]
    return [token for token in tokens if not token["rest"] or _is_unit(token["rest"])]


def _is_unit(rest: str) -> bool:
    return rest.isascii() and rest.isalpha() and rest not in NO_UNITS


def _in_bounds(value: Fraction) -> bool:
    return max(abs(value.numerator), value.denominator) <= MAX_MAGNITUDE


def _work_out(text: str) -> tuple[Fraction, list[Fraction]] | None:
    """The value of an expression and the numbers in it, or None."""
    numbers: list[Fraction] = []
    try:
        expression = _admitted(text)
        return _value(_parsed(expression), expression, numbers), numbers
    except (_Refused, ZeroDivisionError):
        return None


def _admitted(text: str) -> str:
    """The expression without what surrounds it, if its characters and its parentheses may pass."""
    # The length comes first: every later step is bounded by it.
    if len(text) > MAX_CHARACTERS:
        raise _Refused
    expression = text.strip(" \t\r\n")
    if ALPHABET.fullmatch(expression) is None:
        raise _Refused
    steps = {"(": 1, ")": -1}
    if max(accumulate(steps.get(letter, 0) for letter in expression), default=0) > MAX_DEPTH:
        raise _Refused
    return expression


def _parsed(expression: str) -> ast.expr:
    # What the parser warns of, which would end up on the screen ("1if x"), needs letters,
    # backslashes or quotes: the alphabet has none. It folds no constants, so nothing is computed.
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        # The last two are the parser's words for a nesting too deep for it.
        raise _Refused from error


def _value(node: ast.expr, source: str, numbers: list[Fraction], depth: int = 0) -> Fraction:
    """The value of one node; appends the numbers below it to `numbers`."""
    if depth > MAX_DEPTH:
        raise _Refused
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left = _value(node.left, source, numbers, depth + 1)
        right = _value(node.right, source, numbers, depth + 1)
        value = BINARY[type(node.op)](left, right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        value = UNARY[type(node.op)](_value(node.operand, source, numbers, depth + 1))
    elif isinstance(node, ast.Constant) and node.value is not Ellipsis:
        # From the source: the parser has made a float of 0.1.
        value = Fraction(source[node.col_offset : node.end_col_offset])
        numbers.append(value)
    else:
        raise _Refused
    if not _in_bounds(value):
        raise _Refused
    return value
