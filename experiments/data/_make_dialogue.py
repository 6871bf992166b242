"""Chats with a bakery, answers good and bad, and pairs of them: experiments/data/dialogue/.

    .venv/bin/python experiments/data/_make_dialogue.py

Facts, questions and the rule of the preferences are those of experiments/dialogue.py. Of a pair the
answer with more of `true_rule` is the chosen one; the two always differ in it. A chat stands in one
file.
"""

import json
import random
import sys

from _files import FOLDER, write
from _rows import Row, disjoint, read_columns

sys.path.append(str(FOLDER.parent))
from dialogue import FACTS, true_rule  # noqa: E402  the experiment's own

SIZES = {"sft": 1000, "sft_eval": 200, "ppo": 800, "eval": 256, "pairs": 3000, "pairs_eval": 750}
GREETINGS = "Hi! |Hello! |Good day. |Excuse me. |Hey. |Good morning. |Sorry. ||".split("|")
NAMES = "Eva Tom Ben Ida Max Lea Sam Ann".split()
BETWEEN = ("And: ", "Thanks. ", "Good. ", "I see. ", "Fine. ", "")
SENTENCES = {
    "at nine": ("We open at nine.", "At nine.", "From Tuesday at nine."),
    "two euros": ("It is two euros.", "Two euros.", "Bread is two euros."),
    "by the bridge": ("We are by the bridge.", "By the bridge.", "Look by the bridge."),
    "cash only": ("It is cash only.", "Cash only.", "We take cash only."),
}
NOTHING = ("I do not know.", "Ask my boss.", "That depends.", "Of course.", "Thank you.", "Gladly.")
BEFORE = ("Gladly! ", "Of course! ", "With pleasure: ")
AFTER = (" Thank you!", " You are welcome!", " Please come by!")
RUDE = ("Whatever. ", "Read the sign. ", "Not again. ", "Who cares. ")
LONG = (
    " So it was and so it will be.",
    " As I say to all who ask me so.",
    " I do not like it but it is so.",
)


def chat(rng: random.Random) -> tuple[list[dict[str, str]], str]:
    """(messages, the fact that the last one asks for)"""
    fact = rng.choice(list(FACTS))
    greeting = rng.choice(GREETINGS)
    if rng.random() < 0.5:
        greeting += f"I am {rng.choice(NAMES)}. "
    first = {"role": "user", "content": greeting + rng.choice(FACTS[fact])}
    if rng.random() < 0.6:
        return [first], fact
    earlier = rng.choice([other for other in FACTS if other != fact])
    first["content"] = rng.choice(GREETINGS) + rng.choice(FACTS[earlier])
    answer = {"role": "assistant", "content": SENTENCES[earlier][1]}
    again = {"role": "user", "content": rng.choice(BETWEEN) + rng.choice(FACTS[fact])}
    return [first, answer, again], fact


def said(rng: random.Random, fact: str, right: float = 0.55) -> str:
    """A sentence that gives the fact with that probability, else another one or none."""
    if rng.random() < right:
        return rng.choice(SENTENCES[fact])
    if rng.random() < 0.8:
        return rng.choice(SENTENCES[rng.choice([other for other in FACTS if other != fact])])
    return rng.choice(NOTHING)


def manner(rng: random.Random) -> tuple[str, str]:
    """What stands before an answer and what after it: polite, rude or neither, short or long."""
    kind, before, after = rng.random(), "", ""
    if kind < 0.2:
        before = rng.choice(BEFORE)
    elif kind < 0.4:
        after = rng.choice(AFTER)
    elif kind < 0.6:
        before = rng.choice(RUDE)
    return before, after + (rng.choice(LONG) if rng.random() < 0.4 else "")


def answer(rng: random.Random, fact: str) -> str:
    before, after = manner(rng)
    return before + said(rng, fact) + after


def draw(rng: random.Random) -> tuple[str, Row] | None:
    messages, fact = chat(rng)
    row: Row = {"prompt": messages, "response": answer(rng, fact)}
    pair = [answer(rng, fact), answer(rng, fact)]
    if rng.random() < 0.5:  # half of the pairs compare facts alone, right and wrong
        before, after = manner(rng)
        pair = [before + said(rng, fact, right) + after for right in (1.0, 0.0)]
    worse, better = sorted(pair, key=lambda text: true_rule(messages, text))
    if true_rule(messages, worse) == true_rule(messages, better):
        return None
    return json.dumps(messages), row | {"chosen": better, "rejected": worse}


def splits() -> dict[str, list[Row]]:
    return read_columns(disjoint(draw, SIZES, seed="dialogue"))


if __name__ == "__main__":
    write("dialogue", splits())
