"""The record beside a checkpoint: which files it has and their sha256, and what it was made by.

    checkpoints/<step>/             written by Orbax, whole or not at all
    checkpoints/<step>.json         the record; a step without one does not count
    checkpoints/<step>.unfinished   while the two are being made or removed

Orbax keeps no checksums of array data: a flipped bit would be restored without a word.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_jax import storage
from ppo_jax.errors import CheckpointError, StorageError
from ppo_jax.text import one_line

FORMAT = 1  # of the record and of what it stands for; counts up when older ones need care
BLOCK = 1 << 20
ITEM = "state"  # folder of the state within a step's


class OtherFormat(CheckpointError):
    """A record that another version wrote, which is no damage."""


def record_path(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"


def marker_path(folder: Path, step: int) -> Path:
    return folder / f"{step}.unfinished"


def steps(path: Path) -> list[int]:
    """The steps that have a record, ascending."""
    found = map(step_of, path.glob("*.json")) if path.is_dir() else ()
    return sorted(step for step in found if step is not None)


def step_of(path: Path) -> int | None:
    """The step that a file's name stands for; None for a name that no step has, as `007.json`."""
    stem = path.stem
    return int(stem) if stem.isdecimal() and str(int(stem)) == stem else None


def latest_step(path: Path) -> int | None:
    """The newest step saved, None where there is none."""
    return max(steps(path), default=None)


def best_step(path: Path) -> int | None:
    """The step that was best, by the measure that was used last; None where none was measured."""
    measured = {}
    for step in steps(path):
        with contextlib.suppress(CheckpointError):  # a damaged record is no best one
            match read_record(path, step)["facts"].get("goodness"):
                case [name, number]:
                    measured[step] = name, number
    last = measured[max(measured)][0] if measured else None
    goodness = {step: number for step, (name, number) in measured.items() if name == last}
    return max(goodness, key=goodness.__getitem__, default=None)


def write_record(folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Hash the files of a step that is whole, and write its record. Raises StorageError."""
    try:
        names = storage.files(folder / str(step))
        files = {name: _seen(folder / str(step) / name) for name in names}
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be read back ({error.strerror})") from None
    content = {
        "format": FORMAT,
        "step": step,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "facts": dict(facts),
        "files": files,
    }
    text = json.dumps(sealed(content), indent=1, allow_nan=False) + "\n"
    storage.write_atomic(record_path(folder, step), text)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the sha256 that belongs to its content."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    return {**content, "sha256": _digest(content)}


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """A step's record. Raises CheckpointError if it is not what `write_record` wrote."""
    path = record_path(folder, step)
    if not path.exists():
        raise CheckpointError(f"{path}: is gone, or of a version that wrote none (format 0)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        said = content.pop("sha256")
        version = content["format"]
        digest = _digest(content)
    except StorageError:  # the storage cannot be reached, which is no damage
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's record ({_why(error)})") from None
    altered = f"{path}: its content is not what was written"
    if said != digest:  # first, and alike in every format: a flipped digit makes no other format
        raise CheckpointError(altered)
    if version != FORMAT:
        raise OtherFormat(f"{path}: format {version!r}; this version reads {FORMAT}")
    if content.get("step") != step:
        raise CheckpointError(altered)
    return content


def verify(folder: Path, step: int) -> dict[str, Any]:
    """The record of a step whose files are all as they were written.

    Raises CheckpointError naming the first file that is not.
    """
    record, root = read_record(folder, step), folder / str(step)
    written, there = record["files"], set(storage.files(root)) if root.is_dir() else set()
    for name in sorted(written.keys() | there):
        if name not in there:
            raise CheckpointError(f"{root / name}: is gone")
        if name not in written:
            raise CheckpointError(f"{root / name}: does not belong to the checkpoint")
        try:
            seen = _seen(root / name)
        except StorageError:
            raise
        except OSError as error:
            raise CheckpointError(f"{root / name}: cannot be read ({error.strerror})") from None
        if seen["bytes"] != written[name]["bytes"]:
            raise CheckpointError(
                f"{root / name}: has {seen['bytes']} bytes, {written[name]['bytes']} were written"
            )
        if seen != written[name]:
            raise CheckpointError(f"{root / name}: its sha256 is not the one that was written")
    return record


def _seen(path: Path) -> dict[str, Any]:
    if path.is_symlink():  # what a checkpoint reads lies within it
        raise OSError(0, "is a link", str(path))
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
