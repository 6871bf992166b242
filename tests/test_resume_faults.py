"""Which checkpoint a run goes on from where some are damaged, lost, half made or another's."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ppo_jax import manifest
from ppo_jax.config import Config, replace
from ppo_jax.errors import PPOJaxError
from ppo_jax.removal import ASIDE
from ppo_jax.resume import strangers
from test_resume import FACTS, facts_of, flip, make_step, make_steps, refused, start, tree


@pytest.fixture
def path(tmp_path):
    return make_steps(tmp_path / "checkpoints", 3, 6)


def record(path, step=6):
    return manifest.record_path(path, step)


def cut_record(path):
    text = record(path).read_text()
    record(path).write_text(text[: len(text) // 2])
    return record(path)


def lose_record(path):
    record(path).unlink()
    return record(path)


def lose_folder(path):
    shutil.rmtree(path / "6")
    return path / "6" / "state" / "_METADATA"


def empty_folder(path):
    lose_folder(path)
    (path / "6").mkdir()
    return path / "6" / "state" / "_METADATA"


def lose_a_file(path):
    (path / "6" / "state" / "data").unlink()
    return path / "6" / "state" / "data"


def halve_a_file(path):
    os.truncate(path / "6" / "state" / "data", 20)
    return path / "6" / "state" / "data"


def flip_a_bit(path):
    return flip(path, 6)


def flip_the_format(path):
    text = record(path).read_text()
    assert '"format": 1,' in text
    record(path).write_text(text.replace('"format": 1,', '"format": 3,'))
    return record(path)


def add_a_file(path):
    (path / "6" / "notes.txt").touch()
    return path / "6" / "notes.txt"


DAMAGES = [cut_record, lose_record, lose_folder, empty_folder, lose_a_file, halve_a_file]
DAMAGES += [flip_a_bit, flip_the_format, add_a_file]
EACH = pytest.mark.parametrize("damage", DAMAGES)


@EACH
def test_the_last_good_one_goes_on(path, damage):
    sound = tree(path)
    named = damage(path)
    left = [name for name in ("6", "6.json") if (path / name).exists()]
    step, said = start(path)
    assert step == 3 and len(said) == 1
    for word in ("step 6: ", str(named), "put aside as 6.corrupt", "going on from step 3"):
        assert word in said[0]
    assert sorted(p.name for p in (path / "6.corrupt").iterdir()) == left
    now = tree(path)
    for name, content in sound.items():
        assert name.startswith("6") or now.pop(name) == content
    assert all(name.startswith("6.corrupt") for name in now)
    assert start(path) == start(path, strict_resume=True) == (3, [])  # and no word of it again


@EACH
def test_strict_resume(path, damage):
    named = damage(path)
    message = refused(path, strict_resume=True)
    assert "step 6: " in message and str(named) in message and "--strict_resume" in message


@EACH
def test_all_bad(path, damage):
    named, other = damage(path), flip(path, 3)
    message = refused(path)  # which also sees that nothing has been moved
    for word in (str(path), f"step 6: {named}", f"step 3: {other}", "none is replaced by a new"):
        assert word in message
    assert refused(path) == message
    assert refused(path, allow_config_change=True) == message


@EACH
def test_the_only_one_bad(path, damage):
    """Above all: no new start, as if there had never been a checkpoint."""
    shutil.rmtree(path / "3")
    record(path, 3).unlink()
    named = damage(path)
    message = refused(path)
    assert f"step 6: {named}" in message and refused(path) == message


def other_format(path):
    content = {**json.loads(record(path).read_text()), "format": 2}
    record(path).write_text(json.dumps(manifest.sealed(content)))
    return record(path)


def unknown_key(path):
    """Sound, but of a version that had another option."""
    config = {**FACTS["config"], "nonsense": {}}
    manifest.write_record(path, 6, {**FACTS, "config": config})
    return record(path)


@pytest.mark.parametrize("switch", [None, "strict_resume", "allow_config_change"])
@pytest.mark.parametrize("act", [other_format, unknown_key])
def test_another_versions_checkpoint_is_no_damage(path, act, switch):
    """It is neither put aside nor passed by for an older one, nor is what is damaged above it."""
    switches = {} if switch is None else {switch: True}
    named = act(path)
    message = refused(path, **switches)  # which also sees that nothing has been moved
    assert message.startswith(f"{named}: ") and ("format 2" in message or "nonsense" in message)
    flip(make_steps(path, 9), 9)
    if switch != "strict_resume":
        assert refused(path, **switches) == message


def test_several_bad_ones_go_aside_together(path):
    for step in (9, 12):
        flip(make_steps(path, step), step)
    cut_record(path)
    step, said = start(path)
    assert step == 3 and [line.split(":")[0] for line in said] == ["step 12", "step 9", "step 6"]
    assert sorted(p.name for p in path.iterdir()) == sorted(
        ["3", "3.json", "6.corrupt", "9.corrupt", "12.corrupt"]
    )


def test_older_damage_is_not_looked_for(path):
    flip(path, 3)
    assert start(path, strict_resume=True) == (6, [])


def test_the_same_step_may_go_bad_again(path):
    for number in ("", "-2", "-3"):
        flip(path, 6)
        step, said = start(path)
        assert step == 3 and f"put aside as 6.corrupt{number}, " in said[0]
        make_step(path, 6)
    assert start(path) == (6, [])


def test_damaged_and_changed(path):
    """Of the sound one below it, the run is another one: nothing is moved for that."""
    cut_record(path)
    message = refused(path, facts_of(replace(Config(), **{"hparams.lam": 0.5})))
    assert "step 3 was made with another configuration: hparams.lam: 0.95 -> 0.5" in message


@pytest.mark.parametrize("name", [f"6{ASIDE}", f"12{ASIDE}-2"])
def test_only_those_put_aside_are_left(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    message = refused(tmp_path)
    assert name in message and "no checkpoint is left but damaged ones" in message
    assert refused(tmp_path, allow_config_change=True) == message


def add_strangers(path):
    (path / "999").mkdir(parents=True)
    (path / "999" / "junk").write_text("junk")
    (path / "abc").mkdir()
    (path / "4").mkdir()
    (path / "notes.txt").write_text("mine")
    (path / "5").write_text("a file")
    return ["4", "5", "999", "abc", "notes.txt"]


def test_strangers_are_left_alone(path, tmp_path):
    names, before = add_strangers(path), tree(path)
    expected = [f"{path / name}: not a checkpoint of this run, left alone" for name in names]
    assert strangers(path) == names
    assert start(path) == start(path, strict_resume=True) == (6, expected)
    assert tree(path) == before
    assert len(start(path / "nowhere")[1]) == 0
    names = add_strangers(tmp_path / "other")
    step, said = start(tmp_path / "other")  # no checkpoint among them: a new run
    assert step is None and [line.split(": not")[0] for line in said] == [
        str(tmp_path / "other" / name) for name in names
    ]


def test_a_record_of_junk_is_no_checkpoint(path):
    (path / "999.json").write_text("{}")
    step, said = start(path)
    assert step == 6 and "999.json: not a checkpoint's record" in said[0]
    assert (path / "999.corrupt" / "999.json").exists() and start(path) == (6, [])


@pytest.mark.parametrize("name", ["007.json", "٧.json"])
def test_a_name_that_save_would_not_give_is_a_stranger(path, name):
    (path / name).touch()
    assert manifest.steps(path) == [3, 6]
    assert start(path) == (6, [f"{path / name}: not a checkpoint of this run, left alone"])


def test_unfinished_ones_are_no_strangers(path):
    """Another process than the writer may see the checkpoint that the writer is removing."""
    make_step(path, 9)
    record(path, 9).unlink()
    (path / "9.unfinished").touch()
    assert start(path)[0] == 6 and strangers(path) == []


def test_no_more_is_said_than_is_so(path):
    flip(path, 6)
    step, said = start(path, facts_of(code="c1"))
    assert step == 3 and not any("step 6 is restored" in line for line in said)


def test_a_checkpoint_without_facts(path):
    manifest.write_record(path, 6, {"goodness": None})  # as open_saver's default has it
    manifest.write_record(path, 3, {"goodness": None})
    assert "6.json" in refused(path)


def test_a_folder_that_cannot_be_written(path, monkeypatch):
    flip(path, 6)

    def rename(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PPOJaxError, match="Permission denied"):
        start(path)


def test_other_processes_move_nothing(path, monkeypatch):
    monkeypatch.setattr("ppo_jax.processes.index", lambda: 1)
    flip(path, 6)
    before = tree(path)
    assert start(path)[0] == 3
    assert tree(path) == before
