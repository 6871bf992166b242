"""A run goes on, and ends with its own code, where nobody can hear it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.launch import experiment, finish, launch, of
from ppo_jax import manifest
from ppo_jax.metrics import read_metrics

SMALL = {"ppo__token_sizes": None, "run__checkpoint_minutes": None, "run__show_prompts": 1}


def command(path: Path, runs: Path) -> tuple[list[str], dict[str, str]]:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    words = [sys.executable, "-m", "ppo_jax", "train", str(path), "--run.dir", str(runs)]
    return words, environment | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_run_whose_output_lies_on_a_full_disk(tmp_path):
    path = experiment(tmp_path, run__iterations=3, **SMALL)
    words, environment = command(path, tmp_path / "runs")
    for _ in range(2):  # the second start finds that all is done
        with open("/dev/full", "wb") as full:
            done = subprocess.run(words, env=environment, stdout=full, stderr=full, check=False)
        assert done.returncode == 0
    run = of(path, tmp_path / "runs")
    assert json.loads(run.status.read_text())["status"] == "done"
    assert manifest.steps(run.checkpoints)[-1] == 3


def test_a_signal_after_the_reader_of_the_output_has_gone(tmp_path):
    """Ctrl-C reaches `tee` as well, which ends at once."""
    path = experiment(tmp_path, run__iterations=4000, run__checkpoint_every=4000, **SMALL)
    words, environment = command(path, tmp_path / "runs")
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    while b"3/4000" not in (line := process.stdout.readline()):
        assert line, "the run has ended"
    process.stdout.close()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 75
    run = of(path, tmp_path / "runs")
    saved = manifest.latest_step(run.checkpoints)
    assert saved == len(read_metrics(run.metrics)) > 3
    assert json.loads(run.status.read_text())["status"] == "preempted"


def test_a_finished_run_that_could_not_say_so(tmp_path):
    path = experiment(tmp_path, run__iterations=2, **SMALL)
    status = finish(path, tmp_path / "runs").status
    status.write_text(status.read_text().replace("done", "running"))
    finish(path, tmp_path / "runs")
    assert json.loads(status.read_text())["status"] == "done"


def test_a_checkpoint_that_was_written_broken(tmp_path):
    """Its hashes are right: the disk had lost the content before it was read back."""
    path = experiment(tmp_path, run__iterations=4, run__checkpoint_every=2, **SMALL)
    run = finish(path, tmp_path / "runs")
    facts = manifest.read_record(run.checkpoints, 4)["facts"]
    (run.checkpoints / "4" / "state" / "kl_coef" / ".zarray").write_text("{")
    manifest.write_record(run.checkpoints, 4, facts)
    more = ("--run.iterations", "6")
    assert launch(path, tmp_path / "runs", *more, "--strict_resume").code == 4
    assert (run.checkpoints / "4").is_dir()
    done = launch(path, tmp_path / "runs", *more)
    assert done.code == 0 and "put aside as 4.corrupt" in done.err
    assert "resumed at iteration 2 " in done.out
    assert [row["step"] for row in read_metrics(run.metrics)] == list(range(6))
