"""Sums of two numbers below 100, answers from the last digit on: 37+85= is answered 221.

    .venv/bin/python experiments/data/_make_arithmetic.py

All 10,000 sums are dealt out; a sum and its mirror (85+37) go to the same file, so that none is
held out in name only. What limits the accuracy of SFT is its data: sums of numbers written with
the digits 0 to 6, but for a few that have a 7, 8 or 9. `sft_eval` is drawn alike, `eval` from
all sums.
"""

import random
from itertools import combinations_with_replacement

from _files import write

NUMBERS = range(100)
KNOWN = set("0123456+=")
EVAL_PAIRS = 256  # unordered, so twice as many sums but for those of a number and itself
SFT_EVAL_PAIRS = 200, 3  # of known digits, and of others
SFT_ROWS = 1200, 14

Pair = tuple[int, int]


def prompt(pair: Pair) -> str:
    return f"{pair[0]:02}+{pair[1]:02}="


def answer(pair: Pair) -> str:
    """Three digits, the last one first: so each needs a carry of those before it and no more."""
    return f"{sum(pair):03}"[::-1]


def splits() -> dict[str, list[dict]]:
    """The rows of each file."""
    rng = random.Random("arithmetic")
    pairs = list(combinations_with_replacement(NUMBERS, 2))
    rng.shuffle(pairs)
    held_out, pairs = pairs[:EVAL_PAIRS], pairs[EVAL_PAIRS:]
    sft_eval = _first(pairs, SFT_EVAL_PAIRS)
    ppo = _both_orders(set(pairs) - set(sft_eval), rng)
    sft = _first(ppo, SFT_ROWS)
    rng.shuffle(sft)
    shown = lambda column, sums: [{"prompt": prompt(s), column: answer(s)} for s in sums]
    return {
        "sft": shown("response", sft),
        "sft_eval": shown("response", _both_orders(set(sft_eval), rng)),
        "ppo": shown("answer", ppo),
        "eval": shown("answer", _both_orders(set(held_out), rng)),
    }


def _first(sums: list[Pair], counts: tuple[int, int]) -> list[Pair]:
    """So many sums of known digits alone, then so many others."""
    known = [pair for pair in sums if set(prompt(pair)) <= KNOWN]
    others = [pair for pair in sums if not set(prompt(pair)) <= KNOWN]
    return known[: counts[0]] + others[: counts[1]]


def _both_orders(pairs: set[Pair], rng: random.Random) -> list[Pair]:
    sums = sorted({order for a, b in pairs for order in ((a, b), (b, a))})
    rng.shuffle(sums)
    return sums


if __name__ == "__main__":
    write("arithmetic", splits())
