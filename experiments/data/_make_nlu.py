"""Sentences with a question whose answer is a label word: sentiment, intent, kind of a name.

    .venv/bin/python experiments/data/_make_nlu.py

    The soup was bland. sentiment:        negative
    wake me at seven. intent:             alarm
    Marta flew to Oslo. Oslo:             place

A sentence stands in one file. The few sentences of SFT hold a part of the words, so that labels
of the others have to be found by reward.
"""

import random
from collections.abc import Iterator
from itertools import product

from _files import write

GOOD = """superb lovely great charming delicious friendly splendid warm bright fresh delightful
perfect excellent pleasant wonderful""".split()
BAD = """awful bland rude cold dreadful dirty boring stale noisy broken gloomy terrible poor nasty
disappointing""".split()
PLAIN = """new local large small blue round wooden public modern usual quiet foreign second
narrow daily""".split()
THINGS = "soup room film service concert book hotel train market garden".split()
SENTIMENT = [(GOOD, "positive"), (BAD, "negative"), (PLAIN, "neutral")]
FRAMES = ["The {thing} was {word}.", "That {thing} seemed {word}.", "We found the {thing} {word}."]

INTENTS = {
    "alarm": ["wake me {when}", "set an alarm {when}", "get me out of bed {when}"],
    "weather": ["will it rain {when}", "how warm is it {when}", "do I need a coat {when}"],
    "music": ["play some jazz {when}", "put on a song {when}", "start my playlist {when}"],
    "travel": ["book a train {when}", "find me a flight {when}", "get a ticket {when}"],
    "food": ["order a pizza {when}", "reserve a table {when}", "what can I cook {when}"],
}
WHEN = """at seven|at noon|tonight|tomorrow|on Monday|on Friday|this evening|next week|at dawn
|in an hour|on Sunday morning|after work""".replace("\n", "").split("|")
PLEASE = ["{}.", "please {}.", "{}, please.", "could you help: {}."]

PEOPLE = "Marta Ivo Lena Omar Petra Nils Aiko Bruno Clara Dario Edith Farid".split()
PLACES = "Oslo Lima Cairo Kyoto Porto Quito Riga Turin Dakar Hanoi Perth Basel".split()
FOODS = "rice bread soup cheese melons olives noodles beans honey plums walnuts figs".split()
MEETINGS = [
    "{person} flew to {place}.",
    "{person} ate {food} in {place}.",
    "In {place} {person} sells {food}.",
    "{person} brought {food} from {place}.",
]
SIZES = {"eval": 100, "sft_eval": 70, "sft": 60, "ppo": 600}  # sentences of each task

Row = tuple[str, str, str]  # task, prompt, label


def sentiment() -> Iterator[Row]:
    for words, label in SENTIMENT:
        for word in words:
            for thing in THINGS:
                for frame in FRAMES:
                    yield "sentiment", f"{frame.format(thing=thing, word=word)} sentiment:", label


def intent() -> Iterator[Row]:
    for label, requests in INTENTS.items():
        for request in requests:
            for when in WHEN:
                for form in PLEASE:
                    yield "intent", f"{form.format(request.format(when=when))} intent:", label


def entity(rng: random.Random) -> Iterator[Row]:
    """One question a sentence, about a name in it."""
    kinds = {"person": PEOPLE, "place": PLACES, "food": FOODS}
    for frame in MEETINGS:
        for names in product(PEOPLE, PLACES, FOODS if "{food}" in frame else FOODS[:1]):
            said = dict(zip(kinds, names, strict=True))
            asked = rng.choice([kind for kind in kinds if f"{{{kind}}}" in frame])
            yield "entity", f"{frame.format(**said)} {said[asked]}:", asked


def splits() -> dict[str, list[dict]]:
    """The rows of each file, the three tasks in one order drawn at random."""
    rng = random.Random("nlu")
    rows: dict[str, list[dict]] = {name: [] for name in SIZES}
    for task in sentiment(), intent(), entity(rng):
        left = list(task)
        rng.shuffle(left)
        for name, count in SIZES.items():
            column = "response" if name.startswith("sft") else "answer"
            rows[name] += [{"prompt": p, column: label, "task": t} for t, p, label in left[:count]]
            left = left[count:]
    for part in rows.values():
        rng.shuffle(part)
    return rows


if __name__ == "__main__":
    write("nlu", splits())
