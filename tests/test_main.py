"""The command line: what it hands on, what it refuses, in which words and with which code."""

import subprocess
import sys
from pathlib import Path

import pytest

from ppo_jax import commands, errors, main, plan, train
from ppo_jax.arguments import ExportArgs, GenerateArgs, PlanArgs, ScoreArgs, TrainArgs
from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def handed(monkeypatch):
    """What the commands were called with; they do nothing."""
    calls = []
    monkeypatch.setattr(train, "train", lambda *args: calls.append(args))
    for name in ("generate", "score", "export"):
        monkeypatch.setattr(commands, name, lambda args: calls.append(args))
    return calls


def run(*words):
    """Exit code of a command; tyro's own errors leave by SystemExit."""
    try:
        return main.main(words)
    except SystemExit as end:
        return end.code


def test_train_hands_on_the_experiment_as_it_is(handed):
    assert run("train", "tiny") == 0
    [(config, experiment, args, _, kind)] = handed
    assert config == load_experiment("tiny").base and args == TrainArgs()
    assert kind.command == "train"
    assert experiment.name == "tiny" and experiment.path == ROOT / "experiments" / "tiny.py"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--strict_resume"], TrainArgs(strict_resume=True)),
        (["--strict-resume"], TrainArgs(strict_resume=True)),
        (
            ["--allow_config_change", "--run.seed", "3", "--strict_resume"],
            TrainArgs(strict_resume=True, allow_config_change=True),
        ),
    ],
)
def test_switches_of_train(handed, words, expected):
    assert run("train", "tiny", *words) == 0
    assert handed[0][2] == expected and handed[0][0].run.seed == (3 if len(words) > 1 else 0)


def test_every_kind_of_field_is_a_flag(handed):
    flags = {
        "hparams.kl_coef": 0.1,
        "hparams.value_clip": None,
        "hparams.clip_low": float("inf"),
        "run.progress": False,
        "run.seed": 3,
        "run.dir": "elsewhere",
        "reward.kl_estimator": "k3",
        "parallel.data": -1,
        "rollout.top_k": 20,
        "rollout.stop_token_ids": (65, 66),
        "model.shape.num_layers": 3,
    }
    words = []
    for key, value in flags.items():
        words += [f"--{key}", *map(str, value if isinstance(value, tuple) else [value])]
    assert run("train", "tiny", *words) == 0
    assert handed[0][0] == replace(load_experiment("tiny").base, **flags)


