"""A run of several processes, as a user starts them on one machine: what each of them does, what
they agree on, and how they end and go on together."""

import dataclasses
import json
import re
import shutil

import pytest

from faults.launch import CACHE, TESTS, assert_same, digest, exact, experiment, here, of
from ppo_jax import lock, manifest
from ppo_jax.config import ParallelOptions
from ppo_jax.errors import ConfigError
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.programs import check_own_rows
from ppo_jax.rewards.base import parse_rewards
from process_runs import finish_all, free_port, launch_all, restored_by_all, start_fast
from tiny_runs import ascii_share, ascii_text

ENDED = (
    r"ppo-jax: process {} on \S+ ended without a word; step {} is saved; the same command goes on "
)
# Writes down what it is called for; raises at its fourth call where it is told to.
REWARD = """
import json, os
def share(prompts, responses, boost, seeds):
    with open(os.environ["SEEN"], "a+") as file:
        file.write(json.dumps([prompts, responses, seeds]) + "\\n")
        file.seek(0)
        if "BAD" in os.environ and len(file.readlines()) == 4:
            raise ValueError("no idea")
    return ascii_text(prompts, responses, boost)
REWARD = half_and_half(share)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    changes = {"run__iterations": 8, "run__checkpoint_every": 2}
    return experiment(tmp_path_factory.mktemp("case"), **changes)


@pytest.fixture(scope="module")
def whole(path):
    """A run of two processes, left alone, beside a run of one with as many devices."""
    alone = start_fast(path, path.parent / "alone", devices=2)
    folder = finish_all(path, path.parent / "whole")
    assert alone.wait().code == 0
    return folder


def lines(text):
    return text.strip().splitlines()


def test_two_processes_compute_what_one_computes(path, whole):
    alone = of(path, path.parent / "alone")
    assert read_samples(whole.samples) == read_samples(alone.samples)
    for ours, theirs in zip(read_metrics(whole.metrics), read_metrics(alone.metrics), strict=True):
        for name in ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)
    assert json.loads(whole.env.read_text())["process_count"] == 2


def test_killed_processes_end_the_others_and_the_run_goes_on_bit_for_bit(path, whole):
    runs = path.parent / "killed"
    killed, left = launch_all(path, runs, env={0: {"PPO_JAX_FAULT": "kill@step:5"}})
    assert (killed.code, left.code) == (-9, 75) and left.seconds < killed.seconds + 10
    assert re.fullmatch(ENDED.format(0, 2) + r"from there\n", left.err), left.err
    left, killed = launch_all(path, runs, env={1: {"PPO_JAX_FAULT": "kill@save_mid:2"}})
    assert (killed.code, left.code) == (-9, 75)
    assert re.fullmatch(ENDED.format(1, 4) + r"from there\n", left.err), left.err
    assert json.loads(of(path, runs).status.read_text())["status"] == "failed"
    # One process alone cannot read: the checkpoint is sound, and stays.
    for ended in launch_all(path, runs, env={1: {"PPO_JAX_FAULT": "full@restore"}}):
        assert ended.code == 4 and len(lines(ended.err)) == 1, ended.err
        assert "error: process 1: " in ended.err and "step 4 cannot be restored" in ended.err
    # The first one cannot: all go on from the step before.
    ended = launch_all(path, runs, env={0: {"PPO_JAX_FAULT": "full@restore"}})
    assert [it.code for it in ended] == [0, 0] and "put aside as 4.corrupt" in ended[0].err
    shutil.rmtree(of(path, runs).checkpoints / "4.corrupt")
    assert_same(of(path, runs), whole)


def test_folders_that_are_not_one_end_all(path, tmp_path):
    own = {k: ["--run.dir", str(tmp_path / f"runs-{k}")] for k in range(2)}
    for ended in launch_all(path, tmp_path, own=own):
        assert ended.code == 2 and len(lines(ended.err)) == 1, ended.err
        assert "not the folder of process 0" in ended.err and "runs-1" in ended.err
    assert not list(tmp_path.glob("runs-0/**/.*"))


def test_one_of_four_that_is_killed_ends_all_and_they_go_on_bit_for_bit(tmp_path):
    path = experiment(tmp_path, run__iterations=5, run__checkpoint_every=2)
    four = launch_all(path, tmp_path / "killed", count=4, env={2: {"PPO_JAX_FAULT": "kill@step:5"}})
    assert [ended.code for ended in four] == [75, 75, -9, 75]
    for ended in four[:2] + four[3:]:
        assert re.fullmatch(ENDED.format(2, "[24]") + r"from there\n", ended.err), ended.err
    gone_on = finish_all(path, tmp_path / "killed", count=4)
    assert_same(gone_on, finish_all(path, tmp_path / "whole", count=4))


@pytest.mark.parametrize("count", [2, 4])
def test_a_signal_to_one_saves_the_same_step_of_all_and_any_number_goes_on(tmp_path, count):
    changes = {"parallel__data": 1, "parallel__fsdp": -1, "run__checkpoint_minutes": 1e-6}
    path = experiment(tmp_path, run__iterations=30, run__checkpoint_every=100, **changes)
    runs = tmp_path / "runs"
    told = launch_all(path, runs, count=count, env={1: {"PPO_JAX_FAULT": "term@step:6"}})
    run = of(path, runs)
    step = manifest.latest_step(run.checkpoints)
    assert step is not None and 6 <= step <= 9
    for ended in told:
        assert ended.code == 75
        assert ended.err == f"ppo-jax: preempted at iteration {step}, saved step {step}\n"
    assert json.loads(run.status.read_text())["status"] == "preempted"
    # Saves by the clock are agreed on like signals.
    assert len(manifest.steps(run.checkpoints)) == 2 and len(exact(run)) == step
    # Each process had written its share of the weights.
    other = {2: 4, 4: 2}[count]
    assert restored_by_all(run, step, tmp_path / "other", count=other) == digest(run, step)
    went_on = start_fast(path, runs, "--run.iterations", str(step + 2)).wait()
    assert went_on.code == 0 and f"processes {count} -> 1" in went_on.err, went_on.err
    assert len(exact(run)) == step + 2


def test_a_reward_sees_the_rows_of_its_process_and_its_error_ends_all(tmp_path):
    path = experiment(
        tmp_path, reward=REWARD, run__iterations=9, run__checkpoint_every=100, parallel__data=-1
    )
    seen = [tmp_path / f"seen-{k}" for k in range(4)]
    env = {k: {"SEEN": str(file)} for k, file in enumerate(seen)}
    env[2]["BAD"] = "1"
    four = launch_all(path, tmp_path / "runs", count=4, env=env)
    said = "reward share raised on a batch of 2 rows"
    for k, ended in enumerate(four):
        assert ended.code == 7 and len(lines(ended.err)) == 1, ended.err
        assert (f"error: {said}" if k == 2 else f"error: process 2: {said}") in ended.err
        assert "ValueError: no idea" in ended.err and "reward-2.log" in ended.err
    calls = [[json.loads(line) for line in file.read_text().splitlines()] for file in seen]
    assert {len(of_one) for of_one in calls} == {4}
    for batch in range(4):
        seeds = [seed for of_one in calls for seed in of_one[batch][2]]
        assert len(seeds) == len(set(seeds)) == 8
        assert all(len(of_one[batch][0]) == 2 for of_one in calls)
    run = of(path, tmp_path / "runs")
    assert manifest.steps(run.checkpoints) == [3] and len(exact(run)) == 3
    first = read_samples(run.samples)[0]  # which come from the first process
    assert [first["prompt"], first["response"]] == [calls[0][0][i][0] for i in (0, 1)]


@pytest.mark.parametrize("count", [2, 4])
def test_the_smoke_experiment_trains_and_outlives_a_save_that_fails(tmp_path, count):
    path = TESTS.parent / "experiments" / "tiny.py"
    flags = "--run.iterations 5 --run.checkpoint_every 2 --rollout.batch_size 16".split()
    # Less to compile than its own two layers.
    flags += f"--model.shape.num_layers 1 --ppo.token_sizes 1 --run.compile_cache {CACHE}".split()
    fault = {1: {"PPO_JAX_FAULT": "full@save_mid"}}
    first, *others = launch_all(path, tmp_path, *flags, count=count, env=fault)
    assert first.code == 0 and f"{count} x cpu (cpu)" in first.out
    assert "Before and after training" in first.out
    assert "step 2 was not saved" in first.err and len(lines(first.err)) == 1, first.err
    for ended in others:
        assert (ended.code, ended.out, ended.err) == (0, "", ""), ended.err
    run = of(path, tmp_path)
    rows = read_metrics(run.metrics)
    assert [row["step"] for row in rows] == list(range(5)) and rows[-1]["ckpt/failed"] == 1
    assert manifest.steps(run.checkpoints) == [4, 5]
    assert not list(run.checkpoints.glob("*.unfinished"))
    assert all(row["val/ratio_first_max_dev"] <= 1e-5 for row in rows)


def test_a_locked_folder_ends_all(path, whole):
    with lock.hold(whole.root):
        for ended in launch_all(path, path.parent / "whole"):
            assert ended.code == 5 and len(lines(ended.err)) == 1, ended.err
            assert f"run folder {whole.root}: locked by process" in ended.err


def test_processes_that_were_started_differently_end(path):
    for ended in launch_all(path, path.parent / "other", own={1: ["--hparams.kl_coef", "0.3"]}):
        assert ended.code == 2 and len(lines(ended.err)) == 1, ended.err
        assert "differ: hparams.kl_coef: " in ended.err
    assert not of(path, path.parent / "other").metrics.exists()


def test_a_coordinator_that_is_not_there():
    flags = ["--processes", "2", "--process", "1", "--join_seconds", "1"]
    address = f"127.0.0.1:{free_port()}"
    code, err = here("train", "tiny", "--coordinator", address, *flags)
    assert code == 2 and len(lines(err)) == 1
    assert f"--coordinator={address}: " in err and "--join_seconds=1" in err


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as far as a mesh asks for it."""

    id: int
    process_index: int
    platform: str = "cpu"


@pytest.mark.parametrize(
    "sizes, tensor, near",
    [((2, 1, 4), 4, 2), ((1, 1, 8), 8, 2), ((1, -1, 4), 4, 2), ((1, 1, -1), 8, 2)],
)
def test_rows_that_processes_share_have_no_python_reward(sizes, tensor, near):
    """Two machines of 2 x 2 chips side by side: a row of four is of both."""
    chips = [Chip(k, k % 4 // 2) for k in range(8)]
    check_own_rows(ParallelOptions(*sizes), parse_rewards(ascii_share), chips)
    with pytest.raises(ConfigError, match=rf"parallel\.tensor={tensor}: .* nearest valid: {near}$"):
        check_own_rows(ParallelOptions(*sizes), parse_rewards(ascii_text), chips)
    check_own_rows(ParallelOptions(tensor=near), parse_rewards(ascii_text), chips)
