"""The page of a run: plots, samples and numbers of single tokens, against a slow float64 model."""

import json
from pathlib import Path

import numpy as np
import pytest

from decoder_oracle import slow_hidden, slow_logits
from ppo_jax.config import replace
from ppo_jax.critics import load_critic
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.report_html import token_views
from ppo_jax.report_tokens import ADVANTAGE, KL, LOGPROB, RATIO, UNITS, VALUE, token_rows
from ppo_jax.run_folder import run_folder
from ppo_jax.train import train
from report_builders import assert_self_contained, write_run
from tiny_runs import CONFIG, ascii_share, write_prompts

TEMPERATURE, GAMMA, LAM, COEF = 0.7, 0.9, 0.8, 0.3
HOSTILE = "</td><script>alert(1)</script>\x1b[31m\u202e\nsecond line"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations that move policy and critic away from where they began."""
    folder = tmp_path_factory.mktemp("run")
    changes = {
        "run.dir": str(folder),
        "data.path": write_prompts(folder),
        "run.iterations": 2,
        "parallel.data": 1,
        "run.samples": 4,
        "rollout.stop_token_ids": (ord("!"),),
        "reward.reference": "fixed",
        "reward.kl_controller": "fixed",
        "reward.normalize_scores": False,
        "hparams.kl_coef": COEF,
        "hparams.kl_target": None,
        "hparams.temperature": TEMPERATURE,
        "hparams.gamma": GAMMA,
        "hparams.lam": LAM,
        "hparams.learning_rate": 1e-2,
    }
    config = replace(CONFIG, **changes)
    train(config, Experiment("case", config, ascii_share, Path("case.py"), ""))
    return run_folder(folder / "case" / "base" / "seed0")


@pytest.fixture(scope="module")
def rows(run):
    """Samples as the log has them, but for one whose text is known to stay the same in tokens."""
    samples = read_samples(run.samples)
    known = {"step": 1, "prompt": "abc", "response": "xyz", "score": 0.5, "tokens": 4}
    unscored = {**known, "response": "w!", "score": "nan", "tokens": 9, "ended": False}
    return token_rows(run.root, [*samples, {**known, "ended": True}, unscored], 4)


def slow_logprobs(source, ids_S):
    trunk = load_trunk(source)
    hidden_SD = slow_hidden(source.config, trunk, np.asarray(ids_S))
    logits_SV = slow_logits(source.config, trunk, hidden_SD) / TEMPERATURE
    return logits_SV - np.logaddexp.reduce(logits_SV, axis=-1, keepdims=True)


def test_numbers_of_tokens_are_those_of_a_slow_float64_model(run, rows):
    source, start = open_source(str(run.root)), open_source(None, CONFIG.model.shape, seed=0)
    critic = load_critic(source)
    assert len(rows) == 4 and [len(row.ids) for row in rows[2:]] == [4, 2]
    for row in rows[2:]:
        prompt = source.tokenizer.encode("abc")
        ids_S = [*prompt, *row.ids]
        before_T = np.arange(len(prompt) - 1, len(ids_S) - 1)
        ours_SV, start_SV = slow_logprobs(source, ids_S), slow_logprobs(start, ids_S)
        hidden_SD = slow_hidden(critic.config, critic.trunk, np.asarray(ids_S))
        expected = {
            LOGPROB: ours_SV[before_T, row.ids],
            RATIO: (ours_SV - start_SV)[before_T, row.ids],
            KL: (np.exp(ours_SV) * (ours_SV - start_SV)).sum(axis=1)[before_T],
            VALUE: (hidden_SD @ np.asarray(critic.head["kernel"], np.float64))[before_T, 0],
        }
        for name, numbers_T in expected.items():
            np.testing.assert_allclose(row.numbers[name], numbers_T, atol=2e-4, err_msg=name)
            assert np.abs(numbers_T).max() > 1e-3


def test_a_response_that_a_token_of_its_text_has_stopped_gets_no_other_end(run):
    said = {"step": 1, "prompt": "abc", "response": "w!", "score": 0.5, "tokens": 2, "ended": True}
    (row,) = token_rows(run.root, [said], 1)
    assert row.ids == [ord("w"), ord("!")]


def test_what_an_environment_wrote_in_is_refused(run):
    said = {"step": 7, "prompt": "abc", "response": "w!", "tokens": 2, "written": 1}
    with pytest.raises(ConfigError, match="tokens=1: .*step 7: an environment wrote in it"):
        token_rows(run.root, [said], 1)


def test_advantages_are_gae_of_score_and_penalty(rows):
    """The sum over later tokens, in float64; a row without a score has none."""
    known, unscored = rows[2:]
    assert ADVANTAGE in known.numbers and ADVANTAGE not in unscored.numbers
    rewards_T = -COEF * known.numbers[RATIO]
    rewards_T[-1] += 0.5
    values_U = np.append(known.numbers[VALUE], 0.0)
    deltas_T = rewards_T + GAMMA * values_U[1:] - values_U[:-1]
    expected = [
        sum((GAMMA * LAM) ** (k - t) * deltas_T[k] for k in range(t, len(deltas_T)))
        for t in range(len(deltas_T))
    ]
    np.testing.assert_allclose(known.numbers[ADVANTAGE], expected, atol=1e-5)


def test_tokens_carry_their_text_and_their_numbers(rows):
    assert rows[2].tokens[:3] == list("xyz") and rows[2].tokens[3]  # the end has a name
    views = token_views(rows[2:], UNITS)
    page = assert_self_contained("\n".join(views))
    titles = [a["title"] for tag, a in page.elements if tag == "span" and "title" in a]
    numbers = rows[2].numbers[LOGPROB]
    first = titles.index(f"{numbers[0]:.4g}")
    assert titles[first : first + 4] == [f"{x:.4g}" for x in numbers]
    assert "2 tokens of its text, 9 as it was sampled" in page.text
    assert "4 tokens\n" in page.text and "4 tokens of its text" not in page.text


def test_colours_say_sign_and_size(rows):
    row = rows[2]._replace(tokens=list("abc"), ids=[1, 2, 3], numbers={})
    (view,) = [
        line
        for line in token_views([row._replace(numbers={VALUE: np.array([-2.0, 0.0, 1.0])})], UNITS)
        if "tokens" in line and "rgb" in line
    ]
    colours = [line.split(")")[0] for line in view.split("rgb(")[1:]]
    assert colours == ["86,180,233", "255,255,255", "242,207,128"]


def test_the_page_of_a_run(run, tmp_path, capsys):
    words = ["report", str(run.root), "--tokens", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    page = (tmp_path / "report.html").read_text()
    seen = assert_self_contained(page)
    assert "case / base / seed0" in seen.text and "Token by token" in seen.text
    assert "explained variance of values" in seen.text and RATIO in seen.text
    last = read_metrics(run.metrics)[-1]["objective/kl"]
    assert "objective/kl" in seen.text and last > 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert main(words[:2]) == 0
    alone = (run.root / "report.html").read_text()
    assert "Token by token" not in alone and "<svg" in alone
    assert main(words[:2]) == 0 and (run.root / "report.html").read_text() == alone


def test_hostile_samples_stay_text(tmp_path):
    folder = write_run(tmp_path / "a", [0.5, "nan"], error=HOSTILE, status="failed")
    chat = [{"role": HOSTILE, "content": HOSTILE}]
    sample = {"step": 1, "prompt": chat, "response": HOSTILE, "score": "nan", "tokens": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (folder / "env.json").write_text(json.dumps({"argv": ["x", HOSTILE], "python": [HOSTILE]}))
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    seen = assert_self_contained(text)
    assert "\x1b" not in text and "\u202e" not in text and "<script" not in text
    assert seen.text.count("<script>") >= 5 and "second line" in seen.text


def test_a_run_that_has_no_such_thing(tmp_path, capsys):
    folder = write_run(tmp_path / "a", [])
    (folder / "samples.jsonl").write_text('{"step": 0, "response": ""}\n')
    assert main(["report", str(folder)]) == 0  # a page without plots
    assert "<svg" not in (folder / "report.html").read_text()
    capsys.readouterr()
    assert main(["report", str(folder), "--tokens", "2"]) == 2
    assert "samples.jsonl holds no response; nearest: 0" in capsys.readouterr().err
