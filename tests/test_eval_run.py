"""`ppo-jax eval`: what it writes is what the responses say, by independent models and sums."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from decoder_oracle import slow_hidden, slow_logits
from ppo_jax.config import ModelConfig
from ppo_jax.experiment import all_parts, load_experiment
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics
from ppo_jax.weights import save_hf

SHAPE = ModelConfig(
    num_layers=1, embed_dim=32, mlp_dim=32, init_std=0.4, max_positions=64, vocab_size=259
)
PROMPTS = [{"prompt": f"say {word}", "letter": word[0]} for word in "air bee car dot egg".split()]
K, TEMPERATURE = 3, 0.7
FILE = '''"""A tiny model that is to write ASCII, judged by whether it writes a digit or its letter.

    make train EXP=mine
Expected: nothing.
"""
from ppo_jax.config import Config, replace

BASE = replace(Config(), **{
    "model.path": "MODEL", "data.path": "TRAIN", "data.eval_path": "HELD",
    "data.max_prompt_tokens": 12, "rollout.batch_size": 8, "rollout.max_new_tokens": 6,
    "ppo.epochs": 1, "ppo.token_sizes": None, "run.iterations": 1, "run.dir": "RUNS",
    "run.progress": False, "run.show_prompts": 0, "run.compile_cache": None,
    "hparams.learning_rate": 0.01, "model.remat": "none", "parallel.data": 2,
    "hparams.temperature": TEMPERATURE, "run.eval_every": 1,
})


def ascii_share(rollout, columns):
    return ((rollout.response_ids_BT < 128) * rollout.mask_BT).sum(axis=1) / rollout.lengths_B


def spaces(prompts, responses, letter):
    return {"some": [float(" " in text) for text in responses], "none": [0.0 for _ in prompts]}


REWARD = [(2.0, ascii_share), (0.5, spaces)]


def JUDGE(prompts, responses, letter):
    passes = lambda text, own: any(char.isdigit() or char == own for char in text)
    return [float(passes(text, own)) for text, own in zip(responses, letter)]
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A random model as a folder, data, and an experiment that has trained for an iteration."""
    folder = tmp_path_factory.mktemp("eval")
    source = open_source(None, SHAPE, seed=5)
    save_hf(folder / "model", SHAPE, load_trunk(source), source.tokenizer)
    for name in ("train", "held"):
        lines = PROMPTS if name == "held" else PROMPTS[:2]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = FILE.replace("MODEL", str(folder / "model")).replace("RUNS", str(folder / "runs"))
    text = text.replace("TEMPERATURE", str(TEMPERATURE))
    for name in ("TRAIN", "HELD"):
        text = text.replace(name, str(folder / f"{name.lower()}.jsonl"))
    (folder / "mine.py").write_text(text)
    assert main(["train", str(folder / "mine.py"), "--reward.workers", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def sampled(files):
    """(numbers, rows) of the run beside its reference, at a temperature."""
    words = ["eval", str(files / "mine.py"), "--against", "@reference", "--samples", str(K)]
    assert main([*words, "--reward.workers", "1"]) == 0
    return written(files / "runs" / "mine" / "base" / "seed0")


def written(folder: Path):
    numbers = json.loads((folder / "eval.json").read_text())
    return numbers, [json.loads(line) for line in (folder / "eval.jsonl").open()]


def of(rows, which):
    return [row for row in rows if row["of"] == which]


def test_all_prompts_are_answered_by_both(sampled):
    numbers, rows = sampled
    for which in ("model", "against"):
        found = of(rows, which)
        wanted = [(n + 1, row["prompt"], k) for n, row in enumerate(PROMPTS) for k in range(K)]
        assert [(row["line"], row["prompt"], row["sample"]) for row in found] == wanted
        assert len({row["response"] for row in found}) > K  # each sample with noise of its own
    assert numbers["model"]["asked"] == "@train" and numbers["model"]["step"] == 1
    assert numbers["against"]["asked"] == "@reference" and numbers["against"]["step"] is None
    assert numbers["data"]["held_out"] and numbers["data"]["prompts"] == len(PROMPTS)
    assert numbers["weights"] == {"ascii_share": 2.0, "spaces": 0.5, "judge.JUDGE": 1.0}


def test_first_samples_are_those_of_the_run_s_own_evaluation(files, sampled):
    (line,) = read_metrics(files / "runs" / "mine" / "base" / "seed0" / "metrics.jsonl")
    first = [row for row in of(sampled[1], "model") if row["sample"] == 0]
    mean = lambda name: np.mean([row[name] for row in first])
    assert line["eval/kl"] == pytest.approx(mean("kl"), abs=1e-6) != 0
    assert line["eval/scores"] == pytest.approx(mean("score"), rel=1e-6)
    assert line["eval/length_mean"] == mean("tokens")
    assert line["eval/judge"] == line["eval/judge.JUDGE"] == mean("judge")
    began = [row for row in of(sampled[1], "against") if row["sample"] == 0]
    wins = [
        0.5 if ours["judge"] == theirs["judge"] else float(ours["judge"] > theirs["judge"])
        for ours, theirs in zip(first, began, strict=True)
    ]
    assert line["eval/win_rate"] == pytest.approx(np.mean(wins))


def test_numbers_are_those_of_the_rows(sampled):
    numbers, rows = sampled
    for which, said in numbers["metrics"].items():
        found = of(rows, which)
        column = lambda *keys, found=found: np.array(
            [row[keys[0]] if len(keys) == 1 else row[keys[0]][keys[1]] for row in found], float
        )
        means = {"scores": column("score"), "judge": column("judge"), "kl": column("kl")}
        means |= {"length_mean": column("tokens"), "ended": column("ended")}
        means |= {name: column("parts", name) for name in found[0]["parts"]}
        for name, values in means.items():
            assert said[name]["value"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9), name
            assert said[name]["n"] == len(PROMPTS) and said[name]["over"] == "prompts"
            low, high = said[name]["ci95"]
            assert low <= said[name]["value"] <= high
        tokens = column("tokens").sum()
        perplexity = math.exp(-column("ref_plain").sum() / tokens)
        assert said["ref_perplexity"]["value"] == pytest.approx(perplexity, rel=1e-6)
        assert said["entropy"]["value"] == pytest.approx(column("entropy").sum() / tokens, rel=1e-6)
        best = column("score").reshape(-1, K).max(axis=1).mean()
        assert said[f"best_of_{K}"]["value"] == pytest.approx(best, rel=1e-6)
        words = [row["response"].split() for row in found]
        pairs = [pair for text in words for pair in zip(text, text[1:], strict=False)]
        known = len(set(pairs)) / len(pairs) if pairs else None
        assert said["distinct_2"]["value"] == known and said["distinct_2"]["ci95"] is None
        assert {"pass@1", "pass@2", f"pass@{K}"} <= said.keys() and "pass@4" not in said
        assert said["pass@1"]["value"] == pytest.approx(said["judge"]["value"])
        some = np.mean(column("judge").reshape(-1, K).max(axis=1))
        assert said[f"pass@{K}"]["value"] == pytest.approx(some)


def test_scores_are_those_of_reward_and_judge(files, sampled):
    parts = {part.name: part for part in all_parts(load_experiment(files / "mine.py"))}
    letters = {row["prompt"]: row["letter"] for row in PROMPTS}
    for row in sampled[1]:
        text, letter = row["response"], letters[row["prompt"]]
        share = np.mean([i < 128 for i in row["response_ids"]])
        assert row["parts"]["ascii_share"] == pytest.approx(share, rel=1e-6)
        assert row["score"] == pytest.approx(2 * share + 0.5 * (" " in text), rel=1e-6)
        assert row["judge"] == parts["judge.JUDGE"].host([""], [text], [letter])[0]


def test_wins_are_over_pairs_of_a_prompt(sampled):
    numbers, rows = sampled
    mine, other = ([row["judge"] for row in of(rows, which)] for which in ("model", "against"))
    shares = []
    for n in range(len(PROMPTS)):
        pairs = [(a, b) for a in mine[n * K :][:K] for b in other[n * K :][:K]]
        shares.append(np.mean([0.5 if a == b else float(a > b) for a, b in pairs]))
    wins = numbers["wins"]
    assert wins["value"] == pytest.approx(np.mean(shares)) and wins["by"] == "judge"
    assert wins["won"] + wins["tied"] + wins["lost"] == wins["n"] == len(PROMPTS)
    assert wins["won"] == sum(share > 0.5 for share in shares)
    assert wins["ci95"][0] <= wins["value"] <= wins["ci95"][1]


def test_log_probabilities_are_those_of_a_slow_decoder(files, sampled):
    """In float64, one sequence after another; KL at the temperature, perplexity without it."""
    run = files / "runs" / "mine" / "base" / "seed0"
    trunks = {
        "model": load_trunk(open_source(str(run))),
        "ref": load_trunk(open_source(None, SHAPE, seed=5)),
    }
    trunks = {
        name: jax.tree.map(lambda x: np.asarray(x, np.float64), x) for name, x in trunks.items()
    }
    encode = open_source(str(run)).tokenizer.encode
    for row in (of(sampled[1], "model") + of(sampled[1], "against"))[:: 2 * K]:
        policy = trunks["model" if row["of"] == "model" else "ref"]
        prompt, ids = encode(row["prompt"]), row["response_ids"]
        for name, trunk, temperature in (
            ("logprob", policy, TEMPERATURE),
            ("ref_logprob", trunks["ref"], TEMPERATURE),
            ("ref_plain", trunks["ref"], 1.0),
        ):
            hidden = slow_hidden(SHAPE, trunk, np.array(prompt + ids))
            logits = slow_logits(SHAPE, trunk, hidden)[len(prompt) - 1 : -1] / temperature
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            wanted = logprobs[np.arange(len(ids)), ids].sum()
            assert row[name] == pytest.approx(wanted, rel=1e-4), name
            if name == "logprob":
                entropy = -(np.exp(logprobs) * logprobs).sum()
                assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
        assert row["kl"] == pytest.approx(row["logprob"] - row["ref_logprob"], abs=1e-6)
    assert all(abs(row["kl"]) < 1e-5 for row in of(sampled[1], "against"))
    assert any(abs(row["kl"]) > 1e-2 for row in of(sampled[1], "model"))


def test_greedy_on_the_prompts_of_the_run(files, tmp_path, capsys):
    words = [
        "eval",
        str(files / "mine.py"),
        "--temperature",
        "greedy",
        "--out",
        str(tmp_path / "x"),
    ]
    flags = ["--data.eval_path", "None", "--data.eval_rows", "1", "--reward.workers", "0"]
    flags += ["--run.eval_every", "None"]
    assert main([*words, *flags]) == 0
    said = capsys.readouterr()
    assert "data.eval_path=None: these are the prompts of" in said.err
    numbers, rows = written(tmp_path / "x")
    (row,) = rows
    assert numbers["temperature"] == 0 and not numbers["data"]["held_out"]
    assert "kl" not in numbers["metrics"]["model"] and numbers["wins"] is None
    assert numbers["metrics"]["model"]["scores"]["ci95"] is None  # of one prompt
    source = open_source(str(files / "runs" / "mine" / "base" / "seed0"))
    trunk = jax.tree.map(lambda x: np.asarray(x, np.float64), load_trunk(source))
    prompt, ids = source.tokenizer.encode(row["prompt"]), row["response_ids"]
    hidden = slow_hidden(SHAPE, trunk, np.array(prompt + ids))
    logits = slow_logits(SHAPE, trunk, hidden)[len(prompt) - 1 : -1]
    assert ids == logits.argmax(axis=1).tolist()
    wanted = logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))
    assert row["logprob"] == pytest.approx(wanted.sum(), rel=1e-4)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--samples", "2", "--temperature", "0"], "samples=2: all alike at temperature 0"),
        (["--samples", "0"], "samples=0: must be in [1, inf)"),
        (["--model", "@sft"], "@sft: no run"),
        (["--model", "@tain"], "nearest valid: @train"),
        (["--model", "@reference"], "--out: @reference is no run folder"),
        (["--model", "/nope"], "--model /nope: does not exist; expected a run folder, or"),
        (["--model", "runs/nope/base@3"], "--model runs/nope/base@3: does not exist"),
        (["--model", "org/name@main"], "--out: org/name@main is no run folder, so"),
        (["--model", "smollm2-135m"], "--out: smollm2-135m is no run folder, so"),
    ],
)
def test_what_cannot_be_evaluated_is_said(files, flags, says, capsys):
    assert main(["eval", str(files / "mine.py"), *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
