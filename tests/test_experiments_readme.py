"""What experiments/README.md shows works as pasted: environments in Python, ordinary RL code."""

import importlib
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_jax.rewards
from ppo_jax.experiment import load_experiment
from ppo_jax.flags import parse_config
from ppo_jax.grid import read_grid
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics
from ppo_jax.rewards.base import DeviceReward, LearnedReward

README = (Path(__file__).parents[1] / "experiments" / "README.md").read_text(encoding="utf-8")
TOOL, GYMNASIUM, LOOP, SWEEP = re.findall(r"```python\n(.*?)```", README, re.S)
QUICK = (
    "--run.iterations 2 --rollout.batch_size 8 --parallel.data 1 --run.compile_cache None "
    "--run.show_prompts 0 --run.profile_after 0 --ppo.token_sizes None --model.remat none"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the rows that the example names."""
    monkeypatch.chdir(tmp_path)
    (row,) = re.findall(r"# lines like (\{.*\})", TOOL)
    (tmp_path / "sums.jsonl").write_text(row + "\n")
    return tmp_path


def test_a_sweep_has_its_cells_as_pasted(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SWEEP)
    grid = read_grid(load_experiment(path))
    names = {f"epochs={epochs},lam={lam:g}" for epochs in (1, 2) for lam in (0.95, 1.0)}
    assert {cell.name for cell in grid.cells} == names and len(grid.cells) == 20
    assert grid.windows == {"policy/approxkl_avg": (0, 50)} and grid.base == "epochs=2,lam=1"


@pytest.mark.parametrize("name, source", [("asked", TOOL), ("turns", TOOL + GYMNASIUM)])
def test_environments_in_python_train_as_pasted(folder, name, source):
    (folder / "mine.py").write_text(source)
    assert main(["train", "mine.py", *QUICK.split()]) == 0
    rows = read_metrics(folder / "runs/mine/base/seed0/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["val/ratio_first_max_dev"] <= 1e-5 for row in rows)
    assert f"env/{name}" in rows[0] and ("env/asked" in rows[0]) == (source == TOOL)


def test_the_calculator_answers_and_judges(folder):
    (folder / "mine.py").write_text(TOOL)
    player = load_experiment("mine.py").environment.make()
    row = json.loads((folder / "sums.jsonl").read_text())
    assert player.reset(0, row) == ""
    assert player.step("?17*3\n") == ("51\n", -0.05, False)
    assert player.step("?(\n") == ("None\n", -0.05, False)
    assert player.step("51\n") == ("", 1.0, True) and player.step("50")[1] == 0.0
    assert player.measures() == {"asked": 2}


def test_the_lake_is_crossed(folder):
    (folder / "mine.py").write_text(TOOL + GYMNASIUM)
    player = load_experiment("mine.py").environment.make()
    assert player.reset(0, {}) == "00\n"
    answers = [player.step(move) for move in "ddrrdr"]
    assert [text for text, *_ in answers] == ["04\n", "08\n", "09\n", "10\n", "14\n", "15\n"]
    assert answers[-1][1:] == (1.0, True, False)
    assert not any(reward for _, reward, *_ in answers[:-1])


def test_ordinary_rl_code_runs_as_pasted(folder):
    quick = f"train textgen_period {QUICK} --ppo.minibatches 1"
    assert main(quick.split()) == 0
    (folder / "loop.py").write_text(LOOP)
    command = [sys.executable, "loop.py"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 5 and all(re.match(r"[01]\.0 ['\"]", line) for line in lines)


def test_the_table_names_every_reward():
    """Public functions of the library that make a reward, or the parts of several."""
    section = README[README.index("## Rewards") : README.index("## Environments")]
    named = set(re.findall(r"`(\w+\.\w+)\(", section))
    made = r"(DeviceReward|LearnedReward|list\[Part\]|Callable\[\.\.\., list\[float\]\])$"
    found = set()
    for module in pkgutil.iter_modules(ppo_jax.rewards.__path__):
        code = importlib.import_module(f"ppo_jax.rewards.{module.name}")
        for name, thing in inspect.getmembers(code, inspect.isfunction):
            returns = thing.__annotations__.get("return")
            returns = returns.__name__ if returns in (DeviceReward, LearnedReward) else str(returns)
            here = thing.__module__ == code.__name__ and not name.startswith("_")
            if here and re.search(made, returns.replace("ppo_jax.rewards.base.", "")):
                found.add(f"{module.name}.{name}")
    assert len(found) > 15 and named == found - {"base.parse_rewards"}


def test_the_commands_of_gsm8k_can_be_pasted():
    doc = load_experiment("gsm8k").doc
    text = re.search(r"\.venv/bin/ppo-jax train gsm8k.*?\n\n", doc, re.S)[0]
    words = shlex.split(text.replace("\\\n", " "))
    config = parse_config("train gsm8k", words[3:], load_experiment("gsm8k"))
    assert config.data.eval_path is None and config.hparams.learning_rate == 1e-5
    assert "\\\n" in text and not [word for word in words if word == "\\"]
