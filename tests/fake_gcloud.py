"""Stands for gcloud, and for what a TPU VM finds on its PATH, in tests of experiments/launch.

    python fake_gcloud.py PROGRAM WORD...

All lies below $FAKE_CLOUD: plan.json (what is to happen), state.json (what has), calls.jsonl (every
call), buckets/<name>/, and vms/<life>/<worker>/, the home folder of a worker. A command sent by ssh
is run by bash in that folder, with these stand-ins and the system's own programs on its PATH.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
BUCKETS = CLOUD / "buckets"
PLAN = json.loads((CLOUD / "plan.json").read_text())


def main(program: str, words: list[str]) -> int:
    call = {"program": program, "words": words, "worker": os.environ.get("FAKE_WORKER")}
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    if program == "gcloud":
        return gcloud(words)
    return ON_VM[program](words)


# --- gcloud ---------------------------------------------------------------------------------------


def gcloud(words: list[str]) -> int:
    plain = [word for word in words if not word.startswith("--")]
    flags = dict(w.removeprefix("--").partition("=")[::2] for w in words if w.startswith("--"))
    if plain[:1] == ["storage"]:
        return storage(plain[1], plain[2:], flags)
    assert plain[:2] == ["compute", "tpus"], words
    assert {"zone", "project"} <= flags.keys(), words
    kind, verb, *rest = plain[2:]
    state = load_state()
    code = {"queued-resources": queued, "tpu-vm": vm}[kind](verb, rest, flags, state)
    (CLOUD / "state.new").write_text(json.dumps(state))
    (CLOUD / "state.new").replace(CLOUD / "state.json")  # a VM reads it at any time
    return code


def load_state() -> dict:
    path = CLOUD / "state.json"
    new = {"resource": None, "node": None, "life": 0, "asked": 0}
    return json.loads(path.read_text()) if path.exists() else new


def queued(verb: str, rest: list[str], flags: dict, state: dict) -> int:
    if verb == "create":
        assert state["resource"] is None, "the name is taken"
        assert {"node-id", "accelerator-type", "runtime-version"} <= flags.keys()
        state |= {"resource": "WAITING", "node": None, "life": state["life"] + 1, "asked": 0}
        return 0
    if state["resource"] is None:
        return fail(f"NOT_FOUND: Resource 'projects/p/queuedResources/{rest[0]}' was not found")
    if verb == "delete":
        assert "force" in flags and "quiet" in flags
        end_vm(state)
        state |= {"resource": None, "node": None}
        return 0
    assert verb == "describe", verb
    advance(state)
    print(state["resource"])
    return 0


def advance(state: dict) -> None:
    """WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE; and one day what the plan has for this life."""
    if state["resource"] in ("WAITING", "WAITING_FOR_RESOURCES", "PROVISIONING"):
        of_life = PLAN["states"][: state["life"]][-1]
        steps = [*of_life, "ACTIVE"]
        state["resource"] = steps[state["asked"]]
        state["asked"] += 1
        if state["resource"] == "ACTIVE":
            state["node"] = "READY"
            for worker in range(PLAN["workers"]):
                (home(state, worker) / "tmp").mkdir(parents=True)
    elif state["resource"] == "ACTIVE" and state["life"] <= len(PLAN["ends"]):
        end = PLAN["ends"][state["life"] - 1]  # e.g. {"when": "b/runs/*/x", "as": "SUSPENDED"}
        if any(BUCKETS.glob(end["when"])):
            end_vm(state)
            state["resource" if end["as"] == "SUSPENDED" else "node"] = end["as"]


def end_vm(state: dict) -> None:
    """Nothing of it is told before, and nothing on its disk stays."""
    for worker in range(PLAN["workers"]):
        pid = home(state, worker) / "ppo_jax-launch" / "pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue
    time.sleep(0.05)
    shutil.rmtree(CLOUD / "vms" / str(state["life"]), ignore_errors=True)


def home(state: dict, worker: int) -> Path:
    return CLOUD / "vms" / str(state["life"]) / str(worker)


def vm(verb: str, rest: list[str], flags: dict, state: dict) -> int:
    if verb == "describe":
        if state["node"] is None:
            return fail("NOT_FOUND: Resource 'projects/p/nodes/x' was not found")
        print(state["node"])
        return 0
    deaf = PLAN["deaf"] and state["life"] == 1 and any(CLOUD.glob(PLAN["deaf"]))
    if (state["resource"], state["node"]) != ("ACTIVE", "READY") or deaf:
        return fail("the TPU VM is not reachable")
    chosen = flags.get("worker", "0")
    workers = range(PLAN["workers"]) if chosen == "all" else [int(chosen)]
    if verb == "scp":
        source, target = rest
        for worker in workers:
            shutil.copy(source, home(state, worker) / target.partition(":")[2])
        return 0
    assert verb == "ssh", verb
    if "command" not in flags:
        print("a shell on worker", chosen)
        return 0
    codes = [over_ssh(home(state, worker), worker, flags["command"]) for worker in workers]
    return next((code for code in codes if code), 0)


def over_ssh(folder: Path, worker: int, command: str) -> int:
    path = f"{CLOUD / 'vm-bin'}:/usr/bin:/bin"
    keep = {key: os.environ[key] for key in ("FAKE_CLOUD", "LANG") if key in os.environ}
    env = keep | {"HOME": str(folder), "PATH": path, "FAKE_WORKER": str(worker)}
    env |= {"TMPDIR": str(folder / "tmp")}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env).returncode


def storage(verb: str, words: list[str], flags: dict) -> int:
    paths = [BUCKETS / w[5:] if w.startswith("gs://") else Path(w) for w in words]
    source = paths[0]
    if not source.exists():
        return fail(f"The following URLs matched no objects or files: {words[0]}")
    if verb == "cat":
        print(source.read_text(), end="")
    elif verb == "rsync":
        assert "recursive" in flags and paths[1].is_dir()
        shutil.copytree(source, paths[1], dirs_exist_ok=True)
    else:
        assert verb == "cp", verb
        paths[1].parent.mkdir(parents=True, exist_ok=True)
        if not (paths[1].exists() and "no-clobber" in flags):
            shutil.copy(source, paths[1])
    return 0


def fail(why: str) -> int:
    print(f"ERROR: (gcloud) {why}", file=sys.stderr)
    return 1


# --- on the VM ------------------------------------------------------------------------------------


def wrapper(path: Path, program: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {program} "$@"\n')
    path.chmod(0o755)


def python3(words: list[str]) -> int:
    """The image's own, which is used for pip alone."""
    assert words[:2] == ["-m", "pip"], words
    if not (PLAN["pip"] or Path.home().joinpath("pip").exists()):
        return 1
    if "install" in words:
        assert words[-1] == "uv"
        wrapper(Path.home() / ".local/bin/uv", "uv")
    return 0