def test_train_takes_a_path_and_the_last_of_two_equal_flags(handed):
    path = str(ROOT / "experiments" / "tiny.py")
    assert run("train", path, "--run.seed=1", "--run.seed", "2") == 0
    assert handed[0][0].run.seed == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["--hparams.kl_coeff", "1"], "--hparams.kl_coef "),
        (["--kl_coef", "1"], "--hparams.kl_coef "),
        (["--hparams.kl_coef", "much"], "--hparams.kl_coef"),
        (["--run.iterations", "1.5"], "--run.iterations"),
        (["--run.iterations"], "--run.iterations"),
        (["--run.progress", "maybe"], "--run.progress"),
        (["--reward.kl_controller", "off"], "adaptive"),
        (["--hparams.lam", "1.2"], "hparams.lam=1.2: must be in [0, 1]; nearest valid: 1"),
        (["--hparams.clip_low", "0"], "hparams.clip_low=0.0"),
        (["--ppo.minibatches", "3"], "ppo.minibatches=3: must divide rollout.batch_size="),
        (["--rollout.max_new_tokens", "600"], "512 positions; nearest valid: 500"),
        (["stray"], "stray"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_a_bad_flag_ends_with_2_before_anything_is_loaded(words, said, handed, capsys):
    assert run("train", "tiny", *words) == 2
    assert said in capsys.readouterr().err
    assert handed == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["eval"], "the experiment comes first: ppo-jax eval EXPERIMENT"),
        (["trian", "tiny"], "no command 'trian'; nearest: train (of train, sft, "),
        (["train"], "the experiment comes first: ppo-jax train EXPERIMENT"),
        (["train", "--run.seed", "1", "tiny"], "not --run.seed"),
        (["train", "tinny"], "no experiments/tinny.py; nearest: tiny"),
        (["train", "nowhere/tiny.py"], "no file nowhere/tiny.py"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(words, said, handed, capsys):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ppo-jax: error: ") and said in error and error.count("\n") == 1
    assert handed == []


def test_plan_hands_on_the_experiment_its_own_flags_and_the_rest(handed, monkeypatch):
    monkeypatch.setattr(plan, "run_plan", lambda *args: handed.append(args))
    words = "--device h200 --ppo.epochs 2 --devices 8 --model.remat none".split()
    assert run("plan", str(ROOT / "experiments" / "bench" / "w3.py"), *words) == 0
    [(experiment, config, args)] = handed
    assert experiment.name == "w3" and args == PlanArgs(device="h200", devices=8)
    changes = {"ppo.epochs": 2, "model.remat": "none"}
    assert config == replace(experiment.base, **changes)


@pytest.mark.parametrize(
    "words, said",
    [
        (["plan"], "the experiment comes first: ppo-jax plan EXPERIMENT"),
        (["plan", "--device", "h200"], "not --device"),
        (["plan", "tinny"], "no experiments/tinny.py; nearest: tiny"),
        (["plan", "tiny", "--devices", "0"], "devices=0: must be in [1, inf)"),
        (["plan", "tiny", "--devise", "h200"], "--device"),
        (["plan", "tiny", "--ppo.minibatches", "3"], "ppo.minibatches=3: must divide"),
        (["plan", "tiny", "--model.shape.vocab_size", "258"], "the random model reads bytes"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_wrong_words_of_plan(words, said, handed, capsys):
    assert run(*words) == 2
    assert said in capsys.readouterr().err
    assert handed == []


def test_the_file_commands_hand_on_their_arguments(handed):
    assert run("generate", "--model", "m", "--prompts", "p", "--out", "o", "--top_k", "5") == 0
    assert run("score", "--model", "m", "--data", "d", "--out", "o") == 0
    assert run("export", "--model", "m", "--out", "o", "--dtype", "bfloat16") == 0
    assert handed == [
        GenerateArgs(model="m", prompts="p", out="o", top_k=5),
        ScoreArgs(model="m", data="d", out="o"),
        ExportArgs(model="m", out="o", dtype="bfloat16"),
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["generate", "--model", "m", "--prompts", "p"], "--out"),
        (["generate", "--temperature", "-1"], "temperature=-1.0: must be in [0, inf)"),
        (["generate", "--top_k", "300"], "top_k=300: must be in [1, 256]; nearest valid: 256"),
        (["generate", "--top_p", "0"], "top_p=0.0"),
        (["generate", "--max_new_tokens", "0"], "max_new_tokens=0"),
        (["generate", "--temprature", "1"], "--temperature"),
        (["score", "--batch_size", "0"], "batch_size=0"),
        (["export", "--dtype", "int8"], "bfloat16"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_bad_arguments_of_the_file_commands(words, said, handed, capsys):
    files = {
        "generate": ["--model", "m", "--prompts", "p", "--out", "o"],
        "score": ["--model", "m", "--data", "d", "--out", "o"],
        "export": ["--model", "m", "--out", "o"],
    }
    if "--out" != said:
        words = words + files[words[0]]
    assert run(*words) == 2
    assert said in capsys.readouterr().err
    assert handed == []


@pytest.mark.parametrize(
    "raised, code",
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.NumericalError("x"), 3),
        (errors.CheckpointError("x"), 4),
        (errors.StorageError("x"), 6),
        (errors.RewardError("x"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(raised, code, monkeypatch, capsys):
    def fail(*args):
        raise raised

    monkeypatch.setattr(train, "train", fail)
    assert run("train", "tiny") == code
    assert capsys.readouterr().err in ("ppo-jax: error: x\n", "ppo-jax: interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(train, "train", fail)
    with pytest.raises(ValueError, match="a bug"):
        main.main(["train", "tiny"])


def test_help(handed, capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    names = ("train", "generate", "score", "export", "plan", "bench")
    assert all(f"  {word} " in shown for word in names)
    assert run("train", "--help") == 0
    assert "tiny " in capsys.readouterr().out
    assert run("train", "tiny", "--help") == 0
    shown = capsys.readouterr().out
    base = load_experiment("tiny").base
    assert f"(default: {base.run.iterations})" in shown and "--hparams.kl_coef FLOAT" in shown
    assert run("generate", "--help") == 0
    assert "--temperature" in capsys.readouterr().out
    assert run() == 2
    assert handed == []


def test_help_and_errors_need_no_jax():
    code = (
        "import sys; from ppo_jax.main import main; assert main(['--help']) == 0\n"
        "assert main(['trian']) == 2\n"
        "slow = {'jax', 'numpy', 'transformers', 'orbax', 'tyro'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_the_code_stays_where_output_cannot_be_written():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "ppo_jax", "no-command"]
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 2
