"""Checkpoints that go: removed for newer ones, or after a save that failed; put where no run reads
them, as they are damaged or a stranger's."""

import errno
import time
from pathlib import Path

from ppo_jax import faults, manifest, storage
from ppo_jax.errors import StorageError
from ppo_jax.text import one_line

ASIDE = ".corrupt"  # ends the name of a folder that holds a checkpoint no run reads
LATE = (0.05, 0.2, 1.0)  # seconds that writers of a failed save, which nobody can stop, are given


def remove(path: Path, step: int) -> None:
    """Remove a step; a process that dies meanwhile leaves what the next one removes."""
    manifest.marker_path(path, step).touch()
    manifest.record_path(path, step).unlink(missing_ok=True)
    faults.point("gc")
    _remove_marked(path, step)


def finish_removals(path: Path) -> None:
    """Complete what a process that died, or a save that failed, has left half done."""
    for half in path.glob(".*.json.*.tmp"):
        half.unlink()
    for marker in path.glob("*.unfinished"):
        step = manifest.step_of(marker)
        if step is None:
            continue
        if manifest.record_path(path, step).exists():  # it was about to say that all is done
            marker.unlink()
        else:
            _remove_marked(path, step)


def _remove_marked(path: Path, step: int) -> None:
    folder = path / str(step)
    for pause in (*LATE, None):
        try:
            if folder.is_dir():
                storage.remove_tree(folder)
            break
        except OSError as error:  # something came, or went, meanwhile
            if pause is None or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            time.sleep(pause)
    manifest.marker_path(path, step).unlink(missing_ok=True)


def put_aside(path: Path, step: int) -> Path:
    """Put a step where no run reads it; returns its new folder."""
    aside, number = path / f"{step}{ASIDE}", 1
    while aside.exists():
        number += 1
        aside = path / f"{step}{ASIDE}-{number}"
    try:
        aside.mkdir()
        for part in (path / str(step), manifest.record_path(path, step)):
            if part.exists():
                part.rename(aside / part.name)
    except OSError as error:
        raise StorageError(f"{aside}: cannot be made ({one_line(error)})") from None
    return aside
