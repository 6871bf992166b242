"""Hub ids: which names are some, and snapshots out of a hub on the loopback, with and without it.

Each case has a process of its own: the library reads the hub's address, the cache's place and
HF_HUB_OFFLINE when it is imported, and this is how a command meets them.
"""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import validate_repo_id
from safetensors.numpy import save

from fake_hub import TOKEN, Repo, fake_hub
from ppo_jax.hub import is_hub_id

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from ppo_jax.errors import PPOJaxError
from ppo_jax.hub import snapshot
for name, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(["Snapshot", *map(str, snapshot(name, revision))]))
    except PPOJaxError as error:
        print(json.dumps([type(error).__name__, str(error), error.exit_code]))
"""
WEIGHTS = save({"a": np.arange(4, dtype=np.float32)})
SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
UNWANTED = {
    "README.md": b"# A model",
    "modeling_own.py": b"raise SystemExit('run')",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "consolidated.safetensors": WEIGHTS,
    "original/consolidated.00.pth": b"pickle",
    "original/model.safetensors": b"other weights",
    "original/config.json": b"{}",
    "onnx/chat_template.jinja": b"other",
    "checkpoint-10/adapter_model.safetensors": b"other",
}
GOOD = SMALL | {"model.safetensors": WEIGHTS}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}).encode()
SHARDED = SMALL | {
    "model.safetensors.index.json": INDEX,
    SHARDS[0]: WEIGHTS,
    SHARDS[1]: save({"b": np.ones(2, np.float32), "c": np.ones(3, np.float32)}),
    "model.fp16-00001-of-00001.safetensors": b"another precision",
}


def index_to(*files):
    weight_map = {f"tensor{n}": file for n, file in enumerate(files)}
    return SMALL | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


REPOS = {
    "org/good": Repo(GOOD | UNWANTED, refs=("main", "v1.0", "refs/pr/3")),
    "org/sharded": Repo(SHARDED | UNWANTED),
    "org/both": Repo(SHARDED | {"model.safetensors": WEIGHTS}),
    "org/adapter": Repo({"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}),
    "org/gated": Repo(GOOD, gated=True),
    "org/pickled": Repo(SMALL | {"pytorch_model.bin": b"pickle", "README.md": b"# A model"}),
    "org/empty": Repo({"README.md": b"# Nothing yet"}),
    "org/climbing": Repo(index_to("../../secret.safetensors")),
    "org/pickled-shards": Repo(index_to("pytorch_model-00001-of-00001.bin")),
    "org/pattern": Repo(index_to("*.safetensors") | UNWANTED),
    "org/torn": Repo(index_to("model-00001-of-00001.safetensors")),
    "org/login": Repo(GOOD, always=(200, b"<html>Log in to this network</html>")),
    "org/down": Repo(GOOD, always=(503, b"")),
    "org/denied": Repo(GOOD, always=(403, b"")),
    "org/broken-index": Repo(SMALL | {"model.safetensors.index.json": b"{"}),
}


@pytest.fixture
def hub():
    with fake_hub(REPOS) as server:
        yield server


def ask(endpoint, home, *calls, **env):
    """[kind, *values] of each `snapshot(name, revision)`, in one new process with its own cache."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env=inherited | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    for noise in ("Traceback", "Retrying"):
        assert noise not in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(answer, *parts, kind="ConfigError"):
    """The answer is one line of an error that says all of this."""
    assert answer[0] == kind
    assert "\n" not in answer[1]
    for part in parts:
        assert part in answer[1]
    assert answer[2] == {"ConfigError": 2, "StorageError": 6}[kind]


def files_in(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if not p.is_dir()}


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_ids_are_those_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "a/b", "_a/b_", "EleutherAI/x-1.4b"):
        assert is_hub_id(name)
    paths = ["gpt2", "./a/b", "../a", "a/..", "~/a", "/a/b", "a/b/c", "a/b/", "", "/", "a/", "/a"]
    for name in [*paths, "a//b", "a/b c", "a/b\n", "a\\b", "a/b@v1", "hf://a/b", "smollm2-135m"]:
        assert not is_hub_id(name)


