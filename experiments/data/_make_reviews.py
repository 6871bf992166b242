"""Reviews of places and pairs of them: experiments/data/reviews/.

    .venv/bin/python experiments/data/_make_reviews.py

The words and what they are worth are those of experiments/ablations/overoptimisation.py. Of a pair
the review that is worth more is the chosen one; the two always differ in it. No review says an
adjective twice or a word that is none: of that the pairs say nothing.
"""

import random
import sys

from _files import FOLDER, write
from _rows import Row, disjoint, read_columns

sys.path.append(str(FOLDER.parent / "ablations"))
from overoptimisation import PARTS, WORTH, worth  # noqa: E402  the experiment's own

SIZES = {"sft": 1500, "sft_eval": 200, "ppo": 300, "eval": 256, "pairs": 2000, "pairs_eval": 500}
PLACES = "hotel cafe garden museum market beach cinema library".split()
LONGEST = 60  # bytes of a review


def review(rng: random.Random) -> str:
    parts, adjectives = rng.sample(PARTS, rng.choice((1, 2, 2, 3))), iter(rng.sample([*WORTH], 6))
    said = []
    for part in parts:
        words = [next(adjectives) for _ in range(rng.choice((1, 1, 2)))]
        said.append(f"the {part} was {' and '.join(words)}")
    text = ", ".join(said) + "."
    return text if len(text) <= LONGEST else review(rng)


def draw(rng: random.Random) -> tuple[str, Row] | None:
    prompt = f"{rng.choice(PLACES)} {rng.randrange(1000)}:"
    worse, better = sorted((review(rng), review(rng)), key=worth)
    if worth(worse) == worth(better):
        return None
    row: Row = {"prompt": prompt, "response": review(rng), "chosen": better, "rejected": worse}
    return prompt, row


def splits() -> dict[str, list[Row]]:
    return read_columns(disjoint(draw, SIZES, seed="reviews"))


if __name__ == "__main__":
    write("reviews", splits())
