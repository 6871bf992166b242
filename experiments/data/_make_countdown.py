"""Countdown with three numbers: `3 5 7 make 56:` is answered, for one, `(3+5)*7`.

    .venv/bin/python experiments/data/_make_countdown.py

Every problem that three numbers from 1 to 10 and a target from 1 to 99 make, each number to be used
once, is dealt out by its sorted numbers and its target. The rows of SFT show one of the solutions,
drawn at random.
"""

import random
from itertools import combinations_with_replacement, permutations, product

from _files import write

from ppo_jax.rewards.arithmetic import evaluate

NUMBERS, TARGETS = range(1, 11), range(1, 100)
PLAIN, SHAPES = "{0}{3}{1}{4}{2}", ("({0}{3}{1}){4}{2}", "{0}{3}({1}{4}{2})")
SFT_ROWS = 600
SIZES = {"eval": 300, "sft_eval": 200}  # problems; the rest are PPO's

Problem = tuple[tuple[int, ...], int, list[str]]  # sorted numbers, target, solutions


def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """Target -> its expressions, each number used once, without parentheses that do nothing."""
    found: dict[int, set[str]] = {}
    for order in set(permutations(numbers)):
        for signs in product("+-*/", repeat=2):
            texts = [shape.format(*order, *signs) for shape in (PLAIN, *SHAPES)]
            values = [evaluate(text) for text in texts]
            for text, value in zip(texts, values, strict=True):
                if value in TARGETS and (text == texts[0] or value != values[0]):
                    found.setdefault(int(value), set()).add(text)
    return {target: sorted(texts) for target, texts in sorted(found.items())}


def all_problems() -> list[Problem]:
    return [
        (numbers, target, texts)
        for numbers in combinations_with_replacement(NUMBERS, 3)
        for target, texts in solutions(numbers).items()
    ]


def splits() -> dict[str, list[dict]]:
    """The rows of each file."""
    rng = random.Random("countdown")
    problems = all_problems()
    rng.shuffle(problems)
    rows = {}
    for name, count in SIZES.items():
        rows[name], problems = problems[:count], problems[count:]
    rows["sft"], rows["ppo"] = problems[:SFT_ROWS], problems
    return {name: [_row(name, problem, rng) for problem in rows[name]] for name in sorted(rows)}


def _row(name: str, problem: Problem, rng: random.Random) -> dict:
    numbers, target, texts = problem
    shown = rng.sample(numbers, len(numbers))
    prompt = f"{' '.join(map(str, shown))} make {target}:"
    if name.startswith("sft"):
        return {"prompt": prompt, "response": rng.choice(texts)}
    return {"prompt": prompt, "numbers": shown, "target": target}


if __name__ == "__main__":
    write("countdown", splits())
