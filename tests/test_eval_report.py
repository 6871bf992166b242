"""What `ppo-jax eval` says of some answers, in numbers and on the screen."""

import io
import math

import numpy as np
from rich.console import Console

from ppo_jax.eval_report import compare, describe, show
from ppo_jax.evaluation import Answers


def answers(scores_PK, texts=None, verdicts_PK=None):
    flat = lambda x_PK: None if x_PK is None else np.asarray(x_PK, np.float32).reshape(-1)
    scores_N, ones_N = flat(scores_PK), np.ones(np.size(scores_PK))
    names = ("logprob", "ref_logprob", "entropy", "ref_plain", "tokens")
    texts = texts or ["a"] * scores_N.size
    ids = [[1]] * scores_N.size
    return Answers(np.shape(scores_PK)[1], texts, texts, ids, ones_N > 0, scores_N,
                   flat(verdicts_PK), {}, dict.fromkeys(names, ones_N))  # fmt: skip


def test_a_response_without_a_score_is_counted_and_left_out():
    told = {"seed": 0, "greedy": False, "threshold": None}
    found = describe(answers([[1.0, math.nan], [math.nan, math.nan], [0.0, 0.0]]), **told)
    assert found["unscored"]["value"] == 3 and found["scores"]["value"] == 0.5
    assert found["scores"]["n"] == 2 and found["pass@1"]["n"] == 2 and found["pass@2"]["n"] == 1
    plain = describe(answers([[0.5], [0.7]]), **told)
    assert not any(name.startswith("pass@") for name in plain) and "best_of_1" not in plain
    assert describe(answers([[0.5], [0.7]]), **told | {"threshold": 0.6})["pass@1"]["value"] == 0.5
    assert compare(answers([[1.0], [2.0]]), answers([[0.0], [2.0]]))["value"] == 0.75


def test_what_short_responses_do_not_have_is_a_dash():
    told = {"seed": 0, "greedy": False, "threshold": None}
    found = {"model": describe(answers([[0.5], [0.7]], ["yes", "no"]), **told)}
    found["against"] = describe(answers([[0.5]], [""]), **told)
    said = {name: [found[which][name]["value"] for which in found] for name in found["model"]}
    assert said["distinct_1"] == [1.0, None] and said["distinct_3"] == [None, None]
    assert said["self_bleu"] == [0.0, None]
    shown = Console(file=io.StringIO(), width=200, _environ={})
    report = {"experiment": "e", "data": {"path": "d"}, "wins": None, "metrics": found}
    show(report, [], count=0, console=shown)
    lines = [line.split() for line in shown.file.getvalue().splitlines()]
    assert ["distinct_1", "1", "-"] in lines and ["distinct_3", "-", "-"] in lines
    assert ["self_bleu", "0", "-"] in lines and "nan" not in shown.file.getvalue()


def test_text_of_a_model_is_shown_literally():
    nasty = "[bold]x[/bold] \x1b[31mred \u202e"
    report = {"experiment": nasty, "data": {"path": nasty}, "wins": None}
    report["metrics"] = {"model": {nasty: {"value": 0.5, "ci95": [0.25, 0.75]}}}
    shown = Console(file=io.StringIO(), width=200, _environ={})
    row = {"of": "model", "sample": 0, "prompt": nasty, "response": nasty, "score": None}
    show(report, [row, row | {"sample": 1}], count=2, console=shown)
    text = shown.file.getvalue()
    assert text.count("[bold]x[/bold] \\x1b[31mred \\u202e") == 5 and "\x1b[31m" not in text
    assert "0.5 [0.25, 0.75]" in text
