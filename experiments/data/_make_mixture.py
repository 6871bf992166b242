"""Four tasks in one file, named by the column `task`: experiments/data/mixture/.

    .venv/bin/python experiments/data/_make_mixture.py

    the old dog sees. German:   der alte Hund sieht     translate
    Oslo, high 18, rain 6 mm:   mild with heavy rain    summarize
    What does Momo eat?         fish                    qa
    rain, 5 words:              the rain falls all day  length

They are small sisters of the tasks of the same names, whose rules they use. All rows have all
columns: `words` is 0 but for `length`, whose `reference` is one of many possible.
"""

import random

from _files import write
from _make_qa import FACTS, questions
from _make_style_length import KINDS, THINGS, sentence
from _make_summarize import CITIES, falling, heat, sky
from _make_translate import AGENTS, VERBS, noun_phrase
from _rows import Row, answered, disjoint

SIZES = {"sft": 150, "sft_eval": 50, "ppo": 500, "eval": 100}  # of each task
WORDS = range(3, 8)
ZOO = questions(fact for fact in FACTS if fact[1] == "food")


def translate(rng: random.Random) -> tuple[str, Row]:
    english, german, many = noun_phrase(rng, AGENTS, "nominative")
    verb = rng.choice(VERBS)
    english, german = f"{english} {verb[many]}", f"{german} {verb[2 + many]}"
    return english, {"prompt": f"{english}. German:\n", "reference": german}


def summarize(rng: random.Random) -> tuple[str, Row]:
    city, high = rng.choice(CITIES), rng.randrange(-9, 37)
    rain, clouds = rng.choice((0, 0, rng.randrange(1, 20))), 5 * rng.randrange(0, 20)
    report = f"{city}, high {high}, rain {rain} mm, clouds {clouds} %"
    summary = f"{heat(high)} with {falling(high, rain) or sky(clouds)}"
    return report, {"prompt": f"{report}:\n", "reference": summary}


def qa(rng: random.Random) -> tuple[str, Row]:
    question, answer = rng.choice(ZOO)
    return question, {"prompt": f"{question}\n", "reference": answer}


def length(rng: random.Random) -> tuple[str, Row]:
    thing, asked = f"{rng.choice(KINDS)} {rng.choice(THINGS)}", rng.choice(WORDS)
    count = asked if rng.random() < 0.5 else rng.choice(WORDS)
    row: Row = {"prompt": f"the {thing}, {asked} words:\n", "words": asked}
    return thing, row | {"reference": sentence(rng, thing, count)}


def splits() -> dict[str, list[Row]]:
    files: dict[str, list[Row]] = {name: [] for name in SIZES}
    for task, draw in (
        ("translate", translate),
        ("summarize", summarize),
        ("qa", qa),
        ("length", length),
    ):
        for name, rows in disjoint(draw, SIZES, seed=f"mixture {task}").items():
            files[name] += [{"words": 0, **row, "task": task} for row in rows]
    rng = random.Random("mixture")
    for rows in files.values():
        rng.shuffle(rows)
    return answered(files)


if __name__ == "__main__":
    write("mixture", splits())
