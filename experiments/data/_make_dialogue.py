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
from _rows import Row, disjoint

sys.path.append(str(FOLDER.parent))
from dialogue import FACTS, true_rule  # noqa: E402  the experiment's own

SIZES = {"sft": 1000, "sft_eval": 200, "ppo": 800, "eval": 256, "pairs": 2400, "pairs_eval": 300}
GREETINGS = "Hi! |Hello! |Good day. |Excuse me. |Hey. |Good morning. |Sorry. ||".split("|")
NAMES = "Eva Tom Ben Ida Max Lea Sam Ann".split()
BETWEEN = ("And: ", "Thanks. ", "Good. ", "I see. ", "Fine. ", "")
SENTENCES = {
    "at nine": ("We open at nine.", "At nine.", "From Tuesday at nine."),
    "at six": ("We close at six.", "At six.", "Until six."),
    "two euros": ("It is two euros.", "Two euros.", "Bread is two euros."),
    "five euros": ("It is five euros.", "Five euros.", "Cake is five euros."),
    "one euro": ("It is one euro.", "One euro.", "Tea is one euro."),
    "by the bridge": ("We are by the bridge.", "By the bridge.", "Look by the bridge."),
    "behind the church": ("You can park behind the church.", "Behind the church."),
    "call 4071": ("Just call 4071.", "You can call 4071.", "Call 4071."),
    "closed on Monday": ("We are closed on Monday.", "Closed on Monday."),
    "cash only": ("It is cash only.", "Cash only.", "We take cash only."),
    "dogs may come": ("Yes, dogs may come.", "All dogs may come.", "Dogs may come."),
    "no nuts": ("There are no nuts.", "We use no nuts.", "No nuts at all."),
}
NOTHING = ("I do not know.", "Ask my boss.", "That depends.")
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


def answer(rng: random.Random, fact: str, right: float = 0.55) -> str:
    """An answer that gives the fact with that probability, else another one or none."""
    if rng.random() < right:
        said = rng.choice(SENTENCES[fact])
    elif rng.random() < 0.8:
        said = rng.choice(SENTENCES[rng.choice([other for other in FACTS if other != fact])])
    else:
        said = rng.choice(NOTHING)
    manner = rng.random()
    if manner < 0.2:
        said = rng.choice(BEFORE) + said
    elif manner < 0.4:
        said += rng.choice(AFTER)
    elif manner < 0.6:
        said = rng.choice(RUDE) + said
    return said + rng.choice(LONG) if rng.random() < 0.4 else said


def draw(rng: random.Random) -> tuple[str, Row] | None:
    messages, fact = chat(rng)
    row: Row = {"prompt": messages, "response": answer(rng, fact)}
    # Half of the pairs compare two facts, right and wrong, said in manners of all kinds.
    pair = [answer(rng, fact), answer(rng, fact)]
    if rng.random() < 0.5:
        pair = [answer(rng, fact, 1.0), answer(rng, fact, 0.0)]
    worse, better = sorted(pair, key=lambda text: true_rule(messages, text))
    if true_rule(messages, worse) == true_rule(messages, better):
        return None
    return json.dumps(messages), row | {"chosen": better, "rejected": worse}


def splits() -> dict[str, list[Row]]:
    files = disjoint(draw, SIZES, seed="dialogue")
    taken = {"sft": ("response",), "pairs": ("chosen", "rejected")}
    for name, rows in files.items():
        names = ("prompt", *taken.get(name.removesuffix("_eval"), ()))
        files[name] = [{column: row[column] for column in names} for row in rows]
    return files


if __name__ == "__main__":
    write("dialogue", splits())
