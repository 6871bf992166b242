"""The run folder and its logs: strict lines, each step once, errors that name the path."""

import errno
import json
import math
import os
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import Config, RunOptions, replace
from ppo_jax.errors import ConfigError, DataError, StorageError
from ppo_jax.metrics import (
    first_and_last,
    open_metrics,
    read_metrics,
    read_samples,
    throughput,
    to_host,
)
from ppo_jax.run_folder import (
    environment,
    make_folder,
    reconcile,
    run_folder,
    run_path,
    write_env,
    write_status,
)


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


def config_in(path, **changes):
    return replace(Config(), **{"run.dir": str(path), **changes})


def no_constants(name):
    raise AssertionError(f"{name} is no strict JSON")


def test_lines_are_strict_and_come_back(folder):
    nan = float("nan")
    rows = [{"a": 1.5, "b": 3}, {"a": math.inf, "b": -math.inf}, {"a": nan, "c": np.float32(0.1)}]
    with open_metrics(folder) as log:
        for step, row in enumerate(rows):
            log.write(step, row)
            # Flushed: another reader sees the line at once.
            assert len(folder.metrics.read_text().splitlines()) == step + 1
        log.write_samples(0, [{"prompt": "p\u2028\ud800\x1b", "response": "nan", "score": nan}] * 2)
        log.write_samples(1, [])
    for line in folder.metrics.read_text().splitlines():
        assert next(iter(json.loads(line, parse_constant=no_constants))) == "step"
    back = read_metrics(folder.metrics)
    assert back[:2] == [{"step": 0, "a": 1.5, "b": 3}, {"step": 1, "a": math.inf, "b": -math.inf}]
    assert math.isnan(back[2]["a"]) and back[2]["c"] == float(np.float32(0.1))
    sample = {"step": 0, "prompt": "p\u2028\ud800\x1b", "response": "nan", "score": "nan"}
    assert read_samples(folder.samples) == [sample, sample]


def test_opening_again_adds(folder):
    for step in range(3):
        with open_metrics(folder) as log:
            log.write(step, {})
    assert [row["step"] for row in read_metrics(folder.metrics)] == [0, 1, 2]


def test_every_tear_of_the_last_line(folder):
    whole = '{"step": 0, "a": 1}\n'
    line = '{"step": 1, "a": 22}'
    for cut in range(len(line) + 1):
        folder.metrics.write_text(whole + line[:cut])
        assert [row["step"] for row in read_metrics(folder.metrics)] == [0]
        with open_metrics(folder) as log:
            log.write(1, {"a": 3})
        assert [row["a"] for row in read_metrics(folder.metrics)] == [1, 3]
    folder.metrics.write_text("x" * 200_000)  # one torn line longer than a block, nothing before it
    with open_metrics(folder) as log:
        log.write(0, {})
    assert read_metrics(folder.metrics) == [{"step": 0}]


