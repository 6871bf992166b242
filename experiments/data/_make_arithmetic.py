"""Sums of two numbers below 100, answers from the last digit on: 37+85= is answered 221.

    .venv/bin/python experiments/data/_make_arithmetic.py

All 10,000 sums are dealt out; a sum and its mirror (85+37) go to the same file, so that none is
held out in name only. The SFT rows are few: they are what limits the accuracy of SFT.
"""

import random
from itertools import combinations_with_replacement

from _files import write

NUMBERS = range(100)
SFT_ROWS = 1000
PAIRS = {"eval": 256, "sft_eval": 256}  # unordered pairs of numbers; the rest are PPO's


def prompt(a: int, b: int) -> str:
    return f"{a:02}+{b:02}="


def answer(a: int, b: int) -> str:
    """Three digits, the last one first: so each needs a carry of those before it and no more."""
    return f"{a + b:03}"[::-1]


def splits() -> dict[str, list[dict]]:
    """The rows of each file."""
    rng = random.Random("arithmetic")
    pairs = list(combinations_with_replacement(NUMBERS, 2))
    rng.shuffle(pairs)
    sums = {}
    for name, count in PAIRS.items():
        sums[name] = _both_orders(pairs[:count], rng)
        pairs = pairs[count:]
    sums["ppo"] = _both_orders(pairs, rng)
    sums["sft"] = sums["ppo"][:SFT_ROWS]
    columns = {"sft": "response", "sft_eval": "response", "ppo": "answer", "eval": "answer"}
    return {
        name: [{"prompt": prompt(a, b), column: answer(a, b)} for a, b in sums[name]]
        for name, column in columns.items()
    }


def _both_orders(pairs: list[tuple[int, int]], rng: random.Random) -> list[tuple[int, int]]:
    sums = sorted({order for a, b in pairs for order in ((a, b), (b, a))})
    rng.shuffle(sums)
    return sums


if __name__ == "__main__":
    write("arithmetic", splits())
