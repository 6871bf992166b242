"""What runs ask of their folder, on the disk and on gs:// (a server on this machine)."""

import errno
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcs_server import needs_server
from ppo_jax import checkpoint, lock, manifest, removal, storage
from ppo_jax.config import Config, RunOptions, replace
from ppo_jax.errors import CheckpointError, ConfigError, LockedError, StorageError
from ppo_jax.metrics import open_metrics, read_metrics
from ppo_jax.restore import abstract_like, restore, restore_params
from ppo_jax.run_folder import make_folder, reconcile, run_folder, run_path
from ppo_jax.storage import as_path, on_gcs, staged


@pytest.fixture(params=["disk", pytest.param("gcs", marks=needs_server)])
def root(request, tmp_path):
    """An empty folder of either kind."""
    if request.param == "disk":
        return tmp_path
    return as_path(request.getfixturevalue("gcs")) / tmp_path.name


def state_of(step):
    params = {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.ones(3, jnp.bfloat16)}
    return {"params": params, "key": jax.random.key(step), "step": jnp.int32(step)}


def saved(root, *steps, keep=5):
    with checkpoint.open_saver(root, keep) as saver:
        for step in steps:
            checkpoint.save(saver, step, state_of(step))
    return root


def assert_state(found, step):
    words = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    same = lambda a, b: np.testing.assert_array_equal(words(a), words(b))
    jax.tree.map(same, found, state_of(step))


def test_names_become_paths(monkeypatch, tmp_path):
    assert as_path("runs/a") == Path("runs/a") and as_path(tmp_path) == tmp_path
    for name in ("s3://bucket/x", "gs://", "file:///x"):
        with pytest.raises(ConfigError, match="run.dir=.*must be a local folder or gs://"):
            run_path(RunOptions(dir=name), "tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gs://bucket.*-m pip install gcsfs "):
        run_path(RunOptions(dir="gs://bucket"), "tiny")


@needs_server
def test_a_path_on_gcs_has_pathlibs_manners(gcs):
    path = run_path(RunOptions(dir=f"{gcs}/there"), "tiny")
    assert on_gcs(path) and str(path) == os.fspath(path) == f"{gcs}/there/tiny/base/seed0"
    assert path.name == "seed0" and str(path.parent) == f"{gcs}/there/tiny/base"
    assert path.absolute() == path.expanduser() == as_path(path) == path
    assert not path.exists() and not path.is_dir() and list(path.glob("*")) == []
    with pytest.raises(FileNotFoundError, match="no such bucket or object"):
        list(path.iterdir())
    (path / "x" / "x").touch()  # named as its folder is
    (path / "a.json").write_text("1")
    assert [p.name for p in path.iterdir()] == ["a.json", "x"]
    assert [p.name for p in (path / "x").iterdir()] == ["x"]
    assert path.is_dir() and not path.is_file() and (path / "x" / "x").read_bytes() == b""
    assert list(path.glob("*.json")) == [path / "a.json"]
    (path / "x" / "x").unlink()
    assert not (path / "x").exists()
    (path / "x" / "x").unlink(missing_ok=True)


def test_files_are_replaced_listed_and_removed(root):
    storage.write_atomic(root / "env.json", "old")
    storage.write_atomic(root / "env.json", "né\n")
    assert (root / "env.json").read_text(encoding="utf-8") == "né\n"
    (root / "sub" / "sub").mkdir(parents=True)
    (root / "sub" / "sub" / "b").touch()
    assert storage.files(root) == ["env.json", "sub/sub/b"]
    storage.remove_tree(root / "sub")
    assert storage.files(root) == ["env.json"] and not (root / "sub").exists()


def test_checkpoints_are_saved_read_and_superseded(root):
    path = saved(root / "checkpoints", 1, 2, 3, keep=2)
    assert manifest.steps(path) == [2, 3]
    assert sorted(p.name for p in path.iterdir()) == ["2", "2.json", "3", "3.json"]
    manifest.verify(path, 3)
    assert_state(restore(path, 3, abstract_like(state_of(0))), 3)
    np.testing.assert_array_equal(restore_params(path)["w"], state_of(3)["params"]["w"])


