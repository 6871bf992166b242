"""A run of `ppo-jax reward-model` on a rule: of two responses the one with more `a` is better, and
a response's score is their number."""

import json
from pathlib import Path

import numpy as np

from ppo_jax.config import Config, replace
from ppo_jax.experiment import Experiment
from ppo_jax.reward_model import TRAINED
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.train import train
from tiny_runs import CONFIG as TINY

CONFIG = replace(
    TINY,
    **{
        "reward.reference": "fixed",
        "hparams.reference_decay": None,
        "reward.kl_controller": "fixed",
        "hparams.kl_target": None,
        "ppo.minibatches": 1,
        "ppo.token_sizes": None,  # compiles sooner
        "rollout.batch_size": 32,
        "rollout.max_new_tokens": 8,
        "run.cell": "reward-model",
        "run.iterations": 90,
        "run.checkpoint_every": 30,
        "run.eval_every": 30,
        "run.keep_best": "eval/accuracy",
        "hparams.learning_rate": 5e-3,
    },
)
TRAIN, HELD_OUT = 320, 60


def responses(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, size=count)
    return ["".join(rng.choice(list("aabcd"), size=n)) for n in lengths]


def pairs(count: int, seed: int) -> list[dict]:
    """Rows whose two responses have different numbers of `a`."""
    rows, texts = [], iter(responses(8 * count, seed))
    while len(rows) < count:
        one, other = next(texts), next(texts)
        if one.count("a") != other.count("a"):
            worse, better = sorted((one, other), key=lambda text: text.count("a"))
            prompt = "xyz"[len(rows) % 3] * (1 + len(rows) % 2)
            rows.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return rows


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_in(folder: Path, **changes) -> Config:
    files = {
        "data.path": write(folder / "pairs.jsonl", pairs(TRAIN, 1)),
        "data.eval_path": write(folder / "held.jsonl", pairs(HELD_OUT, 2)),
    }
    return replace(CONFIG, **{**files, "run.dir": str(folder), **changes})


def launch(folder: Path, **changes) -> RunFolder:
    config = config_in(folder, **changes)
    no_reward = lambda prompts, responses: []
    train(config, Experiment("case", config, no_reward, Path("case.py"), ""), kind=TRAINED)
    return run_folder(folder / "case" / config.run.cell / "seed0")
