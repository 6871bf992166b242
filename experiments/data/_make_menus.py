"""Menus of twelve dishes and pairs of them: experiments/data/menus/.

    .venv/bin/python experiments/data/_make_menus.py

The dishes and what they are worth are those of experiments/ablations/overoptimisation.py. Of a pair
a menu is chosen as often as Bradley and Terry have it: by the logistic function of how much more it
is worth. In menus for SFT each course is drawn from all dishes; a menu in a pair serves none twice,
so that what that costs cannot be learnt. The files of fewer pairs are the first of pairs.jsonl.
"""

import math
import random
import sys

from _files import FOLDER, write
from _rows import Row, disjoint, read_columns

sys.path.append(str(FOLDER.parent / "ablations"))
from overoptimisation import COURSES, WORTH, worth  # noqa: E402  the experiment's own

SIZES = {"sft": 2000, "sft_eval": 200, "ppo": 300, "eval": 256, "pairs": 8000, "pairs_eval": 500}
FEWER = (250, 1000)
DISHES = [*WORTH]


def draw(rng: random.Random) -> tuple[str, Row]:
    prompt = f"table {rng.randrange(100_000)}:"
    one, other = ("".join(rng.sample(DISHES, COURSES)) for _ in range(2))
    liked = rng.random() < 1 / (1 + math.exp(worth(other) - worth(one)))
    chosen, rejected = (one, other) if liked else (other, one)
    any_menu = "".join(rng.choices(DISHES, k=COURSES))
    row: Row = {"prompt": prompt, "response": any_menu, "chosen": chosen, "rejected": rejected}
    return prompt, row


def splits() -> dict[str, list[Row]]:
    files = read_columns(disjoint(draw, SIZES, seed="menus"))
    return files | {f"pairs_{count}": files["pairs"][:count] for count in FEWER}


if __name__ == "__main__":
    write("menus", splits())
