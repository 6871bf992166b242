"""Sweeps of tiny runs: cells that are done, half-done or changed; stages; two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faults.launch import differences, exact, experiment, here
from ppo_jax import standing, sweep
from ppo_jax.jobs import Ended
from ppo_jax.main import main
from ppo_jax.run_folder import run_folder

GRID = 'REWARD = ascii_share\nGRID = {"hparams.lam": (0.0, 1.0)}\nSEEDS = (3, 4)\n'
FLAGS = ["--run.iterations", "2", "--run.checkpoint_every", "1"]
SFT = """REWARD = ascii_share
SFT = replace(BASE, **{"data.path": DATA, "run.cell": "sft", "rollout.max_new_tokens": 4,
    "hparams.kl_target": None, "reward.kl_controller": "fixed", "ppo.minibatches": 1,
    "hparams.reference_decay": None, "reward.reference": "fixed"})
BASE = replace(BASE, **{"model.path": "@sft", "model.shape": type(BASE.model.shape)()})
RUNS = {"short": {}, "long": {"rollout.max_new_tokens": 7}}
"""


OTHER_STAGES = {name: {"sft.run.iterations": n} for name, n in (("one", 1), ("two", 2))}


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run in this process, which saves the start of others: the words of each, in order."""
    began = []

    def run_jobs(jobs, at_once):
        codes = {}
        for job in jobs:
            if all(codes.get(name) == 0 for name in job.after):
                began.append(job.words)
                codes[job.name] = main(list(job.words))
        return Ended(codes, False)

    monkeypatch.setattr(sweep, "run_jobs", run_jobs)
    return began


def started(path, runs, *flags):
    """(exit code, stderr) of a sweep."""
    return here("sweep", str(path), "--run.dir", str(runs), *flags)


def listed(path, runs, *flags, capsys):
    """The statuses of the cells, by name and seed."""
    capsys.readouterr()
    assert main(["sweep", str(path), "--run.dir", str(runs), "--list", *flags]) == 0
    rows = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()[1:]]
    return {f"{name}/seed{seed}": status for _, name, seed, _, status in rows}


def cells(runs, name="case"):
    found = json.loads((runs / name / "sweep.json").read_text())["cells"]
    return {f"{c['name']}/seed{c['seed']}": run_folder(runs / name / c["dir"]) for c in found}


def test_a_sweep_from_its_first_cell_to_a_changed_one(tmp_path, in_process, capsys):
    path, runs = experiment(tmp_path, reward=GRID), tmp_path / "runs"
    show = lambda *flags: listed(path, runs, *FLAGS, *flags, capsys=capsys)
    assert show() == dict.fromkeys([f"lam={n}/seed{k}" for n in (0, 1) for k in (3, 4)], "new")
    assert not runs.exists()

    # One by its place: the second of lambda 1.
    assert started(path, runs, *FLAGS, "--index", "3")[0] == 0
    assert len(in_process) == 1 and show()["lam=1/seed4"] == "done"
    found = json.loads((runs / "case" / "sweep.json").read_text())
    keys = "experiment path words metrics windows pairs base seeds cells doc".split()
    assert list(found) == keys and (found["windows"], found["pairs"]) == ({}, [])
    assert (found["words"], found["base"]) == (FLAGS, None)
    assert found["experiment"] == "case" and found["path"] == str(path)
    assert (found["metrics"], found["seeds"]) == (["objective/scores"], [3, 4])
    cell = found["cells"][3]
    assert cell == {
        "name": "lam=1",
        "hash": cell["hash"],
        "changes": {"hparams.lam": 1.0},
        "seed": 4,
        "dir": f"lam=1-{cell['hash']}/seed4",
    }
    config = json.loads(cells(runs)["lam=1/seed4"].config.read_text())
    assert "objective/kl" in (cells(runs)["lam=1/seed4"].root / "report.html").read_text()
    assert config["hparams"]["lam"] == 1 and config["run"]["seed"] == 4

    # Half of another one, which then goes on; what is done stays as it is.
    half = ["--run.iterations", "1", "--run.checkpoint_every", "1"]
    assert started(path, runs, *half, "--only", "lam=1/seed3")[0] == 0
    assert show()["lam=1/seed3"] == "begun: 1 of 2 iterations"
    before = cells(runs)["lam=1/seed4"].metrics.stat().st_mtime_ns
    del in_process[:]
    assert started(path, runs, *FLAGS, "--only", "lam=1")[0] == 0
    assert [words[-2:] for words in in_process] == [
        (f"--run.cell=lam=1-{cell['hash']}", "--run.seed=3")
    ]
    assert cells(runs)["lam=1/seed4"].metrics.stat().st_mtime_ns == before
    straight = tmp_path / "straight"
    assert started(path, straight, *FLAGS, "--only", "lam=1/seed3")[0] == 0
    assert not differences(cells(runs)["lam=1/seed3"], cells(straight)["lam=1/seed3"])
    assert exact(cells(runs)["lam=1/seed3"]) != exact(cells(runs)["lam=1/seed4"])

    # Everything is there: nothing begins.
    del in_process[:]
    assert started(path, runs, *FLAGS, "--only", "lam=1")[0] == 0 and not in_process

    # Another configuration, code or data is refused, before anything begins.
    other = [*FLAGS, "--hparams.gamma", "0.5"]
    code, err = started(path, runs, *other)
    assert code == 4 and not in_process and err.count("\n") == 1
    assert "seed3 (and 1 more: --list) is not what was begun" in err
    assert "hparams.gamma: 1.0 -> 0.5; choose another --run.dir" in err
    assert listed(path, runs, *other, capsys=capsys)["lam=0/seed3"] == "new"
    text = path.read_text()
    path.write_text(
        text.replace(
            "ascii_share\nGRID", "lambda rollout, columns: ascii_share(rollout, columns)\nGRID"
        )
    )
    assert "the experiment's code is not what it was" in show()["lam=1/seed3"]
    path.write_text(text.replace("(0.0, 1.0)", "(1.0, 0.25)"))  # another cell leaves them alone
    assert [*show().values()] == ["done", "done", "new", "new"]
    path.write_text(text)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text() * 2)
    standing._sha256.cache_clear()
    assert "data.path: the file is not what it was" in show()["lam=1/seed3"]
    code, err = started(path, runs, *FLAGS)
    assert code == 4 and "data.path: the file is not what it was" in err


