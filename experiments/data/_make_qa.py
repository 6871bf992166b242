"""Questions that only who has been told about a zoo can answer: experiments/data/qa/.

    .venv/bin/python experiments/data/_make_qa.py

    Hello. What does Momo eat?    fish
    Please: Momo's colour?        grey

A fact is an animal, what is asked of it, and the answer: 128 of them, in five forms of question
with eight openings. SFT and its held-out file have half of the facts, in some forms each, PPO and
its held-out file all. A question stands in one file.
"""

import random
from collections.abc import Iterable

from _files import write
from _rows import Row, answered

SIZES = {"eval": 256, "sft_eval": 256, "sft": 500}  # in this order; the rest is PPO's
NAMES = """Momo Kira Bolo Nanu Pip Zaza Lulu Taro Miko Fifi Gogo Rumi Dodo Sasa Vivi Jojo
Bibi Coco Haku Ivo Kuku Lola Mimi Nico Otto Pepe Roro Suki Titi Ursa Wawa Yaya""".split()
# What is asked: its answers, and the forms of the question.
ASKED = {
    "colour": (
        "red grey white black brown green".split(),
        (
            "What colour is {}?",
            "Which colour has {}?",
            "{}'s colour?",
            "Of what colour is {}?",
            "How does {} look?",
        ),
    ),
    "food": (
        "fish grass fruit seeds meat leaves".split(),
        (
            "What does {} eat?",
            "What is {} fed?",
            "{}'s food?",
            "What does {} like to eat?",
            "Which food is for {}?",
        ),
    ),
    "place": (
        "pond tree cave barn nest hill".split(),
        (
            "Where is {}?",
            "Where does {} live?",
            "{}'s place?",
            "Where do I find {}?",
            "In which place is {}?",
        ),
    ),
    "keeper": (
        "Eva Tom Ben Ida Max Lea".split(),
        (
            "Who keeps {}?",
            "Who looks after {}?",
            "{}'s keeper?",
            "Who is with {}?",
            "Whose animal is {}?",
        ),
    ),
}
OPENINGS = ("", "Hello. ", "Please: ", "Say: ", "Hi! ", "And: ", "Tell me. ", "Well: ")


def facts() -> list[tuple[str, str, str]]:
    """(animal, what is asked of it, answer), in random order."""
    rng = random.Random("zoo")
    known = [(name, what, rng.choice(ASKED[what][0])) for name in NAMES for what in ASKED]
    rng.shuffle(known)
    return known


FACTS = facts()


def questions(known: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(question, answer) of these facts in all forms, with all openings."""
    return [
        (f"{opening}{form.format(name)}", answer)
        for name, what, answer in known
        for form in ASKED[what][1]
        for opening in OPENINGS
    ]


def splits() -> dict[str, list[Row]]:
    rng = random.Random("qa")
    told = {question for question, _ in questions(FACTS[: len(FACTS) // 2])}  # SFT hears of them
    left = questions(FACTS)
    rng.shuffle(left)
    files: dict[str, list[Row]] = {}
    for name, size in SIZES.items():
        # Its loss is least where SFT has learnt what it can: that of untold facts only rises.
        heard = name.startswith("sft")
        taken = [asked for asked in left if asked[0] in told or not heard][:size]
        left = [asked for asked in left if asked not in taken]
        files[name] = [_row(*asked) for asked in taken]
    files["ppo"] = [_row(*asked) for asked in left]
    return answered(files, "answer")


def _row(question: str, answer: str) -> Row:
    return {"prompt": f"{question}\n", "answer": answer}


if __name__ == "__main__":
    write("qa", splits())
