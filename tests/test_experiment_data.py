"""The data shipped with experiments: made by its generator, right, held out, and small."""

import ast
import importlib
import json
import operator
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from ppo_jax import smollm2
from ppo_jax.config import DataOptions
from ppo_jax.data import load_dataset, prompt_width
from ppo_jax.experiment import load_experiment
from ppo_jax.rewards.answers import countdown, final_answer
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer

DATA = Path(__file__).parents[1] / "experiments" / "data"
SPLITS = "sft", "sft_eval", "ppo", "eval"
TASKS = "arithmetic", "countdown", "gsm8k", "nlu", "recommend"


@pytest.fixture
def generator(monkeypatch):
    """The generator of a task: those of a folder import each other by their bare names."""
    monkeypatch.syspath_prepend(str(DATA))
    return lambda task: importlib.import_module(f"_make_{task}")


def rows(task: str, *splits: str) -> list[dict]:
    return [
        json.loads(line)
        for split in splits
        for line in (DATA / task / f"{split}.jsonl").read_text().splitlines()
    ]


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def problem(task: str, prompt: str):
    """What a row asks, whatever it looks like."""
    if task == "arithmetic":
        return tuple(sorted(numbers(prompt)))
    if task == "countdown":
        *given, target = numbers(prompt)
        return tuple(sorted(given)), target
    if task == "gsm8k":
        return re.sub(r"\b([A-Z][a-z]{2}|[a-z]{3}s)\b", "", prompt)
    return prompt.rpartition(" ")[0] if task == "nlu" else prompt


@pytest.mark.parametrize("task", TASKS)
def test_generators_make_the_files(task, generator, tmp_path, monkeypatch):
    make = generator(task)
    files = importlib.import_module("_files")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    files.write(task, make.splits())
    for split in SPLITS:
        name = f"{task}/{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


@pytest.mark.parametrize("task", TASKS)
def test_held_out_problems_are_held_out(task):
    asked = {split: {problem(task, row["prompt"]) for row in rows(task, split)} for split in SPLITS}
    assert len(rows(task, "eval")) >= 200
    trained = asked["sft"] | asked["ppo"]
    assert not asked["eval"] & (trained | asked["sft_eval"])
    assert not asked["sft_eval"] & trained
    assert sum(file.stat().st_size for file in (DATA / task).iterdir()) <= 1_500_000


@pytest.mark.parametrize("task", TASKS)
def test_rows_fit_their_experiments(task):
    """With the byte tokenizer, and the EOS of a response."""
    experiment = load_experiment(task)
    for config, names in ((experiment.sft, SPLITS[:2]), (experiment.base, SPLITS[2:])):
        paths = config.data.path, config.data.eval_path
        assert paths == tuple(f"experiments/data/{task}/{name}.jsonl" for name in names)
        for row in rows(task, *names):
            answer = row.get("response", row.get("answer", ""))
            assert len(row["prompt"].encode()) <= config.data.max_prompt_tokens
            assert len(answer.encode()) + 1 <= config.rollout.max_new_tokens


def test_every_sum_of_the_space_is_dealt_out_and_right():
    found = {}
    for row in rows("arithmetic", "sft_eval", "ppo", "eval"):
        found[tuple(numbers(row["prompt"]))] = row.get("answer", row.get("response"))
    assert found == {(a, b): f"{a + b:03}"[::-1] for a in range(100) for b in range(100)}
    practised = {(row["prompt"], row["answer"]) for row in rows("arithmetic", "ppo")}
    assert {(row["prompt"], row["response"]) for row in rows("arithmetic", "sft")} < practised


OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv"}


def value(text: str) -> Fraction:
    """Of an expression, by Python's own parser."""

    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            apply = getattr(operator, OPERATORS[type(node.op)])
            return apply(of(node.left), of(node.right))
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return of(ast.parse(text, mode="eval").body)


def test_countdown_solutions_reach_their_targets():
    for row in rows("countdown", "sft", "sft_eval"):
        *given, target = numbers(row["prompt"])
        text = row["response"]
        assert sorted(numbers(text)) == sorted(given)
        assert value(text) == target
        assert countdown()([""], [text], numbers=[given], target=[target]) == [1.0]
    for row in rows("countdown", "ppo", "eval"):
        assert numbers(row["prompt"]) == [*row["numbers"], row["target"]]


def test_every_countdown_problem_can_be_solved(generator):
    make = generator("countdown")
    assert set(make.solutions((1, 1, 10))[20]) == {"(1+1)*10", "10*(1+1)"}
    assert len(make.all_problems()) == sum(len(rows("countdown", s)) for s in SPLITS if s != "sft")


def test_word_problems_are_worked_out_right():
    for row in rows("gsm8k", *SPLITS):
        text = row.get("answer", row.get("response"))
        steps = re.findall(r"(\S+)=(\d+)", text)
        assert len(steps) == 2
        for step, result in steps:
            assert value(step) == int(result)
        final = text.rpartition("#### ")[2]
        assert int(final) == int(steps[-1][1])
        assert final_answer()([""], [text], answer=[int(final)]) == [1.0]
        said = numbers(row["prompt"])
        assert set(numbers(" ".join(step for step, _ in steps))) <= {*said, int(steps[0][1])}