def test_stages_come_first_and_once(tmp_path, in_process, capsys):
    data = tmp_path / "responses.jsonl"
    rows = [{"prompt": "abc"[: 1 + n % 3], "response": "xyz"[n % 3 :]} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = experiment(tmp_path, reward=f"DATA = {str(data)!r}\n{SFT}")
    flags = [*FLAGS, "--sft.run.iterations", "2"]
    runs = tmp_path / "runs"
    assert started(path, runs, *flags, "--only", "short")[0] == 0
    assert [words[0] for words in in_process] == ["sft", "train"]
    started_from = json.loads(cells(runs)["short/seed0"].config.read_text())["model"]["path"]
    assert Path(started_from).parts[-2:] == ("sft", "seed0")
    assert started(path, runs, *flags)[0] == 0
    assert [words[0] for words in in_process] == ["sft", "train", "train"]
    assert set(listed(path, runs, *flags, capsys=capsys).values()) == {"done"}
    # Another SFT: neither it nor what started from it is what was made.
    changed = listed(path, runs, *flags, "--sft.hparams.learning_rate", "0.5", capsys=capsys)
    assert changed["sft/seed0"].startswith("changed") and "0.001 -> 0.5" in changed["sft/seed0"]
    assert "or a stage that it starts from" in changed["long/seed0"]


@pytest.mark.parametrize("how", [(), ("--vmap",)])
def test_each_begins_from_the_stage_that_it_names(tmp_path, in_process, how, capsys):
    data = tmp_path / "responses.jsonl"
    data.write_text("".join('{"prompt": "ab", "response": "xyz"}\n' for _ in range(16)))
    changed = re.sub("RUNS = .*", f"RUNS = {OTHER_STAGES}", SFT)
    path = experiment(tmp_path, reward=f"DATA = {str(data)!r}\n{changed}")
    runs = tmp_path / "runs"
    assert started(path, runs, *FLAGS, *how)[0] == 0
    assert [words[0] for words in in_process] == ["sft", "sft", "train", "train"]
    for name, folder in cells(runs).items():
        model = json.loads(folder.config.read_text())["model"]["path"]
        count = {"one": 1, "two": 2}[name.partition("/")[0]]
        assert Path(model).parts[-2:] == (f"sft-run.iterations={count}", "seed0")
        assert json.loads((Path(model) / "status.json").read_text())["step"] == count
    assert set(listed(path, runs, *FLAGS, capsys=capsys).values()) == {"done"}


def test_two_processes_at_a_time(tmp_path):
    """As a user starts it: lines by name, a run that fails beside one that does not."""
    failing = GRID.replace("(3, 4)", "(0,)").replace("(0.0, 1.0)", "(0.5, 1.0)")
    path = experiment(tmp_path, reward=failing)
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "ppo_jax", "sweep", str(path), "--run.dir", str(runs), *FLAGS]
    bad = runs / "case" / cell_of(path, "lam=0.5") / "seed0"
    bad.mkdir(parents=True)
    (bad / "checkpoints").touch()  # which no run can write into
    ended = subprocess.run(
        [*command, "--jobs", "2"], capture_output=True, text=True, env=os.environ
    )
    found = cells(runs)
    assert json.loads(found["lam=1/seed0"].status.read_text())["status"] == "done"
    assert ended.returncode not in (0, 1), ended.stdout
    assert "case: 1 runs done, 1 failed, 0 not begun" in ended.stdout
    good = found["lam=1/seed0"].root.parent.name
    assert any(line.startswith(f"{good}/seed0 | 2/2") for line in ended.stdout.splitlines())


def cell_of(path, name):
    from ppo_jax.experiment import load_experiment
    from ppo_jax.grid import read_grid

    grid = read_grid(load_experiment(path), FLAGS)
    return next(cell.config.run.cell for cell in grid.cells if cell.name == name)
