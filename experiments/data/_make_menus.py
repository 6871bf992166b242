"""Menus of twelve dishes and pairs of them: experiments/data/menus/.

    .venv/bin/python experiments/data/_make_menus.py

The dishes and what they are worth are those of experiments/ablations/overoptimisation.py. Of a pair
the menu that is worth more is the chosen one; the two always differ in it. Menus for SFT have each
dish as often as any other. A menu in a pair is drawn from 14 to 20 dishes and serves none of them
a fourth time: what a second and a third serving cost can be learnt, what more of them cost cannot.
"""

import random
import sys

from _files import FOLDER, write
from _rows import Row, disjoint, read_columns

sys.path.append(str(FOLDER.parent / "ablations"))
from overoptimisation import COURSES, WORTH, worth  # noqa: E402  the experiment's own

SIZES = {"sft": 2000, "sft_eval": 200, "ppo": 300, "eval": 256, "pairs": 8000, "pairs_eval": 500}
DISHES = [*WORTH]


def menu(rng: random.Random, least: int = len(DISHES), most: int = COURSES) -> str:
    """Drawn from `least` dishes or more, each served at most so often."""
    kitchen = rng.sample(DISHES, rng.randint(least, len(DISHES)))
    while True:
        made = "".join(rng.choice(kitchen) for _ in range(COURSES))
        if max(map(made.count, made)) <= most:
            return made


def draw(rng: random.Random) -> tuple[str, Row] | None:
    prompt = f"table {rng.randrange(100_000)}:"
    given = [menu(rng, least=14, most=3) for _ in range(2)]
    worse, better = sorted(given, key=worth)
    if worth(worse) == worth(better):
        return None
    row: Row = {"prompt": prompt, "response": menu(rng), "chosen": better, "rejected": worse}
    return prompt, row


def splits() -> dict[str, list[Row]]:
    return read_columns(disjoint(draw, SIZES, seed="menus"))


if __name__ == "__main__":
    write("menus", splits())
