"""Users with latent tastes click one of four items on a shelf: which one, given what they had?

    .venv/bin/python experiments/data/_make_recommend.py

    had K B M C shelf A F O E:                O

The 15 items are letters. Each has a genre and a popularity, each user a taste for the genres;
neither is in the data. History and clicks are drawn by softmax of taste plus popularity, so no
model hits them all: `main` prints the hit rate of the most popular item of the shelf and of the
best guess of one who knows the user's tastes.
"""

import math
import random
from typing import NamedTuple

from _files import write

ITEMS = "ABCDEFGHIJKLMNO"
GENRES, HISTORY, SHELF = 3, 4, 4
TASTE, POPULARITY = 5.0, 0.7  # how much each says about a click, in logits
SIZES = {"eval": 400, "sft_eval": 200, "sft": 600, "ppo": 4000}  # users, one shelf each


class Visit(NamedTuple):
    """One user before one shelf."""

    history: str
    shelf: str
    click: str
    best: str  # the item that this user clicks most often


def visits() -> dict[str, list[Visit]]:
    """The visits of each file; no two have the same prompt."""
    rng = random.Random("recommend")
    order = rng.sample(ITEMS, len(ITEMS))
    genre = {item: place % GENRES for place, item in enumerate(order)}
    popularity = {item: rng.gauss(0.0, POPULARITY) for item in ITEMS}
    found: dict[str, Visit] = {}
    while len(found) < sum(SIZES.values()):
        visit = _visit(genre, popularity, rng)
        found.setdefault(prompt(visit), visit)
    rest, rows = list(found.values()), {}
    for name, count in SIZES.items():
        rows[name], rest = rest[:count], rest[count:]
    return rows


def prompt(visit: Visit) -> str:
    return f"had {' '.join(visit.history)} shelf {' '.join(visit.shelf)}:"


def splits() -> dict[str, list[dict]]:
    """The rows of each file."""
    column = lambda name: "response" if name.startswith("sft") else "answer"
    return {
        name: [{"prompt": prompt(visit), column(name): visit.click} for visit in part]
        for name, part in visits().items()
    }


def popularity_hit_rate() -> float:
    """Share of held-out clicks on the item of the shelf that was clicked most often, of the times
    it was shown, by PPO's users."""
    found = visits()
    clicked = {item: sum(visit.click == item for visit in found["ppo"]) for item in ITEMS}
    shown = {item: sum(item in visit.shelf for visit in found["ppo"]) for item in ITEMS}
    choose = lambda visit: max(visit.shelf, key=lambda item: clicked[item] / shown[item])
    return sum(choose(visit) == visit.click for visit in found["eval"]) / len(found["eval"])


def best_hit_rate() -> float:
    """Share of held-out clicks on the item that the user clicks most often."""
    held_out = visits()["eval"]
    return sum(visit.best == visit.click for visit in held_out) / len(held_out)


def _visit(genre: dict[str, int], popularity: dict[str, float], rng: random.Random) -> Visit:
    first, second = rng.sample(range(GENRES), 2)
    taste = {first: TASTE, second: 0.4 * TASTE}
    logit = {item: taste.get(genre[item], 0.0) + popularity[item] for item in ITEMS}
    history: list[str] = []
    while len(history) < HISTORY:
        history.append(_draw([item for item in ITEMS if item not in history], logit, rng))
    shelf = rng.sample([item for item in ITEMS if item not in history], SHELF)
    click = _draw(shelf, logit, rng)
    return Visit("".join(history), "".join(shelf), click, max(shelf, key=logit.__getitem__))


def _draw(items: list[str], logit: dict[str, float], rng: random.Random) -> str:
    return rng.choices(items, [math.exp(logit[item]) for item in items])[0]


if __name__ == "__main__":
    write("recommend", splits())
    print(f"hit rate on held-out clicks, most popular item: {popularity_hit_rate():.3f}")
    print(f"hit rate on held-out clicks, tastes known: {best_hit_rate():.3f}")
