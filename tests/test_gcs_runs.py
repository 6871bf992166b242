"""Runs on gs://, as a user starts them, against a server on this machine: ended, killed, damaged,
gone on from, used. The real service is not met by any test."""

import json

import pytest

from faults.launch import assert_same, exact, experiment, here, launch, of, start
from gcs_server import BUCKET, needs_server
from ppo_jax import manifest
from ppo_jax.run_folder import run_folder
from ppo_jax.storage import as_path
from process_runs import launch_all

pytestmark = needs_server
FAILS = """
import os
def fails(prompts, responses, **columns):
    if "BAD" in os.environ:
        raise ValueError("no idea")
    return [0.0] * len(responses)
REWARD = fails
"""
TALKS = """
def talks(prompts, responses, **columns):
    print("scored", len(responses), flush=True)
    return [len(response) / 6 for response in responses]
REWARD = talks
"""


def folder_of(path, runs):
    return run_folder(as_path(f"{runs}/{path.stem}/base/seed0"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("case"), run__iterations=8, run__checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(path):
    """The same on the disk, left alone: begun before the others, as there are two processors."""
    return start(path, path.parent / "whole")


@pytest.fixture(scope="module")
def run(gcs, path, whole):
    """A run that was told to end, killed in a save, and found its newest checkpoint damaged."""
    begin = lambda **env: start(path, path.parent / "log", "--run.dir", gcs, **env)
    run = folder_of(path, gcs)

    told = begin(PPO_JAX_FAULT="term@step:3").wait()
    assert told.code == 75 and "nothing keeps a run on another machine out" in told.err, told.err
    status = json.loads(run.status.read_text())
    saved = status["step"]
    assert status["status"] == "preempted" and manifest.latest_step(run.checkpoints) == saved
    assert len(exact(run)) == saved

    killed = begin(PPO_JAX_FAULT="kill@save_mid:2").wait()
    assert killed.code == -9 and f"resumed at iteration {saved}" in killed.out, killed.err
    unfinished = [p.stem for p in run.checkpoints.glob("*.unfinished")]
    assert unfinished == [str(len(exact(run)))]  # its lines are there before it is
    newest = manifest.latest_step(run.checkpoints)
    assert saved < newest < int(unfinished[0])

    damaged = run.checkpoints / str(newest) / "state" / "_METADATA"
    damaged.write_text(damaged.read_text() + " ")
    ended = begin().wait()
    assert ended.code == 0, ended.err
    assert f"put aside as {newest}.corrupt, going on from step {saved}" in ended.err
    aside = run.checkpoints / f"{newest}.corrupt"
    assert manifest.steps(aside) == [newest] and (aside / str(newest) / "state").is_dir()
    aside.rmtree()
    return run


def test_it_ends_as_if_nothing_had_been(run, path, whole):
    ended = whole.wait()
    assert ended.code == 0, ended.err
    assert_same(run, of(path, path.parent / "whole"))
    assert json.loads(run.status.read_text())["status"] == "done"
    assert run.env.is_file() and json.loads(run.config.read_text())["run"]["dir"].startswith("gs:")


def test_it_is_complete(run, gcs, path):
    again = launch(path, path.parent / "log", "--run.dir", gcs)
    assert again.code == 0 and "already complete at iteration 8" in again.out, again.err


def test_it_is_used_from_there(run, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "abc"}\n')
    files = ("--prompts", str(prompts), "--out", str(out), "--max_new_tokens", "4")
    code, err = here("generate", "--model", str(run.root), *files)
    assert code == 0 and json.loads(out.read_text())["prompt"] == "abc", err
    code, err = here("export", "--model", str(run.root), "--out", str(tmp_path / "exported"))
    assert code == 0 and (tmp_path / "exported" / "model.safetensors").is_file(), err
    code, err = here("generate", "--model", f"gs://{BUCKET}/nothing", *files)
    assert code == 2 and "gs://bucket/nothing" in err and err.count("\n") == 1, err


def test_what_a_reward_prints_is_there(gcs, tmp_path):
    one = experiment(tmp_path, name="talks", reward=TALKS, run__iterations=1)
    ended = launch(one, tmp_path / "log", "--run.dir", gcs)
    assert ended.code == 0, ended.err
    assert "scored 8" in (folder_of(one, gcs).root / "reward.log").read_text()


def test_what_a_reward_prints_in_an_evaluation_is_there(gcs, run, tmp_path):
    """Beside the numbers, of a second evaluation too, of one that a reward ends as well."""
    path = experiment(tmp_path, reward=TALKS)
    words = ["eval", str(path), "--model", str(run.root), "--out", f"{gcs}/out"]
    log = as_path(f"{gcs}/out") / "eval-reward.log"
    for times in (1, 2):
        code, err = here(*words, "--data.eval_rows", "5")
        assert code == 0, err
        assert log.read_text() == times * "scored 5\n"
    rows = (log.parent / "eval.jsonl").read_text().splitlines()
    assert len(rows) == 5 and "metrics" in json.loads((log.parent / "eval.json").read_text())
    path = experiment(tmp_path, reward=FAILS.replace('"BAD" in os.environ', "True"))
    code, err = here("eval", str(path), *words[2:])
    assert code == 7 and "no idea" in err, err
    assert "ValueError: no idea" in log.read_text()


def test_a_missing_bucket_is_one_line(gcs, path):
    ended = launch(path, path.parent / "log", "--run.dir", "gs://nothing-of-that-name")
    assert ended.code == 6 and len(ended.err.strip().splitlines()) == 1, ended.err
    assert "gs://nothing-of-that-name/case" in ended.err and "no such bucket" in ended.err


def test_what_a_reward_of_another_machine_said_is_there(gcs, tmp_path):
    path = experiment(tmp_path, name="apart", reward=FAILS)
    env = {k: {"PPO_JAX_CACHE": str(tmp_path / f"machine-{k}")} for k in range(2)}
    env[1]["BAD"] = "1"
    for ended in launch_all(path, tmp_path, "--run.dir", gcs, env=env):
        assert ended.code == 7 and "reward-1.log" in ended.err, ended.err
    assert "ValueError: no idea" in (folder_of(path, gcs).root / "reward-1.log").read_text()
