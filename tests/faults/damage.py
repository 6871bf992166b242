"""Checkpoints damaged, strange or of another run (F7, F8, F9, F25, F26, F27)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.launch import (
    Ended,
    assert_same,
    digest,
    experiment,
    finish,
    launch,
    of,
    restored_digest,
)
from faults.table import fault
from ppo_jax import manifest
from ppo_jax.run_folder import RunFolder


def rewrite(record: Path, **changes: Any) -> None:
    """Change a checkpoint's record, its own digest with it: as another version might write it, or
    whoever means harm."""
    record.write_text(json.dumps(manifest.sealed(json.loads(record.read_text()) | changes)))


OPTIONS = {"run__iterations": 8, "run__checkpoint_every": 4}


def largest(step: Path) -> Path:
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def named(name: str) -> Callable[[Path], Path]:
    return lambda step: next(step.rglob(name))


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "half of the data": lambda step: cut(largest(step), largest(step).stat().st_size // 2),
    "data of 0 bytes": lambda step: cut(largest(step), 0),
    "data deleted": lambda step: largest(step).unlink(),
    **{
        f"a bit flipped at {tenths} %": lambda step, tenths=tenths: flip(
            largest(step), tenths / 100
        )
        for tenths in (10, 30, 50, 70, 90)
    },
    ".zarray deleted": lambda step: named(".zarray")(step).unlink(),
    "_METADATA deleted": lambda step: named("_METADATA")(step).unlink(),
    "_METADATA = {": lambda step: named("_METADATA")(step).write_text("{") and None,
    "_CHECKPOINT_METADATA deleted": lambda step: named("_CHECKPOINT_METADATA")(step).unlink(),
    "step's folder emptied": empty,
    "record deleted": lambda step: manifest.record_path(step.parent, int(step.name)).unlink(),
    "record of half its length": lambda step: cut(manifest.record_path(step.parent, 8), 400),
    "a bit of the record flipped": lambda s: flip(manifest.record_path(s.parent, 8), 0.5),
}


def stopped_at_8(folder: Path) -> tuple[Path, RunFolder]:
    """A run that has checkpoints of steps 4 and 8."""
    path = experiment(folder, **OPTIONS)
    return path, finish(path, folder / "base")


def copy(folder: Path, name: str, run: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(run.root.parents[2], folder / name)
    return of(path, folder / name)


@fault(
    "F7",
    "the newest checkpoint damaged",
    injected=f"{len(DAMAGE)} kinds: {', '.join(DAMAGE)}",
    expected="named with its file, put aside; the one before it is used, the end is the same; with "
    "--strict_resume code 4",
)
def damaged(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    whole = finish(path, folder / "whole", "--run.iterations", "12")
    for number, (kind, damage) in enumerate(DAMAGE.items()):
        runs = folder / str(number)
        mine = copy(folder, str(number), run, path)
        damage(mine.checkpoints / "8")
        if number < 3:
            refused = launch(path, runs, "--run.iterations", "12", "--strict_resume")
            assert refused.code == 4 and "step 8" in refused.last, f"{kind}: {refused.last}"
        ended = launch(path, runs, "--run.iterations", "12")
        warned = [line for line in ended.err.splitlines() if "put aside as 8.corrupt" in line]
        assert ended.code == 0 and len(warned) == 1, f"{kind}: {ended.code} {ended.err}"
        assert "resumed at iteration 4" in ended.out, f"{kind}: {ended.out}"
        shutil.rmtree(mine.checkpoints / "8.corrupt")
        assert_same(mine, whole)
        shutil.rmtree(runs)
    return f"{len(DAMAGE)} kinds found and named, each went on from step 4"


@fault(
    "F7b",
    "one bit of the newest checkpoint flipped",
    injected="a bit in the middle of its largest file",
    expected="found by its sha256, put aside, the one before it used",
    fast=True,
)
def one_bit(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    flip(largest(run.checkpoints / "8"), 0.5)
    ended = launch(path, folder / "base", "--run.iterations", "12")
    assert ended.code == 0 and "resumed at iteration 4" in ended.out, ended.err
    assert "sha256" in ended.err and "8.corrupt" in ended.err, ended.err
    return next(line for line in ended.err.splitlines() if "sha256" in line)


@fault(
    "F8",
    "all checkpoints damaged",
    injected="a bit flipped in each; then the same start again",
    expected="code 4 with the list, both times; nothing begins anew, nothing is removed",
    fast=True,
)
def all_damaged(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    for step in ("4", "8"):
        flip(largest(run.checkpoints / step), 0.3)
    before = sorted(p.name for p in run.checkpoints.iterdir())
    for _ in range(2):
        ended = launch(path, folder / "base", "--run.iterations", "12")
        assert ended.code == 4 and "step 8" in ended.last and "step 4" in ended.last, ended.err
        assert sorted(p.name for p in run.checkpoints.iterdir()) == before
    return ended.last


@fault(
    "F9",
    "strangers among the checkpoints",
    injected="999/ with junk, abc/, 12/ with a file, notes.txt; then a save at step 12",
    expected="each warned of, none removed or taken for a part of a checkpoint; the run goes on "
    "from its own",
)
def strangers(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    for name in ("999", "abc", "12"):
        (run.checkpoints / name).mkdir()
    for name in ("999/junk", "12/mine", "notes.txt"):
        (run.checkpoints / name).write_text("mine")
    ended = launch(path, folder / "base", "--run.iterations", "12")
    assert ended.code == 0 and "resumed at iteration 8" in ended.out, ended.err
    for name in ("999", "abc", "12", "notes.txt"):
        assert f"{name}: not a checkpoint" in ended.err, ended.err
    assert (run.checkpoints / "abc").is_dir()
    kept = [p for p in run.checkpoints.rglob("*") if p.name in ("junk", "mine", "notes.txt")]
    assert len(kept) == 3 and all(p.read_text() == "mine" for p in kept), kept
    files = manifest.verify(run.checkpoints, 12)["files"]
    assert "mine" not in files, "the record of step 12 counts a stranger's file as its own"
    where = next(p for p in kept if p.name == "mine").relative_to(run.checkpoints)
    return f"4 warnings, resumed at iteration 8; step 12 saved, the file in 12/ is {where}"


def says(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, f"exit code {ended.code}, not {code}: {ended.err[-1500:]}"
    for word in words:
        assert word in ended.last, f"{word!r} is not in {ended.last!r}"


@fault(
    "F25",
    "another configuration on going on",
    injected="learning rate, batch, width, optimiser; another seed in the same folder; an edited "
    "reward",
    expected="the difference; code 4; what is harmless goes on with --allow_config_change",
)
def another_config(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    more = ("--run.iterations", "10")
    for flags in (
        ("--model.shape.embed_dim", "64"),
        ("--rollout.batch_size", "16"),
        ("--optim.adam", "tensorflow"),
    ):
        key = flags[0].removeprefix("--")
        says(launch(path, folder / "base", *more, *flags), 4, f"{key}: ", " -> ", "cannot be gone")
    rate = ("--hparams.learning_rate", "2e-3")
    wanted = "hparams.learning_rate: 0.001 -> 0.002"
    says(launch(path, folder / "base", *more, *rate), 4, wanted, "--allow_config_change")
    ended = launch(path, folder / "base", *more, *rate, "--allow_config_change")
    assert ended.code == 0 and wanted in ended.err, ended.err
    shutil.copytree(run.root, run.root.with_name("seed1"))
    seed = ("--run.seed", "1", *rate)
    says(launch(path, folder / "base", *more, *seed), 4, "run.seed: 0 -> 1")
    source = path.read_text()
    path.write_text(source.replace("REWARD = ascii_share", "REWARD = half_and_half()"))
    more = ("--run.iterations", "12", *rate)
    says(launch(path, folder / "base", *more), 4, "experiment's code", "--allow_config_change")
    assert manifest.latest_step(run.checkpoints) == 10
    return "3 structural and another seed refused, 2 harmless refused, 1 of them let in"


@fault(
    "F26",
    "the data edited between the parts of a run",
    injected="a row more in the prompts",
    expected="code 4, the file named",
)
def edited_data(folder: Path) -> str:
    path, _ = stopped_at_8(folder)
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "more", "boost": 1.0}) + "\n")
    ended = launch(path, folder / "base", "--run.iterations", "10")
    says(ended, 4, "data.path", "is not what it was")
    return ended.last


@fault(
    "F27",
    "a checkpoint of another version's format",
    injected="records of format 0 and 99; a checkpoint without a record, as version 0 wrote",
    expected="code 4, the format named",
)
def other_format(folder: Path) -> str:
    path, run = stopped_at_8(folder)
    record = manifest.record_path(run.checkpoints, 8)
    manifest.record_path(run.checkpoints, 4).unlink()
    shutil.rmtree(run.checkpoints / "4")
    for version in (0, 99):
        rewrite(record, format=version)
        says(launch(path, folder / "base", "--run.iterations", "9"), 4, f"format {version}")
    record.unlink()
    ended = launch(path, folder / "base", "--run.iterations", "9")
    says(ended, 4, "format 0", "step 8")
    return ended.last


@fault(
    "F14",
    "other devices on going on",
    injected="saved on 4 devices, restored on 1, 2 and 8",
    expected="the restored state equal to the bit, score, losses to 1e-5 relative (policy's: and "
    "1e-6, its terms are of size 1 and cancel); the log says not bit for bit",
)
def other_devices(folder: Path) -> str:
    path = experiment(
        folder, run__iterations=6, run__checkpoint_every=3, run__keep=9, rollout__batch_size=16
    )
    run = finish(path, folder / "base", "--run.iterations", "3", devices=4)
    saved = digest(run, 3)
    whole, seen = finish(path, folder / "whole", devices=4), []
    from faults.launch import exact

    for devices in (1, 2, 8):
        runs = folder / str(devices)
        mine = copy(folder, str(devices), run, path)
        ended = launch(path, runs, devices=devices)
        assert ended.code == 0 and f"count 4 -> {devices}" in ended.err, ended.err
        assert "not bit for bit" in ended.err
        assert restored_digest(run, 3, folder / f"again-{devices}", devices) == saved
        for left, right in zip(exact(mine), exact(whole), strict=True):
            for name in ("objective/scores", "loss/policy_avg", "loss/value_avg"):
                a, b = (float.fromhex(row[name]) for row in (left, right))
                floor = 1e-6 if name == "loss/policy_avg" else 0.0
                assert abs(a - b) <= floor + 1e-5 * abs(b), f"{devices}: {name} {a} {b}"
        seen.append(str(devices))
    return f"on {', '.join(seen)} devices: state equal, losses within 1e-5 relative"
