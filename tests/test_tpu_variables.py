"""`make tpu-*`: what must be given, what is refused, and what a dry run shows."""

import json
import os
import re
import shutil
import subprocess

import pytest

from tpu_cloud import LAUNCH, NAMES, ROOT, needs_programs

pytestmark = needs_programs
VM = ("TPU_NAME", "ZONE", "PROJECT")
NEEDED = {
    "create": (*VM, "ACCEL"),
    "status": VM,
    "setup": VM,
    "push": VM,
    "train": (*VM, "BUCKET", "RUN_ID"),
    "run": (*VM, "CMD"),
    "logs": VM,
    "ssh": VM,
    "pull": ("PROJECT", "BUCKET", "RUN_ID"),
    "babysit": (*VM, "ACCEL", "BUCKET", "RUN_ID"),
    "delete": VM,
}


def test_every_target_has_its_line_of_help():
    lines = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    listed = re.findall(r"^  tpu-([a-z]+) +\S", lines.stdout, re.M)
    assert set(NEEDED) <= set(listed)
    for name in {*NAMES, "SPOT", "RUNTIME", "WORKER", "CMD", "DRY_RUN"}:
        assert re.search(rf"\b{name}\b", lines.stdout), name


@pytest.mark.parametrize("target", NEEDED)
def test_what_is_not_set_is_named_at_once(cloud, target):
    said = cloud.tpu(target, {})
    assert said.code == 2 and not cloud.calls()
    named = re.findall(rf"tpu-{target}: set (\w+) \(.+\), as in make tpu-{target} \1=\S", said.err)
    assert tuple(named) == NEEDED[target]
    assert len(said.err.splitlines()) == len(named)
    one = cloud.tpu(target, NAMES | {"CMD": "nproc"}, PROJECT="")
    assert one.code == 2 and not cloud.calls()
    assert one.err == f"tpu-{target}: set PROJECT (Google Cloud project), as in " + (
        f"make tpu-{target} PROJECT=my-project\n"
    )


REFUSED = {
    "RUN_ID": ("a b", "a;b", "$(id)", "a/b", "..", "-x", "a\nb", "'", "x" * 101),
    "TPU_NAME": ("Ppo", "1ppo", "a_b", "ppo;ls", "-f"),
    "ZONE": ("us-east5", "us-east5-b x", "b"),
    "PROJECT": ("My-project", "p q", "$P"),
    "BUCKET": ("my bucket", "gs:///x", "b/../c", "b;c", "My"),
    "SPOT": ("2", "yes"),
    "SEED": ("-1", "one"),
    "WORKER": ("x", "0;ls", "-1"),
    "DRY_RUN": ("yes",),
    "RUNTIME": ("a b", "--x"),
    "EXP": ("no_such", "tiny;ls", "-x", "../tiny.py"),
}


@pytest.mark.parametrize("name, value", [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_a_bad_value_is_refused_with_what_is_allowed(cloud, name, value):
    said = cloud.tpu("train", **{name: value})
    assert said.code == 2 and not cloud.calls()
    assert said.err.startswith(f"tpu-train: {name}=")
    assert "must be" in said.err or "no file experiments/no_such.py" in said.err
    if "\n" not in value:
        assert said.err.count("\n") == 1


def test_a_bad_run_id_is_never_run(cloud, tmp_path):
    touch = f"touch {tmp_path}/x"
    for spelled in (f"a;{touch}", f"$({touch})", f"`{touch}`", f"$(shell {touch})", f"$$({touch})"):
        for target in ("tpu-train", "tpu-pull", "tpu-babysit"):
            said = cloud.make(target, f"RUN_ID={spelled}")
            assert said.code == 2 and "RUN_ID=" in said.err and "must be letters" in said.err
    assert not (tmp_path / "x").exists() and not cloud.calls()


@pytest.mark.parametrize(
    "args, why",
    [
        ("--run.seed 3", "--run.seed: set BUCKET, RUN_ID and SEED"),
        ("--run.iterations 3 --run.dir=runs", "--run.dir=runs: set BUCKET"),
        ("--data.path 'my file'", "quotes and backslashes have no meaning"),
    ],
)
def test_flags_that_the_variables_make_are_refused(cloud, args, why):
    said = cloud.tpu("train", ARGS=args)
    assert said.code == 2 and why in said.err and not cloud.calls()


def test_flags_reach_the_program_as_words(cloud):
    said = cloud.tpu("train", ARGS="--hparams.kl_coef 0.1  --data.path *;ls", DRY_RUN="1")
    (command,) = said.commands
    assert command[-3].endswith("--run.seed 0 --hparams.kl_coef 0.1 --data.path '*;ls'")


RUNTIMES = {
    "v2-8": "tpu-ubuntu2204-base",
    "v3-32": "tpu-ubuntu2204-base",
    "v4-8": "tpu-ubuntu2204-base",
    "v4-192": "tpu-ubuntu2204-base",
    "v5litepod-16": "v2-alpha-tpuv5-lite",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-1": "v2-alpha-tpuv6e",
}


@pytest.mark.parametrize("accelerator", RUNTIMES)
def test_the_runtime_version_follows_the_accelerator(cloud, accelerator):
    said = cloud.tpu("create", ACCEL=accelerator, DRY_RUN="1")
    (create,) = (words for words in said.commands if "create" in words)
    assert f"--accelerator-type={accelerator}" in create
    assert f"--runtime-version={RUNTIMES[accelerator]}" in create
    assert "--spot" in create and "--node-id=ppo" in create
    other = cloud.tpu("create", ACCEL=accelerator, RUNTIME="my-own", SPOT="0", DRY_RUN="1")
    (create,) = (words for words in other.commands if "create" in words)
    assert "--runtime-version=my-own" in create and "--spot" not in create


@pytest.mark.parametrize(
    "asked, nearest",
    [
        ("v6-8", "v6e-8"),
        ("v5e-8", "v5litepod-8"),
        ("tpu-v4-8", "v4-8"),
        ("v5litepod-9", "v5litepod-8"),
    ]
    + [("v5p-24", "v5p-32"), ("v6e-8;ls", "v6e-8"), ("h100", "v2-8"), ("v4-200", "v4-256")],
)
def test_an_unknown_accelerator_is_refused_with_the_nearest(cloud, asked, nearest):
    for target in ("create", "babysit"):
        said = cloud.tpu(target, ACCEL=asked)
        assert said.code == 2 and not cloud.calls()
        assert said.err.endswith(f": no such accelerator type; nearest: {nearest}\n")
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "accelerator, workers",
    [("v2-8", 1), ("v3-32", 4), ("v4-16", 2), ("v5p-128", 16), ("v5litepod-1", 1)]
    + [("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-4", 1), ("v6e-256", 64)],
)
def test_hosts_of_a_slice(accelerator, workers):
    script = f'source "{LAUNCH}/lib.sh"; ACCEL={accelerator}; worker_count'
    said = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=True)
    assert int(said.stdout) == workers


