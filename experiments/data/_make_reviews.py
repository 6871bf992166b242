"""Reviews of places and pairs of them: experiments/data/reviews/.

    .venv/bin/python experiments/data/_make_reviews.py

The words and what they are worth are those of experiments/ablations/overoptimisation.py. Of a pair
the review that is worth more is the chosen one; the two always differ in it. Reviews for SFT are
without a fault; of those in pairs a fifth says an adjective again and a fifth has a word that is
none.
"""

import random
import sys

from _files import FOLDER, write
from _rows import Row, disjoint, read_columns

sys.path.append(str(FOLDER.parent / "ablations"))
from overoptimisation import KNOWN, PARTS, WORTH, worth  # noqa: E402  the experiment's own

SIZES = {"sft": 1500, "sft_eval": 200, "ppo": 300, "eval": 256, "pairs": 8000, "pairs_eval": 500}
PLACES = "hotel cafe garden museum market beach cinema library".split()
PLACES += "bar spa inn zoo park shop pool pub".split()
LONGEST = 60  # bytes of a review
FAULTS = 0.2  # share of the reviews in pairs that have one, of each kind
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def review(rng: random.Random) -> str:
    parts, adjectives = rng.sample(PARTS, rng.choice((1, 2, 2, 3))), iter(rng.sample([*WORTH], 6))
    said = []
    for part in parts:
        words = [next(adjectives) for _ in range(rng.choice((1, 1, 2)))]
        said.append(f"the {part} was {' and '.join(words)}")
    text = ", ".join(said) + "."
    return text if len(text) <= LONGEST else review(rng)


def with_faults(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    said = [i for i, word in enumerate(words) if word.strip(",.") in WORTH]
    if rng.random() < FAULTS and len(said) > 1:
        first, again = rng.sample(said, 2)
        words[again] = words[again].replace(words[again].strip(",."), words[first].strip(",."))
    if rng.random() < FAULTS:
        at = rng.randrange(len(words))
        words[at] = garbled(rng, words[at])
    found = " ".join(words)
    return found if len(found) <= LONGEST else with_faults(rng, text)


def garbled(rng: random.Random, word: str) -> str:
    """With one letter lost, said twice or another one, so that it is no word."""
    at = rng.randrange(len(word.strip(",.")))
    letter = rng.choice(("", 2 * word[at], rng.choice(LETTERS)))
    found = word[:at] + letter + word[at + 1 :]
    is_none = found.strip(",.") not in KNOWN and found.strip(",.")
    return found if is_none else garbled(rng, word)


def draw(rng: random.Random) -> tuple[str, Row] | None:
    prompt = f"{rng.choice(PLACES)} {rng.randrange(1000)}:"
    given = [with_faults(rng, review(rng)) for _ in range(2)]
    worse, better = sorted(given, key=worth)
    if worth(worse) == worth(better):
        return None
    row: Row = {"prompt": prompt, "response": review(rng), "chosen": better, "rejected": worse}
    return prompt, row


def splits() -> dict[str, list[Row]]:
    return read_columns(disjoint(draw, SIZES, seed="reviews"))


if __name__ == "__main__":
    write("reviews", splits())
