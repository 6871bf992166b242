"""TensorBoard's files against the run's own logs: read back by hand, after a crash and without."""

import functools
import importlib.util
import json
import math
import struct
from pathlib import Path

import pytest

from ppo_jax.config import Config, RunOptions, replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.metrics import open_metrics, read_metrics, read_samples
from ppo_jax.run_folder import RunFolder, reconcile, run_folder
from ppo_jax.trackers import TensorBoard, Tolerant, open_tensorboard, open_trackers, samples_text
from ppo_jax.train import train
from ppo_jax.validate import check_config
from tiny_runs import CONFIG, ascii_share, write_prompts

ON, OFF = RunOptions(tensorboard=True), RunOptions()
NASTY = "<img src=x>\n\n![x](http://e/x.png)\u2028\x1b[31m`*\t日"


def crc32c(data: bytes) -> int:
    """Castagnoli, bit by bit: reversed polynomial 0x82f63b78."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> list[bytes]:
    """TFRecord: length, its checksum, data, its checksum."""
    raw, found, at = path.read_bytes(), [], 0
    while at < len(raw):
        (size,), (check,) = struct.unpack_from("<Q", raw, at), struct.unpack_from("<I", raw, at + 8)
        data = raw[at + 12 : at + 12 + size]
        assert check == masked(raw[at : at + 8])
        assert struct.unpack_from("<I", raw, at + 12 + size) == (masked(data),)
        found.append(data)
        at += 16 + size
    return found


def fields(data: bytes) -> list[tuple[int, object]]:
    """(number, value) of each field of a protocol buffer: an integer, or bytes."""
    found, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        number, wire = divmod(varint(), 8)
        size = {0: 0, 1: 8, 5: 4}.get(wire)
        value = varint() if wire in (0, 2) else None
        size = value if wire == 2 else size
        if wire != 0:
            value, at = data[at : at + size], at + size
        found.append((number, value))
    return found


def events(folder: RunFolder):
    """([(step, wall time, {tag: float})], [(step, tag, text)]) of the only event file."""
    (path,) = (folder.root / "tensorboard").iterdir()
    first, *rest = records(path)
    assert (3, b"brain.Event:2") in fields(first)
    numbers, texts = [], []
    for record in rest:
        event = dict(fields(record))
        (wall,), step = struct.unpack("<d", event[1]), event.get(2, 0)
        values = [dict(fields(value)) for _, value in fields(event[5])]
        if 8 in values[0]:  # a tensor, of which field 8 are strings
            texts.append((step, values[0][1].decode(), dict(fields(values[0][8]))[8].decode()))
        else:
            found = {v[1].decode(): struct.unpack("<f", v[2])[0] for v in values}
            numbers.append((step, wall, found))
    return numbers, texts


def assert_as_logged(folder: RunFolder) -> None:
    numbers, texts = events(folder)
    rows = read_metrics(folder.metrics)
    assert [step for step, *_ in numbers] == [row["step"] for row in rows]
    for (_, _, found), row in zip(numbers, rows, strict=True):
        logged = {name: value for name, value in row.items() if name != "step"}
        assert found.keys() == logged.keys()
        for name, value in logged.items():
            assert found[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    walls = [wall for _, wall, _ in numbers]
    assert walls == sorted(walls)
    samples = read_samples(folder.samples)
    steps = list(dict.fromkeys(row["step"] for row in samples))
    assert texts == [
        (step, "samples/text_summary", samples_text([r for r in samples if r["step"] == step]))
        for step in steps
    ]


class Killed(BaseException):
    pass


def launch(folder: Path, data: str) -> RunFolder:
    options = {"run.dir": str(folder), "data.path": data, "run.tensorboard": True}
    config = replace(CONFIG, **options)
    train(config, Experiment("case", config, ascii_share, Path("case.py"), ""))
    return run_folder(folder / "case" / "base" / "seed0")


def test_a_killed_and_resumed_run_shows_each_step_once(tmp_path, monkeypatch):
    """Killed at iteration 5, after the checkpoint of 3: iterations 3 and 4 are run twice."""
    data = write_prompts(tmp_path)
    write, closed = TensorBoard.write, TensorBoard.close

    def killed(board, step, metrics, clock=None):
        write(board, step, metrics, clock)
        if step == 4:
            monkeypatch.setattr(TensorBoard, "close", lambda board: None)  # as a killed one does
            raise Killed

    monkeypatch.setattr(TensorBoard, "write", killed)
    with pytest.raises(Killed):
        launch(tmp_path, data)
    monkeypatch.setattr(TensorBoard, "write", write)
    monkeypatch.setattr(TensorBoard, "close", closed)
    folder = run_folder(tmp_path / "case" / "base" / "seed0")
    assert [row["step"] for row in read_metrics(folder.metrics)] == [0, 1, 2, 3, 4]
    resumed = launch(tmp_path, data)
    assert_as_logged(resumed)
    assert len(events(resumed)[0]) == 6


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


def sample(step: int, text: str = "r") -> dict:
    return {"prompt": f"p{step}", "response": text, "score": 0.5, "tokens": 1, "ended": True}


def test_odd_numbers_and_texts(folder):
    row = {"a": 1, "nan": math.nan, "inf": -math.inf, "time/iteration": 2.5, "0/é": 1e-30}
    with open_trackers(ON, folder) as trackers, open_metrics(folder, trackers) as log:
        log.write(0, row)
        log.write_samples(0, [sample(0, NASTY), sample(1) | {"prompt": [{"role": NASTY}]}])
        log.write_samples(0, [])
        log.write(1, row)
        log.sync()
        assert_as_logged(folder)  # on the disk, before it is closed
    assert_as_logged(folder)
    ((_, _, text),) = events(folder)[1]
    lines = text.split("\n")
    assert len(lines) == len(text.splitlines()) == 2
    assert all(line.startswith("    0.5  ") and line.isprintable() for line in lines)
    assert "<img src=x>\\n\\n![x](http://e/x.png)\\u2028\\x1b[31m`*\\t日" in lines[0]


def test_what_was_there_is_written_anew(folder):
    for upto in (5, 3, 6):  # a crash after iteration 4, a checkpoint of 3
        reconcile(folder, min(upto, 3))
        with open_trackers(ON, folder) as trackers, open_metrics(folder, trackers) as log:
            for step in range(len(read_metrics(folder.metrics)), upto):
                log.write(step, {"x": step, "time/iteration": 10.0})
                log.write_samples(step, [sample(step)] * 2)
        assert_as_logged(folder)
    (folder.root / "tensorboard" / "mine.txt").write_text("kept")
    open_tensorboard(folder).close()
    names = [path.name for path in (folder.root / "tensorboard").iterdir()]
    assert len(names) == 2 and "mine.txt" in names
    (folder.root / "tensorboard" / "mine.txt").unlink()
    walls = [wall for _, wall, _ in events(folder)[0]]
    assert [b - a for a, b in zip(walls, walls[1:], strict=False)] == pytest.approx([10.0] * 5)


class Broken:
    """A tracker whose disk is full from some call on."""

    def __init__(self, good: int):
        self.left = good

    def write(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left\non device")

    write_samples = sync = close = write


def broken(good: int):
    raise ImportError("broken package")


@pytest.mark.parametrize("make", [functools.partial(Broken, 1), functools.partial(broken, 1)])
def test_a_tracker_that_fails_is_said_once(make, folder, capsys):
    tracker = Tolerant(make, "runs/a/tensorboard")
    with open_metrics(folder, [tracker]) as log:
        for step in range(3):
            log.write(step, {"a": step})
            log.write_samples(step, [sample(step)])
        log.sync()
    tracker.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "runs/a/tensorboard: " in said[0]
    assert "the run goes on without it" in said[0] and "Error: " in said[0]
    assert len(read_metrics(folder.metrics)) == len(read_samples(folder.samples)) == 3


def test_only_where_it_is_asked_for_and_in_the_process_that_writes(folder, monkeypatch):
    with open_trackers(OFF, folder) as trackers:
        assert trackers == []
    monkeypatch.setattr("ppo_jax.trackers.is_writer", lambda: False)
    with open_trackers(ON, folder) as trackers:
        assert trackers == []
    assert not (folder.root / "tensorboard").exists()


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    config = replace(Config(), **{"run.tensorboard": True})
    check_config(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    says = r"^run.tensorboard=True: needs tensorboardX: .*pip install tensorboardX "
    with pytest.raises(ConfigError, match=says):
        check_config(config)
    check_config(Config())


def test_the_step_of_each_line_is_a_number_of_json(folder):
    """What is replayed is what `metrics.jsonl` says, whoever wrote it."""
    folder.metrics.write_text(json.dumps({"step": 7, "a": 2.0, "b": "nan"}) + "\n")
    board = open_tensorboard(folder)
    board.close()
    ((step, _, found),) = events(folder)[0]
    assert step == 7 and found["a"] == 2.0 and math.isnan(found["b"])
