"""`make tpu-babysit` against a fake gcloud: VMs that are lost, runs that end in every way."""

import json

import pytest

from faults.launch import CACHE
from tpu_cloud import Cloud, needs_programs

pytestmark = needs_programs
STATUS = "my-bucket/runs/tiny/run1/seed0/status.json"
LOST = {"when": STATUS, "as": "SUSPENDED"}


def starts(cloud: Cloud) -> list[list[str]]:
    return [words for words in cloud.calls("ppo-jax") if words[0] == "train"]


def test_a_run_that_is_left_alone(cloud):
    said = cloud.tpu("babysit")
    assert said.code == 0, said.err
    assert "tiny/run1/seed0 is done" in said.err
    assert said.err.endswith("ppo costs until make tpu-delete\n")  # and is still there
    assert len(starts(cloud)) == 1 and cloud.state()["resource"] == "ACTIVE"
    again = cloud.tpu("babysit")
    assert again.code == 0 and "is done at iteration 60; for more iterations" in again.err
    assert len(starts(cloud)) == 1


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_a_lost_vm_is_made_again_and_the_run_goes_on(cloud, how):
    cloud.plan(ends=[LOST | {"as": how}], ends_with=["run@20", "0@60"])
    said = cloud.tpu("babysit", ARGS="--run.iterations 60")
    assert said.code == 0, said.err
    verbs = [verb for verb in cloud.verbs() if "describe" not in verb and "ssh" not in verb]
    life = ["queued-resources create", "tpu-vm scp"]
    assert verbs == [*life, "queued-resources delete", *life]
    first, second = starts(cloud)
    assert first == second and first[-2:] == ["--run.iterations", "60"]
    assert f"is {how}: requesting ppo again" in said.err
    assert cloud.state()["life"] == 2


def test_a_vm_lost_after_the_end_is_not_made_again(cloud):
    done = json.dumps({"status": "done", "step": 60}, indent=2)
    cloud.plan(ends=[LOST], ends_with=["run@20"])
    running = cloud.tpu("create")
    assert running.code == 0 and cloud.tpu("setup").code == cloud.tpu("train").code == 0
    (cloud.buckets / STATUS).write_text(done.replace("done", "running"))
    cloud.plan(ends=[{"when": STATUS, "as": "PREEMPTED"}])
    assert cloud.tpu("status").code == 0  # meets the end of the VM
    assert cloud.state()["node"] == "PREEMPTED"
    (cloud.buckets / STATUS).write_text(done)
    said = cloud.tpu("babysit")
    assert said.code == 0 and "is done at iteration 60" in said.err
    assert cloud.verbs().count("queued-resources create") == 1


@pytest.mark.parametrize("code", [2, 3, 4, 6, 7])
def test_what_a_restart_does_not_cure_ends_it(cloud, code):
    cloud.plan(ends_with=["75@5", f"{code}@10"])
    said = cloud.tpu("babysit")
    assert said.code == code and len(starts(cloud)) == 2
    assert f"has ended with code {code}, which a restart does not cure" in said.err
    assert cloud.verbs().count("queued-resources create") == 1


def test_what_a_restart_may_cure_is_started_again(cloud):
    cloud.plan(ends_with=["75@5", "1@10", "5@15", "137@20", "75@25", "0@60"])
    said = cloud.tpu("babysit")
    assert said.code == 0 and len(starts(cloud)) == 6, said.err
    assert cloud.verbs().count("tpu-vm scp") == 1  # set up once


def test_without_progress_it_ends_with_the_code_of_the_run(cloud):
    cloud.plan(ends_with=["1@5"] * 9)
    said = cloud.tpu("babysit")
    assert said.code == 1 and "no progress in 3 restarts (code 1)" in said.err
    assert len(starts(cloud)) == 4


def test_a_worker_that_ends_alone_takes_the_others_along(cloud):
    cloud.plan(workers=4, ends_with=[["run@5", "1@5", "run@5", "run@5"], "0@60"])
    said = cloud.tpu("babysit", ACCEL="v5litepod-16")
    assert said.code == 0, said.err
    assert "runs on 3 workers alone" in said.err
    assert "v5litepod-16 has 4 hosts" in said.err and "ssh-add" in said.err
    assert len(starts(cloud)) == 8


def test_failed_requests_are_made_again(cloud):
    cloud.plan(states=[["PROVISIONING", "FAILED"], ["PROVISIONING"]])
    said = cloud.tpu("babysit")
    assert said.code == 0 and "ppo is FAILED: requesting ppo again" in said.err
    verbs = [verb for verb in cloud.verbs() if verb.endswith(("create", "delete"))]
    assert [verb.split()[1] for verb in verbs] == ["create", "delete", "create"]


def test_a_vm_that_stops_answering_is_lost(cloud):
    cloud.plan(deaf=f"buckets/{STATUS}", ends_with=["run@5", "0@60"])
    said = cloud.tpu("babysit")
    assert said.code == 0 and "ppo has stopped answering: requesting ppo again" in said.err
    assert cloud.state()["life"] == 2


def test_another_run_is_left_alone(cloud):
    cloud.plan(ends_with=["run@5"])
    for target in ("create", "setup", "train"):
        assert cloud.tpu(target).code == 0
    said = cloud.tpu("babysit", RUN_ID="run2")
    assert said.code == 5 and "ppo runs tiny/run1/seed0, not tiny/run2/seed0" in said.err
    assert len(starts(cloud)) == 1


def test_a_vm_that_was_never_reached_is_not_deleted(cloud):
    cloud.plan(deaf="plan.json")
    said = cloud.tpu("babysit")
    assert said.code == 1 and "does not reach every worker of ppo: ERROR:" in said.err
    assert "giving up" in said.err and "queued-resources delete" not in cloud.verbs()


def test_the_real_program_goes_on_after_a_preemption(cloud):
    """The code as it was sent, ended by SIGKILL with its VM after a checkpoint, to its last
    iteration on the next one."""
    saved = "my-bucket/runs/tiny/run1/seed0/checkpoints/5.json"
    cloud.plan(ends_with=None, ends=[{"when": saved, "as": "SUSPENDED"}])
    flags = "--rollout.batch_size 8 --run.iterations 12 --run.checkpoint_every 5 "
    flags += f"--run.show_prompts 0 --run.profile_after 0 --run.compile_cache {CACHE}"
    said = cloud.make("tpu-babysit", f"ARGS={flags}")
    assert said.code == 0, said.err
    assert len(starts(cloud)) == 2 and cloud.state()["life"] == 2
    log = (cloud.buckets / "my-bucket/launch/tiny/run1/seed0/worker-0.log").read_text()
    assert "resumed at iteration 5" in log and "ended with code 0" in log
    folder = cloud.buckets / "my-bucket/runs/tiny/run1/seed0"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(12))
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
