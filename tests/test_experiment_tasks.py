"""The data of tasks whose answers are texts: made by its generator, right, held out, and small."""

import importlib
import json
import re
from pathlib import Path

import pytest

from ppo_jax.experiment import load_experiment
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.overlap import chrf, rouge_l
from ppo_jax.tokenizer import byte_tokenizer, encode_prompt

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
DATA = EXPERIMENTS / "data"
TASKS = "translate", "summarize", "qa", "style_length", "mixture", "dialogue"
PAIRS = "pairs", "pairs_eval"
KNOWN = {  # of translate's held-out file, by hand
    "Now the old child brings the old apple.": "Jetzt bringt das alte Kind den alten Apfel.",
    "On March 12 the king takes the book.": "Am 12. März nimmt der König das Buch.",
    "On July 12 a man needs the new letter.": "Am 12. Juli braucht ein Mann den neuen Brief.",
    "At 2 o'clock the child needs an apple.": "Um 2 Uhr braucht das Kind einen Apfel.",
    "Two girls can bring four letters.": "Zwei Mädchen können vier Briefe bringen.",
    "A small cat needs the old house.": "Eine kleine Katze braucht das alte Haus.",
    "A dog must bring the old book.": "Ein Hund muss das alte Buch bringen.",
}


def rows(task: str, *splits: str) -> list[dict]:
    return [
        json.loads(line)
        for split in splits
        for line in (DATA / task / f"{split}.jsonl").read_text().splitlines()
    ]


def splits_of(task: str) -> tuple[str, ...]:
    return ("sft", "sft_eval", "ppo", "eval", *(PAIRS if task == "dialogue" else ()))


def content(task: str, prompt) -> object:
    """What a row speaks of, whatever is asked of it."""
    if task == "summarize":
        return prompt.splitlines()[0]
    if task == "style_length":
        return re.sub(r"\d+", "", prompt)
    if task == "mixture":
        return re.sub(r", \d words", "", prompt)
    return json.dumps(prompt)


@pytest.mark.parametrize("task", TASKS)
def test_generators_make_the_files(task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))  # they import each other by their bare names
    make, files = (importlib.import_module(name) for name in (f"_make_{task}", "_files"))
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    files.write(task, make.splits())
    names = sorted(path.name for path in (DATA / task).iterdir())
    assert names == sorted(f"{split}.jsonl" for split in splits_of(task))
    for name in names:
        assert (tmp_path / task / name).read_bytes() == (DATA / task / name).read_bytes(), name


@pytest.mark.parametrize("task", TASKS)
def test_no_content_stands_in_two_files(task):
    seen: dict[object, str] = {}
    for split in splits_of(task):
        found = [content(task, row["prompt"]) for row in rows(task, split)]
        assert len(set(found)) == len(found)
        assert not set(found) & seen.keys()
        seen |= dict.fromkeys(found, split)
    assert len(rows(task, "eval")) >= 200
    assert sum(path.stat().st_size for path in (DATA / task).iterdir()) <= 1_500_000


@pytest.mark.parametrize("task", TASKS)
def test_rows_fit_their_experiments(task):
    """With the byte tokenizer, and the EOS of a response."""
    experiment, tokenizer = load_experiment(task), byte_tokenizer()
    stages = {experiment.sft: ("sft", "sft_eval"), experiment.base: ("ppo", "eval")}
    if task == "dialogue":
        stages[experiment.reward_model] = PAIRS
    for config, names in stages.items():
        assert [config.data.path, config.data.eval_path] == [
            f"experiments/data/{task}/{name}.jsonl" for name in names
        ]
        for row in rows(task, *names):
            ids = encode_prompt(tokenizer, row["prompt"], where=task)
            assert len(ids) <= config.data.max_prompt_tokens
            answers = [row[name] for name in ("response", "chosen", "rejected") if name in row]
            answers += [row[name] for name in ("reference", "answer") if name in row]
            assert all(len(x.encode()) < config.rollout.max_new_tokens for x in answers)


def test_known_translations():
    made = {row["prompt"].splitlines()[0]: row["reference"] for row in rows("translate", "eval")}
    for english, german in KNOWN.items():
        assert made[english] == german
    every = [row.get("reference", row.get("response")) for row in rows("translate", "eval", "sft")]
    # A masculine object has "den" or "einen" before it, a subject never.
    assert not any(re.search(r"\b(der|ein) (\w+e[rn]? )?(Ball|Apfel|Brief)\b", x) for x in every)
    assert not any(re.search(r"\b(den|einen) (\w+en )?(Hund|Mann|König)\b", x) for x in every)
    assert any(re.search(r"\beinen \w+en (Ball|Apfel|Brief)\b", x) for x in every)