def test_damage_inside_is_named(folder):
    for bad in ("oops", "[1]", '{"a": 1}', '{"step": "0"}', ""):
        folder.metrics.write_text('{"step": 0}\n' + bad + '\n{"step": 2}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
            read_metrics(folder.metrics)


def test_reconcile_makes_each_step_appear_once(folder):
    for last in range(6):
        for resumed in range(last + 2):
            for path in (folder.metrics, folder.samples):
                path.unlink(missing_ok=True)
            with open_metrics(folder) as log:
                for step in range(last + 1):
                    log.write(step, {"run": 1})
                    log.write_samples(step, [{"k": 0}, {"k": 1}])
            with open(folder.metrics, "a") as file:
                file.write('{"step": 99, "ru')
            reconcile(folder, resumed)
            with open_metrics(folder) as log:
                for step in range(resumed, 8):
                    log.write(step, {"run": 2})
            rows = read_metrics(folder.metrics)
            assert [row["step"] for row in rows] == list(range(8))
            assert [row["run"] for row in rows] == [1] * resumed + [2] * (8 - resumed)
            kept = [row["step"] for row in read_samples(folder.samples)]
            assert kept == [step for step in range(resumed) for _ in range(2)]
    reconcile(run_folder(folder.root / "empty"), 3)  # nothing to cut is fine


def test_failed_write(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_metrics(folder) as log:
        log.write(0, {})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
            with pytest.raises(StorageError, match=r"metrics\.jsonl"):
                log.write(1, {"a" * 60: 0.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(folder.metrics) == [{"step": 0}]
    with pytest.raises(StorageError, match="gone"), open_metrics(run_folder(folder.root / "gone")):
        pass


def test_other_processes_write_nothing(folder, monkeypatch):
    monkeypatch.setattr("ppo_jax.processes.index", lambda: 1)
    with open_metrics(folder) as log:
        log.write(0, {"a": 1.0})
        log.write_samples(0, [{"prompt": ""}])
    write_status(folder, "running", 0)
    write_env(folder, {})
    make_folder(config_in(folder.root / "runs"), "exp")
    assert list(folder.root.iterdir()) == []


def test_to_host():
    host = to_host({"a": jnp.float32(0.5), "n": jnp.int32(3), "x": jnp.float32(jnp.inf)})
    assert host == {"a": 0.5, "n": 3, "x": math.inf}
    assert [type(value) for value in host.values()] == [float, int, float]


def test_throughput():
    row = {"rollout/length_mean": 10.0, "time/iteration": 4.0, "time/rollout": 2.0}
    assert throughput(row, 8) == {"throughput/total": 20.0, "throughput/rollout": 40.0}
    assert throughput({}, 8) == {}


def test_first_and_last():
    rows = [{"s": float(number)} for number in range(10)] + [{"other": 1.0}]
    assert first_and_last(rows, "s") == (2.0, 7.0)
    assert first_and_last(rows[:3], "s") == (1.0, 1.0)
    assert all(math.isnan(mean) for mean in first_and_last([], "s"))


def test_run_path():
    path = run_path(RunOptions(dir="there", cell="c1", seed=7), "sentiment")
    assert path.parts == ("there", "sentiment", "c1", "seed7")
    for wrong in ("", "..", "a/b"):
        with pytest.raises(ConfigError, match="run.cell"):
            run_path(RunOptions(cell=wrong), "sentiment")
    with pytest.raises(ConfigError, match="run.dir=s3://bucket"):
        run_path(RunOptions(dir="s3://bucket"), "sentiment")


def test_the_folder_is_made_and_found_again(tmp_path):
    config = config_in(tmp_path / "new" / "runs")
    folder = make_folder(config, "exp")
    assert folder.root == tmp_path / "new" / "runs" / "exp" / "base" / "seed0"
    assert list(folder.root.iterdir()) == []
    folder.metrics.write_text("mine")
    assert make_folder(config, "exp") == folder and folder.metrics.read_text() == "mine"
    assert make_folder(replace(config, **{"run.cell": "b"}), "exp").root != folder.root


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ("file", "file/below", "x" * 300):
        with pytest.raises(ConfigError, match="run folder .*; set another --run.dir") as raised:
            make_folder(config_in(tmp_path / wrong), "exp")
        assert wrong in str(raised.value)


@pytest.mark.parametrize("method", ["mkdir", "touch"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, method):
    """As on a file system that is only to be read; modes do not bind the superuser."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(StorageError, match="seed0: cannot be made or written .Read-only") as raised:
        make_folder(config_in(tmp_path), "exp")
    assert "--run.dir" in str(raised.value) and raised.value.exit_code == 6


def test_env_and_status(folder):
    write_env(folder, {})
    env = json.loads(folder.env.read_text(), parse_constant=no_constants)
    assert env["jax"] == jax.__version__ and env["device_count"] == jax.device_count()
    assert env["orbax_checkpoint"] and env["process_count"] == 1 and env["argv"]
    git = env["git"]
    assert git is None or (len(git["sha"]) == 40 and isinstance(git["dirty"], bool))
    write_status(folder, "running", 3)
    write_status(folder, "failed", 4, error="one line")
    status = json.loads(folder.status.read_text())
    assert (status["status"], status["step"], status["error"]) == ("failed", 4, "one line")


@pytest.mark.parametrize(
    "sent, known",
    [
        (f"{'a1' * 20}\n", {"sha": "a1" * 20, "dirty": False}),
        (f"{'a1' * 20}+changes\n", {"sha": "a1" * 20, "dirty": True}),
        (None, None),
    ],
)
def test_the_commit_of_code_that_was_sent_without_its_repository(
    sent, known, tmp_path, monkeypatch
):
    if sent is not None:
        (tmp_path / "COMMIT").write_text(sent)
    package = tmp_path / "ppo_jax"
    package.mkdir()
    monkeypatch.setattr("ppo_jax.run_folder.__file__", str(package / "run_folder.py"))
    assert environment()["git"] == known
