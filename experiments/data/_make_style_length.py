"""Sentences of as many words as are asked for: experiments/data/style_length/.

    .venv/bin/python experiments/data/_make_style_length.py

    Write about the old ship in 7 words:    the old ship waits in the harbour

The sentences that SFT learns keep to the number loosely: half of them miss it by up to three words.
A thing that is written about stands in one file.
"""

import random

from _files import write
from _rows import Row, disjoint

SIZES = {"sft": 400, "sft_eval": 200, "ppo": 620, "eval": 256}
WORDS = range(3, 11)  # that may be asked for
THINGS = """rain ship river road house garden dog moon train tower boat bird song wind lamp horse
bell tree king door cat snow ball clock fire hill lake book cloud coat""".split()
KINDS = """old cold long red quiet small white slow dark green young lost tall soft wild warm new
odd blue thin loud broken empty golden sad busy dry deep round brave pale rare calm mild grey rough
plain huge sweet proud gentle strange bright heavy humble lazy lonely famous silver
hidden""".split()
VERBS = "waits sleeps stands stays sings falls rests turns comes grows calls moves".split()
HOW = "slowly again quietly today alone tonight softly often".split()
WHERE = """in the harbour|on the hill|near the sea|at noon|under the stars|by the mill|after lunch
|in town|with a friend|at home|all day|for years|like a dream""".replace("\n", "").split("|")


def sentence(rng: random.Random, thing: str, count: int) -> str:
    """A sentence of so many words, at least three, about "the <kind> <thing>"."""
    while True:
        words = ["the", *thing.split()] if count > 3 else ["the", thing.split()[1]]
        words.append(rng.choice(VERBS))
        while len(words) < count:
            part = rng.choice((rng.choice(HOW), rng.choice(WHERE), f"and {rng.choice(VERBS)}"))
            if part.split()[-1] not in words:
                words += part.split()
        if len(words) == count:
            return " ".join(words)


def draw(rng: random.Random) -> tuple[str, Row]:
    thing = f"{rng.choice(KINDS)} {rng.choice(THINGS)}"
    asked = rng.choice(WORDS)
    row: Row = {"prompt": f"Write about the {thing} in {asked} words:\n", "words": asked}
    missed = rng.choice((-3, -2, -1, 1, 2, 3)) if rng.random() < 0.5 else 0
    row["reference"] = sentence(rng, thing, min(max(asked + missed, WORDS[0]), WORDS[-1]))
    return thing, row


def splits() -> dict[str, list[Row]]:
    files = disjoint(draw, SIZES, seed="style_length")
    for name, rows in files.items():
        taken = ("reference", "response") if name.startswith("sft") else ("words", "words")
        files[name] = [{"prompt": row["prompt"], taken[1]: row[taken[0]]} for row in rows]
    return files


if __name__ == "__main__":
    write("style_length", splits())