def test_damage_is_found_and_put_aside(root):
    path = saved(root, 1, 2)
    name = manifest.read_record(path, 2)["files"].popitem()[0]
    hurt = path / "2" / name
    hurt.write_text("?" * len(hurt.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{name}: its sha256"):
        manifest.verify(path, 2)
    hurt.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is gone"):
        manifest.verify(path, 2)
    aside = removal.put_aside(path, 2)
    assert manifest.steps(path) == [1] and manifest.steps(aside) == [2]
    assert removal.put_aside(path, 1).name == "1.corrupt" and not (path / "1").exists()


def test_what_a_killed_save_left_is_removed(root):
    path = saved(root, 1)
    (path / "2" / "state").mkdir(parents=True)
    (path / "2" / "state" / "d").touch()
    (path / "2.unfinished").touch()
    saved(path, 2)
    assert sorted(p.name for p in path.iterdir()) == ["1", "1.json", "2", "2.json"]
    assert_state(restore(path, 2, abstract_like(state_of(0))), 2)


def test_logs_are_added_to_and_cut_back(root):
    folder = run_folder(root)
    steps = lambda: [row["step"] for row in read_metrics(folder.metrics)]
    with storage.published(root), open_metrics(folder) as log:
        for step in range(3):
            log.write(step, {"a": step})
        log.sync()
        assert steps() == [0, 1, 2]
        log.write(3, {"a": 3})
        assert steps() == ([0, 1, 2] if on_gcs(root) else [0, 1, 2, 3])
    assert steps() == [0, 1, 2, 3]
    reconcile(folder, 2)
    with pytest.raises(KeyError), storage.published(root), open_metrics(folder) as log:
        log.write(2, {"a": 20})
        raise KeyError
    assert [row["a"] for row in read_metrics(folder.metrics)] == [0, 1, 20]


@needs_server
def test_what_a_killed_process_left_here_does_not_replace_the_log(gcs):
    root = as_path(gcs) / "left"
    storage.write_atomic(root / "metrics.jsonl", '{"step": 0}\n')
    (staged(root) / "metrics.jsonl").write_text("of another time\n")
    (staged(root) / "reward.log").write_text("as well\n")
    with storage.published(root):
        assert storage.to_append(root / "reward.log") == staged(root) / "reward.log"
    assert (root / "metrics.jsonl").read_text() == '{"step": 0}\n'
    assert storage.files(root) == ["metrics.jsonl"]


def test_a_log_beside_the_run_s_own_is_added_to(root):
    """Whatever ends the command; the run, which may be under way here, keeps its copies."""
    log, text = root / "eval-reward.log", "one\n"
    with storage.published(root):
        storage.to_append(root / "metrics.jsonl").write_text("begun\n")
        with storage.appended(log) as local:
            local.open("a").write(text)
            assert not on_gcs(local) and (log.exists() is not on_gcs(root))
        with pytest.raises(KeyError), storage.appended(log) as local:
            assert local.read_text() == log.read_text() == text
            local.open("a").write("two\n")
            raise KeyError
        assert log.read_text() == "one\ntwo\n"
        assert (root / "metrics.jsonl").exists() is not on_gcs(root)
    assert storage.files(root) == ["eval-reward.log", "metrics.jsonl"]
    with storage.appended(root / "unused.log"):
        pass
    assert not (root / "unused.log").exists()


def test_a_folder_is_held_once_on_a_machine(root):
    with lock.hold(root), pytest.raises(LockedError, match="seed0|locked"), lock.hold(root):
        pass


def test_the_run_folder_is_tried(root):
    config = replace(Config(), **{"run.dir": str(root)})
    folder = make_folder(config, "tiny")
    assert storage.files(root) == [] and folder.root == root / "tiny" / "base" / "seed0"


@needs_server
def test_no_bucket_no_folder(gcs):
    config = replace(Config(), **{"run.dir": "gs://nothing-of-that-name/runs"})
    with pytest.raises(StorageError, match="gs://nothing-of-that-name/runs/.*no such bucket"):
        make_folder(config, "tiny")


@needs_server
@pytest.mark.parametrize("method", ["info", "cat_file", "find", "open"])
def test_a_storage_out_of_reach_is_no_damage(gcs, monkeypatch, method):
    from ppo_jax.gcs import _client

    def refuse(*words, **options):
        raise RuntimeError("no answer\nin two lines")

    path = saved(as_path(gcs) / f"reach-{method}", 1)
    with monkeypatch.context() as patch:
        patch.setattr(_client(), method, refuse)
        with pytest.raises(StorageError, match="^gs://.*: no answer in two lines$") as caught:
            manifest.verify(path, 1)
    assert isinstance(caught.value, OSError) and caught.value.errno == errno.EIO
    manifest.verify(path, 1)
