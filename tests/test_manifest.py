"""The records of checkpoints: whatever happens to a file afterwards is found, and named."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import manifest
from ppo_jax.checkpoint import open_saver, save
from ppo_jax.errors import CheckpointError, StorageError

STEP, FACTS = 7, {"config": {"a": [1, 2.5, None, "ä"]}, "data": "12"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint that Orbax has written, with one file of data that is larger than the rest."""
    path = tmp_path_factory.mktemp("sound")
    state = {"params": {"w": jnp.asarray(np.random.default_rng(0).random(5000))}, "n": jnp.int32(1)}
    with open_saver(path, keep=2, facts=FACTS) as saver:
        save(saver, STEP, state)
    return path


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "checkpoints")


def largest(folder):
    files = (folder / str(STEP) / "state").glob("*/[0-9]*")
    return max(files, key=lambda path: path.stat().st_size)


def record_of(folder):
    return json.loads(manifest.record_path(folder, STEP).read_text())


def caught(folder, step=STEP, act=manifest.verify, kind=CheckpointError):
    with pytest.raises(CheckpointError) as raised:
        act(folder, step)
    message = str(raised.value)
    assert "\n" not in message and raised.value.exit_code == 4 and type(raised.value) is kind
    return message


def test_a_sound_checkpoint(folder):
    record = manifest.verify(folder, STEP)
    assert record == manifest.read_record(folder, STEP)
    assert record["facts"] == {**FACTS, "goodness": None}
    assert (record["format"], record["step"]) == (manifest.FORMAT, STEP) == (1, 7)
    root = folder / str(STEP)
    on_disk = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert record["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in on_disk.items()
    }
    assert "state/_METADATA" in on_disk and len(on_disk) > 5


def test_steps_are_those_with_a_record(tmp_path):
    assert manifest.steps(tmp_path / "nowhere") == []
    assert manifest.latest_step(tmp_path / "nowhere") is None
    for name in (
        "10.json",
        "9.json",
        "x.json",
        "-1.json",
        "9.json.tmp",
        ".8.json.12.tmp",
        "1.5.json",
    ):
        (tmp_path / name).touch()
    (tmp_path / "11").mkdir()
    assert manifest.steps(tmp_path) == [9, 10] and manifest.latest_step(tmp_path) == 10


def flip_at(share):
    def flip(folder):
        path = largest(folder)
        content = bytearray(path.read_bytes())
        content[int(len(content) * share)] ^= 1 << int(10 * share) % 8
        path.write_bytes(content)
        return path, "its sha256 is not the one that was written"

    return flip


def cut_to(share):
    def cut(folder):
        path = largest(folder)
        size = path.stat().st_size
        os.truncate(path, int(size * share))
        return path, f"has {int(size * share)} bytes, {size} were written"

    return cut


def delete(name=None):
    def act(folder):
        path = largest(folder) if name is None else folder / str(STEP) / name
        if not path.exists():
            pytest.skip("Orbax writes none")
        path.unlink()
        return path, "is gone"

    return act


def garble_metadata(folder):
    path = folder / str(STEP) / "state" / "_METADATA"
    path.write_text("{")
    return path, "has 1 bytes"


def add(name, make=Path.touch):
    def act(folder):
        path = folder / str(STEP) / name
        make(path)
        return path, "does not belong to the checkpoint"

    return act


def link(to):
    """To the very content, outside of the checkpoint, or to nothing."""

    def act(folder):
        path = largest(folder)
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / to)
        return path, "cannot be read (is a link)"

    return act


def link_a_folder(folder):
    path = folder / str(STEP) / "state"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    return path, "does not belong to the checkpoint"


def a_folder_for_a_file(folder):
    path = largest(folder)
    path.unlink()
    path.mkdir()
    return path, "is gone"


def empty(then=lambda path: None):
    def act(folder):
        shutil.rmtree(folder / str(STEP))
        then(folder / str(STEP))
        return folder / str(STEP) / "state" / "_CHECKPOINT_METADATA", "is gone"

    return act