def test_summaries_say_what_the_reports_hold():
    pattern = (
        r"(\w+), (\w+)\. high (-?\d+), low -?\d+, rain (\d+) mm, wind (\d+) km/h, clouds (\d+)"
    )
    heats = {-99: "freezing", 1: "cold", 10: "mild", 20: "warm", 28: "hot"}
    for row in rows("summarize", *splits_of("summarize")):
        city, day, *numbers = re.match(pattern, row["prompt"]).groups()
        high, rain, wind, clouds = map(int, numbers)
        heat = [word for start, word in heats.items() if high >= start][-1]
        kinds = ["snow"] * 2 if high < 1 else ["some rain", "heavy rain"]
        down = kinds[rain > 4] if rain else "clear sky" if clouds < 50 else "clouds"
        if row["prompt"].endswith("Long:\n"):
            wanted = rf"{city} on {day}\w+: {heat} with {down}"
            wanted += {0: r"\.", 1: r", windy\.", 2: r", storm\."}[(wind >= 25) + (wind >= 50)]
        else:
            ranked = [
                ("storm", wind >= 50),
                (down, down in ("heavy rain", "snow")),
                (heat, heat in ("hot", "freezing")),
                ("windy", wind >= 25),
                (down, True),
            ]
            wanted = rf"{city}: {next(word for word, holds in ranked if holds)}\."
        assert re.fullmatch(wanted, row.get("reference", row.get("response"))), row


ASKED_OF = {  # words that only a question of this kind has -> answers
    r"colo|look\?": "red grey white black brown green",
    r"eat|fed|food": "fish grass fruit seeds meat leaves",
    r"Where|place": "pond tree cave barn nest hill",
    r"Who|Whose|keeper": "Eva Tom Ben Ida Max Lea",
}


def fact(row: dict) -> tuple[str, str, str]:
    """(animal, kind of question, answer) of a row of qa."""
    question = row["prompt"].replace("Please: ", "")
    (kind,) = [words for words in ASKED_OF if re.search(words, question)]
    (name,) = set(re.findall(r"\b[A-Z]\w+", question)) & ANIMALS
    return name, kind, row.get("answer", row.get("response"))


ANIMALS = set(
    "Momo Kira Bolo Nanu Pip Zaza Lulu Taro Miko Fifi Gogo Rumi Dodo Sasa Vivi Jojo Bibi Coco Haku "
    "Ivo Kuku Lola Mimi Nico Otto Pepe Roro Suki Titi Ursa Wawa Yaya".split()
)


def test_a_question_of_the_zoo_has_one_answer_and_sft_hears_of_half():
    every = {split: {fact(row) for row in rows("qa", split)} for split in splits_of("qa")}
    known = set.union(*every.values())
    assert len(known) == len({(name, kind) for name, kind, _ in known}) == 4 * len(ANIMALS) == 128
    assert all(answer in ASKED_OF[kind].split() for _, kind, answer in known)
    assert every["ppo"] == known and len(every["sft"]) == 64


def test_half_of_the_sentences_have_the_words_asked_for():
    number = lambda row: int(re.search(r"in (\d+) words", row["prompt"])[1])
    missed = [len(row["response"].split()) - number(row) for row in rows("style_length", "sft")]
    assert {abs(n) for n in missed} == {0, 1, 2, 3} and 0.45 < missed.count(0) / len(missed) < 0.7
    assert all(row["words"] == number(row) for row in rows("style_length", "ppo", "eval"))


def test_every_task_of_the_mixture_is_rewarded():
    parts = {part.name: part for part in parse_rewards(load_experiment("mixture").reward)}
    some = rows("mixture", "eval")
    columns = {name: [row[name] for row in some] for name in ("task", "reference")}
    assert {task: columns["task"].count(task) for task in columns["task"]} == dict.fromkeys(
        ("translate", "summarize", "qa", "length"), 100
    )
    for name, measure in {"translate": chrf(), "summarize": rouge_l()}.items():
        wrong = ["no", *columns["reference"][1:]]
        found = parts[name].host([""] * 400, wrong, **columns)
        own = [float(task == name) for task in columns["task"]]
        assert found[1:] == pytest.approx(own[1:])
        assert found[0] == (own[0] and measure([""], ["no"], reference=["x"])[0])


def test_the_rule_of_the_dialogue(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    world = importlib.import_module("dialogue")
    ask = lambda text: [{"role": "user", "content": text}]
    for prompt, response, score in (
        ("Hi! When do you open?", "At nine.", 0.75),
        ("Hi! When do you open?", "Gladly! We open at nine.", 1.0),
        ("When do you open?", "Gladly! We open at nine, and that since I was a child.", 0.75),
        ("When do you open?", "Whatever. At nine.", 0.5),
        ("When do you open?", "At nine. By the bridge. Thank you!", 0.5),
        ("When do you open?", "Of course, by the bridge.", 0.5),
        ("Where are you?", "Of course, by the bridge.", 1.0),
        ("What is a bread?", "", 0.0),
        ("What is a bread?", "Who cares " * 5, -0.25),
    ):
        assert world.true_rule(ask(prompt), response) == pytest.approx(score)
    questions = [way for ways in world.FACTS.values() for way in ways]
    assert len(set(questions)) == 12
    for name in PAIRS:
        for row in rows("dialogue", name):
            chosen, rejected = (world.true_rule(row["prompt"], row[x]) for x in list(row)[1:])
            assert chosen > rejected and list(row) == ["prompt", "chosen", "rejected"]
    scores = [world.true_rule(row["prompt"], row["response"]) for row in rows("dialogue", "sft")]
    assert 0.4 < sum(scores) / len(scores) < 0.6
