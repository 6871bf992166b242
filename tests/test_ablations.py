"""The ablations: each is a sweep that says what it expects, and has its place in the tables."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_jax.config import replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import ABLATIONS, list_experiments, load_experiment
from ppo_jax.grid import read_grid
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.byte_stream import byte_tables
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.types import Texts
from reward_rows import make_rollout

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ABLATIONS
NAMES = sorted(list_experiments(ABLATIONS))
FIVE_SEEDS = {"kl_penalty", "clipping", "gae_lambda", "critics", "eos", "eos_bug"}
# What all that are of one task have in common, so that their cells stand beside each other.
SMALL = {"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
OWN = {"eos": {"rollout.max_new_tokens": 8}, "value_pretraining": {"model.critic": "separate"}}
OWN["eos_bug"] = OWN["eos"]
OTHER_TASKS = {"kl_penalty_sentiment", "overoptimisation", "ziegler"}


@pytest.mark.parametrize("name", NAMES)
def test_every_ablation_is_a_sweep_that_says_what_it_expects(name):
    experiment = load_experiment(name)
    assert experiment.path.parent == FOLDER and name not in list_experiments()
    assert load_experiment(f"ablations/{name}").path == experiment.path
    with pytest.raises(ConfigError, match=f"nearest: .*ablations/{name}"):
        load_experiment(f"ablations/{name}s")
    grid = read_grid(experiment)
    assert len(grid.cells) >= (1 if name == "ziegler" else 2) * len(grid.seeds)  # a curve's shape
    assert len(grid.seeds) >= (5 if name in FIVE_SEEDS else 3)
    for command in (f"ppo-jax sweep {name}", f"ppo-jax report {name}"):
        assert command in experiment.doc
    for word in ("Question:", "Published:", "Prediction, before any run:", "It fails", "Hardware:"):
        assert word in experiment.doc
    kept: dict[str, Any] = {cell.hash: cell.changes for cell in grid.cells}
    assert len(kept) == len(grid.cells) / len(grid.seeds)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_run_says_what_was_seen(name):
    doc, was_run = load_experiment(name).doc, (ROOT / f"experiments/results/{name}").is_dir()
    assert ("\nSeen" in doc, "Not yet run." in doc) == (was_run, not was_run)
    rows = (FOLDER / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| [AR]\d+ \| `{name}\.py` \|.*\|$", rows, re.M)
    _, _, _, predicted, published, agrees, size, seen = row.strip("| ").split(" | ")
    assert predicted and published and re.fullmatch(r"\d+ x \d+", size)
    assert (seen == "not yet run") == (agrees == "-") == (not was_run)
    assert not was_run or re.match(r"(yes|no|in part)\b", agrees)


TABLES = sorted(
    path for name in NAMES for path in (ROOT / "experiments/results" / name).glob("*.md")
)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_results_name_the_code_they_are_of(path):
    """A commit without changes, a device, versions; and no file that is not there."""
    text = path.read_text(encoding="utf-8")
    facts = dict(re.findall(r"^(?:\| |- )(\w+)(?: \| |: )(.+?)(?: \|)?$", text, re.M))
    commit = r"[0-9a-f]{12}( \(\d+ runs\))?"
    assert re.fullmatch(f"{commit}(; {commit})*", facts["commit"]), facts
    assert facts["device"] and facts["jax"]
    for file in re.findall(r"results/[\w./-]+\.(?:jsonl|json|md|svg|csv)", text):
        assert (ROOT / "experiments" / file).is_file(), file


@pytest.mark.parametrize("name", sorted({*NAMES} - OTHER_TASKS))
def test_those_on_sums_start_from_one_configuration(name):
    changes = SMALL | OWN.get(name, {})
    assert load_experiment(name).base == replace(load_experiment("arithmetic").base, **changes)


def test_make_reproduce_runs_every_ablation():
    text = (FOLDER / "reproduce.mk").read_text(encoding="utf-8")
    table = dict(re.findall(r"^REPRODUCE_([AR]\d+) := (.+)$", text, re.M))
    assert list(table) == [*(f"A{n}" for n in range(1, 11)), "R4", "R6"]
    assert sorted(" ".join(table.values()).split()) == NAMES
    (ids,) = re.findall(r"^REPRODUCE_IDS := (.+)$", text, re.M)
    assert ids.split() == list(table)
    rows = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| ([AR]\d+) \| `(\w+)\.py`", rows, re.M)
    assert shown == [(key, name) for key, names in table.items() for name in names.split()]


def test_make_reproduce_asks_for_the_reward_models_of_the_sweep():
    """Best of n is scored by the stages of overoptimisation's first three runs, seed by seed."""
    said = _make("reproduce", "ONLY=R6", "RUN_DIR=there").stdout
    asked = re.findall(r"eval over.* --run.seed (\d) .*run\.cell (\S+) --out (\S+) ", said)
    grid = read_grid(load_experiment("overoptimisation"))
    stages = [cell.name for cell in grid.stages if cell.name.startswith("reward-model")]
    names = ["16-of-250", "32-of-1000", "128-of-8000"]
    assert names == [cell.name for cell in grid.cells if cell.seed == 0][:3]
    expected = [
        (str(seed), stage, f"there/overoptimisation/best-of-{name}-seed{seed}")
        for seed in grid.seeds
        for name, stage in zip(names, dict.fromkeys(stages), strict=False)
    ]
    assert asked == expected


def test_make_reproduce_takes_rows():
    said = _make("reproduce", "ONLY=A6 A3", "RUN_DIR=there")
    asked = re.findall(r"-m ppo_jax (.+?) *(?:\|\||$)", said.stdout, re.M)
    expected = []
    for words in ("critics", "value_pretraining --vmap", "gae_lambda --vmap"):
        expected += [f"sweep {words} --run.dir there", f"report {words.split()[0]} --run.dir there"]
    assert [" ".join(words.split()) for words in asked] == [*expected, "report --index"]
    said = _make("reproduce", "ONLY=A11")
    assert said.returncode == 2 and "ONLY=A11: expected some of cartpole" in said.stderr


def _make(*words):
    command = ["make", "--dry-run", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_right_beginning_counts_wherever_the_response_ends():
    (part,) = parse_rewards(load_experiment("eos").reward)
    rows = [b"221", b"221", b"2219", b"22", b"121", b"x221"]
    rollout = make_rollout([list(row) for row in rows], 8, ended=[1, 0, 0, 1, 1, 0])
    ids_BCM = np.tile(np.frombuffer(b"221", np.uint8), (len(rows), 1, 1))
    sizes_BC = np.full((len(rows), 1), 3, np.int32)
    answers = Texts(ids_BCM.astype(np.int32), sizes_BC, ids_BCM, sizes_BC)
    tables = byte_tables(byte_tokenizer(), 259)
    assert part.device is not None
    scores_B = part.device.fn(rollout, {"answer": answers}, tables)
    assert scores_B.tolist() == [1, 1, 1, 0, 0, 0]