MUTATIONS = {
    **{f"flip at {10 * tenth} %": flip_at(tenth / 10) for tenth in (1, 3, 5, 7, 9)},
    "half": cut_to(0.5),
    "zero": cut_to(0.0),
    "largest deleted": delete(),
    **{
        f"{name} deleted": delete(f"state/{name}")
        for name in ("n/.zarray", "_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt")
    },
    "_METADATA garbled": garble_metadata,
    "extra file": add("state/extra"),
    "extra file on top": add("notes.txt"),
    "link to the content": link("elsewhere"),
    "link to nothing": link("nowhere"),
    "folder linked": link_a_folder,
    "extra link": add("state/zzz", lambda path: path.symlink_to("/etc/passwd")),
    "folder for a file": a_folder_for_a_file,
    "folder gone": empty(),
    "emptied": empty(Path.mkdir),
    "file for the folder": empty(Path.touch),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_damage_is_caught_and_named(folder, mutation):
    path, why = mutation(folder)
    message = caught(folder)
    assert message.startswith(f"{path}: ") and why in message
    manifest.read_record(folder, STEP)  # the record itself is sound


def test_every_bit_of_a_small_file_counts(folder):
    path = folder / str(STEP) / "state" / "n" / ".zarray"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        assert str(path) in caught(folder)
    path.write_bytes(content)
    manifest.verify(folder, STEP)


def edited(**changes):
    """The record with other content, its own sha256 as it was."""
    return lambda text: json.dumps({**json.loads(text), **changes})


def sealed(**changes):
    """The record with other content and the sha256 that belongs to it."""

    return lambda text: json.dumps(manifest.sealed({**json.loads(text), **changes}))


ALTERED = "its content is not what was written"
NO_RECORD = "not a checkpoint's record"
VERSIONS = (0, 2, 99, "1", None)
RECORDS = {
    "truncated": (lambda text: text[: len(text) // 2], NO_RECORD),
    "empty": (lambda text: "", NO_RECORD),
    "zeros": (lambda text: "\0" * len(text), NO_RECORD),
    "a list": (lambda text: "[]", NO_RECORD),
    "a number": (lambda text: "3", NO_RECORD),
    "null": (lambda text: "null", NO_RECORD),
    "an empty object": (lambda text: "{}", NO_RECORD),
    "without a format": (lambda text: '{"sha256": "0"}', NO_RECORD),
    "edited": (lambda text: text.replace('"12"', '"13"'), ALTERED),
    "without its files": (edited(files={}), ALTERED),
    "of another step": (edited(step=8), ALTERED),
    "of another step, sealed": (sealed(step=8), ALTERED),
    "of another seal": (edited(sha256="0" * 64), ALTERED),
    "of another kind of seal": (edited(sha256=None), ALTERED),
    **{f"format {v!r}": (edited(format=v), ALTERED) for v in VERSIONS},
}
FORMATS = {f"format {v!r}": (sealed(format=v), f"{v!r}; this version reads 1") for v in VERSIONS}


CASES = [(CheckpointError, *case) for case in RECORDS.values()]
CASES += [(manifest.OtherFormat, *case) for case in FORMATS.values()]


@pytest.mark.parametrize("kind, change, why", CASES, ids=[*RECORDS, *FORMATS])
def test_a_record_that_is_not_what_was_written(folder, kind, change, why):
    """Another format is one only where the seal agrees; else it is damage, that a run goes past."""
    path = manifest.record_path(folder, STEP)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    for act in (manifest.read_record, manifest.verify):
        message = caught(folder, act=act, kind=kind)
        assert message.startswith(f"{path}: ") and why in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "[" * 100_000], ids="nipd")
def test_a_record_with_what_json_cannot_hold(folder, number):
    path = manifest.record_path(folder, STEP)
    path.write_text(path.read_text().replace('"goodness": null', f'"goodness": {number}'))
    assert str(path) in caught(folder)


def test_every_byte_of_a_record_counts(folder):
    path = manifest.record_path(folder, STEP)
    content = path.read_bytes()
    for position in range(0, len(content) - 1, 3):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 2]) + content[position + 1 :]
        )
        try:
            record = manifest.read_record(folder, STEP)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:  # white space for other white space
            assert record == {k: v for k, v in json.loads(content).items() if k != "sha256"}


def test_a_record_that_is_not_there(folder):
    path = manifest.record_path(folder, STEP)
    path.unlink()
    assert caught(folder) == f"{path}: is gone, or of a version that wrote none (format 0)"
    path.mkdir()  # or cannot be read
    assert caught(folder).startswith(f"{path}: not a checkpoint's record (Is a directory)")


def test_a_step_that_cannot_be_read_back_gets_no_record(tmp_path):
    (tmp_path / "3" / "state").mkdir(parents=True)
    (tmp_path / "3" / "state" / "data").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match=r"3/state/data: cannot be read back \(is a link\)"):
        manifest.write_record(tmp_path, 3, {})
    assert manifest.steps(tmp_path) == []