def test_ids_follow_the_library_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    counts = {True: 0, False: 0}
    sizes = [3] * 40 + [0, 1, 2, 5, 95, 96, 97, 98]
    for _ in range(20_000):
        parts = [random.choices("aB7_-.é ", (90, 90, 90, 9, 9, 9, 1, 1), k=k) for k in
                 random.choices(sizes, k=2)]  # fmt: skip
        name = "/".join(map("".join, parts)) + random.choice(("", "", "", ".git"))
        try:
            validate_repo_id(name)
            valid = True
        except ValueError:
            valid = False
        assert is_hub_id(name) == valid, name
        counts[valid] += 1
    assert min(counts.values()) > 2_000


def test_what_exists_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/name")
    (tmp_path / "org").mkdir()
    assert is_hub_id("org/name")
    (tmp_path / "org" / "name").mkdir()
    assert not is_hub_id("org/name")
    (tmp_path / "org" / "dangling").symlink_to("nowhere")
    assert not is_hub_id("org/dangling")


def test_only_what_is_needed_is_fetched_and_pinned(hub, tmp_path):
    (answer,) = ask(hub.url, tmp_path, ("org/good", None))
    kind, folder, revision = answer
    assert (kind, revision) == ("Snapshot", REPOS["org/good"].sha)
    assert hub.files_asked_for() == set(GOOD) == files_in(folder)
    for name, body in GOOD.items():
        assert (Path(folder) / name).read_bytes() == body
    assert not files_in(tmp_path) & {Path(name).name for name in UNWANTED}


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "sha"])
def test_a_named_revision_resolves_to_its_commit(hub, tmp_path, revision):
    sha = REPOS["org/good"].sha
    (answer,) = ask(hub.url, tmp_path, ("org/good", sha if revision == "sha" else revision))
    assert answer[2] == sha
    assert files_in(answer[1]) == set(GOOD)


def test_a_cached_commit_touches_no_network(hub, tmp_path):
    sha = REPOS["org/good"].sha
    first = ask(hub.url, tmp_path, ("org/good", None))
    sharded = ask(hub.url, tmp_path, ("org/sharded", None))
    hub.requests.clear()
    calls = [("org/good", sha), ("org/sharded", REPOS["org/sharded"].sha)]
    assert ask(hub.url, tmp_path, *calls) == first + sharded
    assert hub.requests == []
    assert ask(closed_port(), tmp_path, *calls) == first + sharded


def test_shards_are_those_of_the_index(hub, tmp_path):
    (answer,) = ask(hub.url, tmp_path, ("org/sharded", None))
    wanted = {*SMALL, "model.safetensors.index.json", *SHARDS}
    assert answer[0] == "Snapshot"
    assert files_in(answer[1]) == wanted == hub.files_asked_for()


