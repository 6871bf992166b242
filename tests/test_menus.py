"""What a menu is worth, and the files of menus that the generator makes of it."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "experiments" / "ablations"))
menus = importlib.import_module("overoptimisation")


@pytest.mark.parametrize(
    "menu, worth",
    [
        ("a", -0.99),  # 0.37 (1 + log 0.025)
        ("ab", -0.98),  # b: 0.37 (1 + log 0.375)
        ("abab", -3.56),  # a second of each: 0.8 less
        ("iiiii", -0.6),  # 0.3 each, less 0.8, 0.6, 0.35 and 0.35
        ("ixixi", -2.5),
        ("abz?", -2.98),  # no dishes
        ("zz", -2.0),
        ("", 0.0),
        ("abcdefghijklmnopqrst", 0.13),  # all of them
    ],
)
def test_worth_by_hand(menu, worth):
    assert menus.worth(menu) == worth
    assert menus.by_worth(["x", "y"], [menu, menu]) == [worth, worth]


DATA = ROOT / "experiments" / "data"


def test_the_generator_makes_the_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    files = importlib.import_module("_files")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    splits = importlib.import_module("_make_menus").splits()
    files.write("menus", splits)
    for name in splits:
        made = (tmp_path / "menus" / f"{name}.jsonl").read_bytes()
        assert made == (DATA / "menus" / f"{name}.jsonl").read_bytes(), name


def read_rows(name):
    return [
        json.loads(line) for line in (DATA / "menus" / f"{name}.jsonl").read_text().splitlines()
    ]


def test_pairs_show_what_the_rule_pays_and_what_it_does_not():
    """No dish is served twice in pairs; in menus for SFT as often as by chance. No prompt stands in
    two files; those of fewer pairs are the first of all."""
    prompts, dishes = [], []
    for name in ("sft", "sft_eval", "ppo", "eval", "pairs", "pairs_eval"):
        rows = read_rows(name)
        prompts += [row["prompt"] for row in rows]
        shown = [
            (column, row[column])
            for row in rows
            for column in ("response", "chosen", "rejected")
            if column in row
        ]
        for column, menu in shown:
            assert len(menu) == menus.COURSES and set(menu) <= menus.WORTH.keys()
            if column == "response":
                dishes.append(len(set(menu)))
            else:
                assert len(set(menu)) == menus.COURSES
    assert len(prompts) == len(set(prompts))
    assert np.mean(dishes) == pytest.approx(20 * (1 - 0.95**menus.COURSES), abs=0.1)
    for count in (250, 1000):
        assert read_rows(f"pairs_{count}") == read_rows("pairs")[:count]


def test_menus_are_chosen_as_often_as_bradley_and_terry_have_it():
    """In fifths of the pairs, by how much more one of them is worth."""
    rows = read_rows("pairs")
    more = np.array([menus.worth(row["chosen"]) - menus.worth(row["rejected"]) for row in rows])
    for fifth in np.array_split(more[np.argsort(np.abs(more))], 5):
        expected = np.mean(1 / (1 + np.exp(-np.abs(fifth))))
        error = np.sqrt(0.25 / len(fifth))
        assert np.mean(fifth > 0) + np.mean(fifth == 0) / 2 == pytest.approx(
            expected, abs=4 * error
        )
