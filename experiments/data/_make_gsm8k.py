"""Word problems of two steps, made from templates, answered in the form of GSM8K.

    .venv/bin/python experiments/data/_make_gsm8k.py

    Mia has 7 figs. She buys 5 and loses 3. How many figs has she?
    A:                                                             7+5=12, 12-3=9
                                                                   #### 9

They stand in for a file of the user's own, which they do not resemble in difficulty. No two files
hold one template with the same numbers.
"""

import random

from _files import write

from ppo_jax.rewards.arithmetic import evaluate

NAMES = "Mia Ada Eva Ida Ann Zoe Ivy Amy Sue Pam Kim Lea".split()
THINGS = "figs pens cups nuts eggs pins hats keys maps bags".split()
NUMBERS = range(2, 13)
SIZES = {"eval": 240, "sft_eval": 200, "sft": 2000, "ppo": 4000}
# The text, and the two steps; {x} is what the first gives.
TEMPLATES = [
    ("{n} has {a} {t}. She buys {b} and loses {c}. How many {t} has she?", "{a}+{b}", "{x}-{c}"),
    ("{n} has {a} {t}. She loses {b} and finds {c}. How many {t} has she?", "{a}-{b}", "{x}+{c}"),
    ("{n} packs {a} boxes of {b} {t}. {c} are left over. How many {t}?", "{a}*{b}", "{x}+{c}"),
    ("{n} has {a} boxes of {b} {t}. She sells {c}. How many are left?", "{a}*{b}", "{x}-{c}"),
    ("{n} has {a} {t}, {m} has {b} more. How many {t} have both?", "{a}+{b}", "{a}+{x}"),
    ("{n} makes {a} {t} a day, {m} makes {b}. How many in {c} days?", "{a}+{b}", "{x}*{c}"),
    ("{n} needs {a} {t}. She has {b} and finds {c}. How many lack?", "{a}-{b}", "{x}-{c}"),
    ("{a} shelves hold {b} {t} each. {n} adds {c} to each. How many {t}?", "{b}+{c}", "{a}*{x}"),
]


def splits() -> dict[str, list[dict]]:
    """The rows of each file."""
    rng = random.Random("gsm8k")
    seen: set[tuple[int, str]] = set()
    rows = {}
    for name, count in SIZES.items():
        column = "response" if name.startswith("sft") else "answer"
        rows[name] = [
            {"prompt": prompt, column: solution}
            for prompt, solution in (_problem(rng, seen) for _ in range(count))
        ]
    return rows


def _problem(rng: random.Random, seen: set[tuple[int, str]]) -> tuple[str, str]:
    """(prompt, solution) of a template and numbers that are new, no step of it below zero."""
    while True:
        template = rng.randrange(len(TEMPLATES))
        text, first, second = TEMPLATES[template]
        words = {letter: rng.choice(NUMBERS) for letter in "abc"} | {"t": rng.choice(THINGS)}
        words["n"], words["m"] = rng.sample(NAMES, 2)
        first = first.format(**words)
        x = evaluate(first)
        second = second.format(**words, x=x)
        value = evaluate(second)
        solution = f"{first}={x}, {second}={value}\n#### {value}"
        if x >= 0 and value >= 0 and (template, solution) not in seen:
            seen.add((template, solution))
            return f"{text.format(**words)}\nA:", solution


if __name__ == "__main__":
    write("gsm8k", splits())