def sudo(words: list[str]) -> int:
    if "install" in words and "python3-pip" in words:
        Path.home().joinpath("pip").touch()
    return 0


def uv(words: list[str]) -> int:
    if words[0] == "venv":
        wrapper(Path(words[-1]) / "bin/python", "python3")
    elif words[:2] == ["pip", "freeze"]:
        print("jax==0.10.2")
    elif "--editable" in words:
        assert Path.home().joinpath("ppo_jax/pyproject.toml").is_file()
        python = Path(words[words.index("--python") + 1])
        wrapper(python.parent / "ppo-jax", "ppo-jax")
    return 0


def ppo_jax(words: list[str]) -> int:
    if words == ["--version"]:
        print("ppo-jax 0")
        return 0
    local = [str(BUCKETS / w[5:]) if w.startswith("gs://") else w for w in words]
    if PLAN["ends_with"] is None:
        return real_ppo_jax(local)
    flag = lambda name: local[local.index(f"--run.{name}") + 1]
    folder = Path(flag("dir"), Path(local[1]).stem, flag("cell"), f"seed{flag('seed')}")
    starts = sum(
        call["program"] == "ppo-jax" and call["words"][0] == "train"
        for call in map(json.loads, (CLOUD / "calls.jsonl").read_text().splitlines())
        if call["worker"] == os.environ["FAKE_WORKER"]
    )
    planned = PLAN["ends_with"][starts - 1]  # CODE@STEP, or run@STEP: until it is told to end
    if isinstance(planned, list):
        planned = planned[int(os.environ["FAKE_WORKER"])]
    code, _, step = planned.partition("@")
    said = {"0": "done", "run": "running", "75": "preempted"}.get(code, "failed")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"status": said, "step": int(step or 0)}, indent=2)
    (folder / "status.json").write_text(text)
    print("trained to", step, flush=True)
    if code == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        time.sleep(600)
    return int(code)


def real_ppo_jax(words: list[str]) -> int:
    """Of the code that was sent. Once there is what this VM's end waits for, it stands still, so
    that it cannot be done before somebody has looked."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen([sys.executable, "-m", "ppo_jax", *words], env=env)
    ends = PLAN["ends"][load_state()["life"] - 1 :][:1]
    while child.poll() is None:
        if ends and any(BUCKETS.glob(ends[0]["when"])):
            child.send_signal(signal.SIGSTOP)
            ends = []
        time.sleep(0.01)
    return child.returncode


def hostname(words: list[str]) -> int:
    print(f"worker-{os.environ['FAKE_WORKER']}")
    return 0


def tail(words: list[str]) -> int:
    print(Path(words[-1]).read_text(), end="")
    return 0


ON_VM = {
    "python3": python3,
    "sudo": sudo,
    "uv": uv,
    "ppo-jax": ppo_jax,
    "hostname": hostname,
    "tail": tail,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
