"""Passages of facts and a question that one of them answers: experiments/data/qa/.

    .venv/bin/python experiments/data/_make_qa.py

    Eva is in the park. Tom is in the attic. Ben is in the zoo. Where is Tom?    attic
    Eva is in the park. Tom is in the attic. Ben is in the zoo. Who is in the zoo?    Ben

The answer always stands in the passage, and which of its names is meant only the passage says. A
passage, in whichever order its facts stand, is in one file, with one question.
"""

import random

from _files import write
from _rows import Row, answered, disjoint

SIZES = {"sft": 800, "sft_eval": 200, "ppo": 2000, "eval": 256}
NAMES = "Eva Tom Ben Ida Max Lea Sam Ann".split()
PLACES = "park attic zoo garden kitchen harbour mill library tower cellar".split()


def draw(rng: random.Random) -> tuple[str, Row]:
    facts = list(zip(rng.sample(NAMES, 3), rng.sample(PLACES, 3), strict=True))
    passage = " ".join(f"{name} is in the {place}." for name, place in facts)
    name, place = rng.choice(facts)
    if rng.random() < 0.5:
        question, answer = f"Where is {name}?", place
    else:
        question, answer = f"Who is in the {place}?", name
    row = {"prompt": f"{passage}\n{question}\n", "answer": answer}
    return " ".join(map(" ".join, sorted(facts))), row


def splits() -> dict[str, list[Row]]:
    return answered(disjoint(draw, SIZES, seed="qa"), "answer")


if __name__ == "__main__":
    write("qa", splits())