def test_one_whole_file_goes_before_shards_and_an_adapter_is_enough(hub, tmp_path):
    both, adapter = ask(hub.url, tmp_path, ("org/both", None), ("org/adapter", None))
    assert files_in(both[1]) == {*GOOD, "model.safetensors.index.json"}
    assert files_in(adapter[1]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_cache_serves_what_it_has_offline(hub, tmp_path):
    online = ask(hub.url, tmp_path, ("org/good", None), ("org/sharded", None))
    hub.requests.clear()
    calls = [("org/good", None), ("org/sharded", None), ("org/adapter", None)]
    *found, missing = ask(hub.url, tmp_path, *calls, HF_HUB_OFFLINE="1")
    assert found == online
    refused(missing, "'org/adapter'", "offline", "HF_HUB_OFFLINE", "path of a Hugging Face folder")
    assert hub.requests == []
    assert ask(closed_port(), tmp_path, *calls[:2]) == online


def test_an_incomplete_copy_is_not_taken_for_whole(hub, tmp_path):
    good, sharded = ask(hub.url, tmp_path, ("org/good", None), ("org/sharded", None))
    calls = [("org/good", None), ("org/sharded", None), ("org/good", good[2])]
    # Other programs fill the cache file by file and leave no list of what there should be.
    listings = {file: file.read_text() for file in tmp_path.rglob("trees/*.json")}
    for listing in listings:
        listing.unlink()
    assert ask(hub.url, tmp_path, *calls[:2], HF_HUB_OFFLINE="1") == [good, sharded]
    (Path(good[1]) / "model.safetensors").unlink()
    (Path(sharded[1]) / SHARDS[1]).unlink()
    good_again, sharded_again = ask(hub.url, tmp_path, *calls[:2], HF_HUB_OFFLINE="1")
    refused(good_again, "'org/good'", "local cache holds no weights", good[2])
    refused(sharded_again, "'org/sharded'")
    for file, text in listings.items():
        file.write_text(text)
    answers = ask(hub.url, tmp_path, *calls, HF_HUB_OFFLINE="1")
    for answer, (name, _) in zip(answers, calls, strict=True):
        refused(answer, repr(name), "offline", "path of a Hugging Face folder")
    assert ask(hub.url, tmp_path, *calls) == [good, sharded, good]
    assert files_in(good[1]) == set(GOOD)
    assert (Path(sharded[1]) / SHARDS[1]).read_bytes() == SHARDED[SHARDS[1]]


def test_repositories_that_cannot_be_had(hub, tmp_path):
    sha = "0123456789" * 4
    calls = [("org/nothing", None), ("org/gated", None), ("org/good", "v9"), ("org/good", sha)]
    nothing, gated, tag, commit = ask(hub.url, tmp_path, *calls)
    refused(nothing, "'org/nothing'", "neither a folder here nor a repository", "HF_TOKEN")
    refused(gated, "'org/gated'", "is gated", "HF_TOKEN", "path of a Hugging Face folder")
    refused(tag, "'org/good'", "no revision 'v9'")
    refused(commit, "'org/good'", f"no revision '{sha}'")
    (opened,) = ask(hub.url, tmp_path, ("org/gated", None), HF_TOKEN=TOKEN)
    assert files_in(opened[1]) == set(GOOD)


def test_repositories_without_usable_weights(hub, tmp_path):
    names = "pickled empty climbing pickled-shards pattern torn broken-index".split()
    pickled, empty, climbing, bins, pattern, torn, broken = ask(
        hub.url, tmp_path, *((f"org/{name}", None) for name in names)
    )
    refused(pickled, "'org/pickled'", "pickled weights (pytorch_model.bin) are not read")
    refused(climbing, "'org/climbing'", "'../../secret.safetensors'")
    refused(bins, "'org/pickled-shards'", "'pytorch_model-00001-of-00001.bin'", ".safetensors file")
    refused(pattern, "'org/pattern'", "'*.safetensors'")
    refused(torn, "'org/torn'", "model-00001-of-00001.safetensors, which is not there")
    refused(broken, "model.safetensors.index.json: expected a weight_map")
    refused(empty, "'org/empty' has no safetensors on the hub: expected model.safetensors")
    assert "pickled" not in empty[1]
    assert hub.files_asked_for() <= {*SMALL, "model.safetensors.index.json"}


def test_an_unreachable_hub(tmp_path):
    endpoint = closed_port()
    (answer,) = ask(endpoint, tmp_path, ("org/good", "v1.0"))
    refused(answer, "'org/good' at revision 'v1.0'", endpoint, "refused", "Hugging Face folder")


def test_a_hub_gone_wrong(hub, tmp_path):
    calls = [("org/login", None), ("org/down", None), ("org/denied", None)]
    login, down, denied = ask(hub.url, tmp_path, *calls)
    refused(
        login,
        "'org/login'",
        f"{hub.url} does not answer as a hub does",
        "path of a Hugging Face folder",
    )
    refused(down, "'org/down'", f"{hub.url} answers 503", "path of a Hugging Face folder")
    refused(denied, "'org/denied'", f"{hub.url} answers 403", "HF_TOKEN")


def test_an_unwritable_cache(hub, tmp_path):
    (tmp_path / "hub").write_text("a file where the cache should be")
    (answer,) = ask(hub.url, tmp_path, ("org/good", None))
    refused(answer, "'org/good'", str(tmp_path / "hub"), kind="StorageError")
