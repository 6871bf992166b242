"""Where runs lie: a folder of this machine, or gs://bucket/folder (`gcs`). What differs between the
two stands here, what does not is done with the methods that both kinds of path have."""

import atexit
import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.text import install_hint

if TYPE_CHECKING:
    from ppo_jax.gcs import GcsPath

CACHE = "~/.cache/ppo_jax"


def as_path(name: str | Path, key: str = "path") -> Path:
    """The path of a local name, or of gs://bucket/folder (a `gcs.GcsPath`, which does what a Path
    does); a path stays what it is. ConfigError, naming `key`, for what is neither."""
    text = os.fspath(name)
    if "://" not in text:
        return Path(name)
    scheme, _, rest = text.partition("://")
    if scheme != "gs" or not rest.strip("/"):
        raise ConfigError(f"{key}={text}: must be a local folder or gs://bucket/folder")
    if importlib.util.find_spec("gcsfs") is None:
        hint = install_hint("gcsfs", "gcs")
        raise ConfigError(f"{key}={text}: needs the package gcsfs: {hint}")
    from ppo_jax.gcs import GcsPath

    return cast(Path, GcsPath(f"/{rest}"))


def on_gcs(path: "Path | GcsPath") -> "TypeGuard[GcsPath]":
    return not isinstance(path, Path)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's content so that a reader, or a crash, sees the old or the new, never half.

    Raises StorageError naming the path.
    """
    path = as_path(path)
    if on_gcs(path):
        return path.write_text(text)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def files(folder: Path) -> list[str]:
    """Relative names of the files below a folder; links are listed, and not followed."""
    if on_gcs(folder):
        return folder.files()
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def remove_tree(folder: Path) -> None:
    if on_gcs(folder):
        folder.rmtree()
    else:
        shutil.rmtree(folder)


@contextlib.contextmanager
def uploading(folder: "GcsPath", last: str) -> Iterator[Path]:
    """Gives a local folder, whose files lie below `folder` at the end; the one named `last` comes
    last, so that where it is there, all are."""
    with tempfile.TemporaryDirectory(prefix="ppo_jax-") as local:
        yield Path(local)
        for name in sorted(files(Path(local)), key=lambda name: name == last):
            (folder / name).upload(Path(local, name))


def downloaded(folder: Path) -> Path:
    """The folder itself, or a copy of its files on this machine, there until the process ends."""
    if not on_gcs(folder):
        return folder
    local = Path(tempfile.mkdtemp(prefix="ppo_jax-"))
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    for name in folder.files():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).download(local / name)
    return local


def staged(folder: Path) -> Path:
    """Where the files of a run folder lie that are locked or added to, as no object can be: the
    folder itself, or one of this machine that stands for it. Raises StorageError."""
    if not on_gcs(folder):
        return folder
    cache = Path(os.environ.get("PPO_JAX_CACHE") or CACHE).expanduser()
    local = cache.joinpath("gs", *folder.parts[1:])
    try:
        local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{local}: cannot be made ({error.strerror})") from None
    return local


def to_append(path: Path) -> Path:
    """The file to open for adding to a log: `path`, or a copy of the object as it stands now, which
    `publish` uploads."""
    local = staged(path.parent) / path.name
    if on_gcs(path):
        _fetch(path, local)
    return local


@contextlib.contextmanager
def appended(path: Path) -> Iterator[Path]:
    """Gives the file to open for adding to one log, of a command that is not the folder's run; as
    an object it is uploaded at the end, come what may."""
    if not on_gcs(path):
        yield path
        return
    # Not among the copies of the run, which may be under way on this machine.
    local = staged(cast(Path, path.parent / path.stem)) / path.name
    _fetch(path, local)
    with _in_the_end(lambda: _upload(local, path)):
        yield local


def _fetch(path: "GcsPath", local: Path) -> None:
    local.unlink(missing_ok=True)
    if path.is_file():
        path.download(local)


def publish(folder: Path) -> None:
    """Upload the logs of a run folder that have grown. Raises StorageError.

    An object is replaced as a whole, so a reader sees the old log or the new one.
    """
    for local in _copies(folder):
        _upload(local, cast("GcsPath", folder / local.name))


def _upload(local: Path, target: "GcsPath") -> None:
    if local.is_file() and target.size() != local.stat().st_size:
        target.upload(local)


@contextlib.contextmanager
def published(folder: Path) -> Iterator[None]:
    """The logs of a run folder are uploaded at the end, come what may."""
    for left in _copies(folder):  # by a process that was killed, and perhaps older than the objects
        left.unlink()
    with _in_the_end(lambda: publish(folder)):
        yield


@contextlib.contextmanager
def _in_the_end(upload: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError):  # the first error is the one to report
            upload()
        raise
    upload()


def _copies(folder: Path) -> list[Path]:
    """Logs that stand for objects of the folder."""
    local = staged(folder)
    if not on_gcs(folder):
        return []
    return [path for path in local.iterdir() if path.suffix in (".jsonl", ".log")]
