"""Where a batch is one step there is nothing to clip; what says so of the ablation's runs."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from faults.launch import CLOCK, differences, experiment, here
from ppo_jax.run_folder import run_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "ablations"))
identity = importlib.import_module("_clipping")
FLAGS = ["--run.iterations", "3", "--ppo.minibatches", "1", "--hparams.learning_rate", "0.02"]
CLIPS = {"one-step,clip=0.2": "0.2", "one-step,clip=inf": "inf"}


def train(path, root, epochs):
    """The runs with a clip and without."""
    for name, clip in CLIPS.items():
        flags = [
            "--ppo.epochs",
            str(epochs),
            "--hparams.clip_low",
            clip,
            "--hparams.clip_high",
            clip,
        ]
        words = ["train", str(path), "--run.dir", str(root), "--run.cell", name, *FLAGS, *flags]
        assert here(*words)[0] == 0
    return [run_folder(root / "case" / name / "seed0") for name in CLIPS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    path = experiment(folder)
    return {epochs: train(path, folder / f"epochs{epochs}", epochs) for epochs in (1, 2)}


def test_one_step_is_the_same_without_a_clip_bit_for_bit(runs):
    assert differences(*runs[1]) == []


def test_a_second_epoch_is_not(runs):
    assert {"metrics", "state"} <= set(differences(*runs[2]))


@pytest.fixture
def swept(runs, tmp_path):
    """As the ablation's sweep leaves them."""

    def write(epochs):
        root = runs[epochs][0].root.parents[1]
        cells = [
            {"name": name, "hash": "0", "changes": {}, "seed": 0, "dir": f"{name}/seed0"}
            for name in CLIPS
        ]
        (root / "sweep.json").write_text(json.dumps({"cells": cells, "metrics": ["loss"]}))
        linked = tmp_path / f"runs{epochs}"
        linked.mkdir()
        (linked / "clipping").symlink_to(root)
        return linked

    return write


@pytest.mark.parametrize(("epochs", "said"), [(1, "yes, bit by bit"), (2, "NO")])
def test_the_study_compares_parameters_and_metrics(epochs, said, swept, tmp_path, capsys):
    identity.main(["--run-dir", str(swept(epochs)), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "identity.md").read_text().splitlines()
    seed, *digests, same, differing = (x.strip() for x in lines[2].split("|")[1:-1])
    assert (seed, same, len(set(digests))) == ("0", said, epochs)
    others = [name for name in differing.split(", ") if not name.startswith(CLOCK)]
    assert ("objective/kl" in others) == bool(others) == (epochs == 2)
    assert any(line.startswith("- commit: ") for line in lines)
    assert str(tmp_path / "out" / "identity.md") in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(SystemExit, match="first: ppo-jax sweep clipping --vmap"):
        identity.main(["--run-dir", str(tmp_path)])