def test_without_gcloud_it_says_so(cloud):
    (cloud.folder / "bin/gcloud").unlink()
    for name in ("bash", "git", "dirname"):
        (cloud.folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    said = cloud.tpu("status", PATH=str(cloud.folder / "bin"))
    assert (said.code, said.err) == (
        2,
        "tpu-status: no command gcloud: install the Google Cloud CLI\n",
    )


def test_an_experiment_that_git_does_not_track_is_not_started(cloud):
    new = cloud.repository / "experiments" / "untracked.py"
    new.write_text("")
    try:
        said = cloud.tpu("train", EXP="untracked")
        assert said.code == 2 and "git add experiments/untracked.py" in said.err
        assert not cloud.calls()
        pushed = cloud.tpu("push", DRY_RUN="1")
        assert "untracked files stay here: 1" in pushed.err
    finally:
        new.unlink()


def test_a_dry_run_calls_nothing_and_shows_all(cloud):
    shutil.rmtree(cloud.repository / "build", ignore_errors=True)  # of other tests
    every = [f"tpu-{target}" for target in NEEDED]
    said = cloud.make(*every, "CMD=nproc", "DRY_RUN=1")
    assert said.code == 0, said.err
    assert not cloud.calls() and not list(cloud.repository.glob("build/*"))
    shown = {" ".join(words[:5]) for words in said.commands if words[0] == "gcloud"}
    tpus = {f"queued-resources {verb}" for verb in ("create", "describe", "delete")}
    tpus |= {f"tpu-vm {verb}" for verb in ("describe", "ssh", "scp")}
    assert {f"gcloud compute tpus {words}" for words in tpus} <= shown
    assert any(words.startswith("gcloud storage rsync") for words in shown)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs the Google Cloud CLI")
def test_the_real_gcloud_knows_the_commands(cloud, tmp_path):
    """Its own checker reads them: nothing is sent anywhere."""
    every = [f"tpu-{target}" for target in NEEDED]
    said = cloud.make(*every, "CMD=nproc", "DRY_RUN=1")
    shown = {line[2:] for line in said.out.splitlines() if line.startswith("+ gcloud ")}
    worker = (LAUNCH / "worker.sh").read_text()
    for source, target, flags in re.findall(r"gcloud storage cp (\S+) (\S+)( --\S+)?", worker):
        shown.add(f"gcloud storage cp {source} {target}{flags}".replace('"', "").replace("$", ""))
    assert len(shown) >= 17
    asked = tmp_path / "commands.json"
    asked.write_text(json.dumps([{"command_string": line} for line in sorted(shown)]))
    own = {"CLOUDSDK_CONFIG": str(tmp_path / "config"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    own |= {"CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"}
    command = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={asked}"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this version cannot check commands: {done.stderr[-200:]}")
    found = json.loads(done.stdout[done.stdout.index("[") :])
    wrong = [(one["command_string"], one["error_message"]) for one in found if not one["success"]]
    assert len(found) == len(shown) and not wrong