def test_labels_of_sentences():
    labels = {
        "sentiment": {"positive", "negative", "neutral"},
        "intent": {"alarm", "weather", "music", "travel", "food"},
        "entity": {"person", "place", "food"},
    }
    for names, column in ((("sft", "sft_eval"), "response"), (("ppo", "eval"), "answer")):
        found = {task: set() for task in labels}
        for row in rows("nlu", *names):
            found[row["task"]].add(row[column])
        assert found == labels


def visit(row: dict) -> tuple[str, str, str]:
    """(history, shelf, click), an item a letter."""
    had, shelf = row["prompt"].removeprefix("had").rstrip(":").split("shelf")
    return had.replace(" ", ""), shelf.replace(" ", ""), row.get("answer", row.get("response"))


def test_clicks_are_on_the_shelf_and_the_baselines_as_stated(generator):
    for history, shelf, click in map(visit, rows("recommend", *SPLITS)):
        assert len({*history, *shelf}) == 8 and click in shelf
    practised, held_out = (list(map(visit, rows("recommend", name))) for name in ("ppo", "eval"))
    shown = Counter(item for _, shelf, _ in practised for item in shelf)
    clicked = Counter(click for *_, click in practised)
    share = lambda item: clicked[item] / shown[item]
    hits = sum(max(shelf, key=share) == click for _, shelf, click in held_out)
    rate = hits / len(held_out)
    make = generator("recommend")
    assert make.popularity_hit_rate() == pytest.approx(rate)
    doc = load_experiment("recommend").doc
    assert f"{rate:.3f}" in doc and f"{make.best_hit_rate():.3f}" in doc


def test_every_number_is_hidden_as_often_in_the_games_held_out(generator):
    files = importlib.import_module("_files")
    for name, made in generator("guess").splits().items():
        assert (DATA / "guess" / f"{name}.jsonl").read_bytes() == files.lines(made)
    assert [row["secret"] for row in rows("guess", "ppo")] == [-1]  # any, by the key
    games = Counter(row["secret"] for row in rows("guess", "eval"))
    assert games.total() >= 200 and games == dict.fromkeys(range(1, 10), games[1])


def test_the_readme_has_every_folder_with_its_sizes():
    text = (DATA / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|.*?([^|]*)\|$", text, re.MULTILINE)
    for task, sizes in table:
        there = [DATA / task / f"{split}.jsonl" for split in SPLITS]
        counts = [len(rows(task, file.stem)) if file.is_file() else "-" for file in there]
        assert sizes.strip() == " / ".join(map(str, counts)), task
    assert {task for task, _ in table} == {file.parent.name for file in DATA.glob("*/*.jsonl")}


def test_no_prompt_held_out_stands_elsewhere_but_where_the_readme_says():
    alike = set()
    for folder in {file.parent for file in DATA.glob("*/*.jsonl")}:
        asked = Counter()
        for file in folder.glob("*.jsonl"):
            prompts = {str(row["prompt"]) for row in rows(folder.name, file.stem)}
            asked.update(dict.fromkeys(prompts, 100 if "eval" in file.stem else 1))
        alike |= {folder.name for count in asked.values() if count > 100}
    assert alike == {"maze", "guess"}
    text = " ".join((DATA / "README.md").read_text().split())
    assert "stands in another file, but in `maze` and `guess`, where all prompts are alike" in text


@pytest.mark.parametrize(
    "name, experiment", [("openings", "sentiment"), ("tiny", "textgen_period")]
)
def test_beginnings_of_texts_held_out(name, experiment, generator):
    known, held = (
        [json.loads(line) for line in (DATA / f"{file}.jsonl").read_text().splitlines()]
        for file in (name, f"{name}_eval")
    )
    assert generator(f"{name}_eval").rows() == held
    prompts = [row["prompt"].lower() for row in held]
    assert len(set(prompts)) == len(prompts) >= 200
    assert not {row["prompt"].lower() for row in known} & set(prompts)
    assert {row.get("topic") for row in known} == {row.get("topic") for row in held}
    config = load_experiment(experiment).base
    assert config.data.eval_path == f"experiments/data/{name}_eval.jsonl"
    assert config.run.eval_every is None  # training is the same with it and without


@pytest.mark.parametrize("name", ["openings", "tiny"])
def test_prompts_held_out_widen_no_batch(name):
    """The width is that of the longest prompt of both files."""
    tokenizer = byte_tokenizer()
    if name == "openings":
        pytest.importorskip("gguf")
        tokenizer = load_tokenizer(smollm2.ensure_cached())
    options = lambda file: DataOptions(path=str(DATA / file))
    read = lambda file: load_dataset(options(file), tokenizer, vocab_size=len(tokenizer))
    assert prompt_width(read(f"{name}_eval.jsonl")) <= prompt_width(read(f"{name}.jsonl"))
