"""The stages of an experiment: which there are, whose flag is whose, and what ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppo_jax import flags
from ppo_jax.config import Config, ModelConfig, replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.main import main
from ppo_jax.pipeline import commands_of, stages_of
from ppo_jax.validate import check_config

ALL = Experiment("x", Config(), None, Path("x.py"), "", sft=Config(), reward_model=Config())
PPO = Experiment("x", Config(), None, Path("x.py"), "")


def test_stages_are_those_that_the_file_defines():
    assert stages_of(ALL) == ["sft", "reward-model", "train", "eval"]
    assert stages_of(PPO) == ["train", "eval"]


def test_each_flag_goes_to_its_stage():
    words = "x --run.seed 3 --sft.run.iterations=9 --hparams.kl_coef 0.1".split()
    words += "--eval.samples 4 --reward-model.optim.eps 1e-8".split()
    assert commands_of(ALL, words) == [
        "sft x --run.seed 3 --run.iterations 9".split(),
        "reward-model x --run.seed 3 --optim.eps 1e-8".split(),
        "train x --run.seed 3 --hparams.kl_coef 0.1".split(),
        "eval x --run.seed 3 --hparams.kl_coef 0.1 --samples 4 --against @sft".split(),
    ]
    words = "x --allow_config_change --eval.against other".split()
    assert commands_of(ALL, words) == [
        "sft x --allow_config_change".split(),
        "reward-model x --allow_config_change".split(),
        "train x --allow_config_change".split(),
        "eval x --against other".split(),
    ]
    assert commands_of(PPO, ["x"]) == [["train", "x"], ["eval", "x"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--run.seed", "--run.seed: expected flags with a value each"),
        ("seed 3", "seed: expected a flag"),
        ("--sft.run.seed 3", "--sft.run.seed: x.py has no such stage: train, eval"),
    ],
)
def test_words_that_are_no_stage_s_flags(words, said):
    with pytest.raises(ConfigError, match=said):
        commands_of(PPO, ["x", *words.split()])


SCRIPT = """
import sys
from ppo_jax import pipeline
pipeline.sys.executable = sys.argv[1]
sys.exit(pipeline.run_pipeline([["first"], ["second"], ["third"]]))
"""
STAGE = """#!{python}
import signal, sys, time
def end(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("ran", sys.argv[3], flush=True)
if sys.argv[3] == "second":
    {second}
"""


def launched(folder, second):
    """A pipeline of three stages, the second one of which does this."""
    stage = folder / "stage"
    stage.write_text(STAGE.format(python=sys.executable, second=second))
    stage.chmod(0o755)
    command = [sys.executable, "-c", SCRIPT, str(stage)]
    path = str(Path(__file__).parents[1])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.parametrize(("second", "code"), [("pass", 0), ("sys.exit(7)", 7)])
def test_the_first_stage_that_fails_is_the_last_with_its_code(tmp_path, second, code):
    process = launched(tmp_path, second)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert out.split("\n")[0] == "[1/3] ppo-jax first"
    assert ("ran third" in out) == (code == 0) and "ran second" in out


def test_a_signal_reaches_the_stage_whose_code_is_the_pipeline_s(tmp_path):
    process = launched(tmp_path, "time.sleep(100)")
    assert process.stdout is not None
    for line in process.stdout:
        if line == "ran second\n":
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "saved" in out and "third" not in out


def test_another_model_brings_its_own_shape():
    random = replace(Config(), **{"model.path": None, "model.shape.embed_dim": 128})
    mine = ALL._replace(base=random, doc="")
    other = flags.parse_config("sft x", ["--model.path", "smollm2-135m"], mine)
    assert other.model.shape == ModelConfig()
    check_config(other)
    assert flags.parse_config("sft x", [], mine).model.shape.embed_dim == 128
    asked = ["--model.path", "smollm2-135m", "--model.shape.embed_dim", "64"]
    with pytest.raises(ConfigError, match="shape.num_layers=3: read only without a model.path"):
        deeper = replace(random, **{"model.shape.num_layers": 3})
        check_config(flags.parse_config("sft x", asked, mine._replace(base=deeper)))


def test_a_stage_has_a_folder_of_its_own():
    assert flags.stage(ALL, "BASE").base.run.cell == "base"
    assert flags.stage(ALL, "SFT").base.run.cell == "sft"
    assert flags.stage(ALL, "REWARD_MODEL").base.run.cell == "reward-model"
    named = ALL._replace(sft=replace(Config(), **{"run.cell": "mine"}))
    assert flags.stage(named, "SFT").base.run.cell == "mine"


@pytest.mark.parametrize(
    "words",
    [
        "--hparams.kl_coeff 0.1",
        "--ppo.epochs 0",
        "--reward-model.run.iterations many",
        "--eval.samples 0",
    ],
)
def test_a_wrong_flag_of_any_stage_is_found_before_the_first_begins(monkeypatch, words):
    begun = []
    monkeypatch.setattr("ppo_jax.pipeline.run_pipeline", begun.append)
    try:
        code = main(["pipeline", "dialogue", *words.split()])
    except SystemExit as error:  # tyro's own
        code = error.code
    assert (code, begun) == (2, [])


def test_flags_of_all_stages_are_taken(monkeypatch):
    begun = []
    monkeypatch.setattr("ppo_jax.pipeline.run_pipeline", lambda commands: begun.append(commands))
    words = "--run.seed 3 --sft.optim.eps 1e-8 --eval.temperature greedy --strict_resume"
    assert main(["pipeline", "dialogue", *words.split()]) == 0
    assert [command[0] for command in begun[0]] == ["sft", "reward-model", "train", "eval"]
