"""Paths on Google Cloud Storage with the manners of pathlib's, as far as a run folder needs them.

There are only objects: a folder is there as long as an object lies below it, an object is written
whole or not at all, and none can be added to or locked.
"""

import contextlib
import errno
import fnmatch
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import fsspec.config

from ppo_jax.errors import StorageError
from ppo_jax.text import one_line

# Without this, what another client (tensorstore, another machine) writes or removes stays unseen.
fsspec.config.conf.setdefault("gcs", {}).update(use_listings_cache=False)
os.environ.setdefault("EPATH_USE_TF", "false")  # Orbax's own access to gs:// goes the same way


class GcsError(StorageError, OSError):
    """What a disk's error is, so that the code for files takes it for one; it ends a command with
    its one line where nothing else has been made of it."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class GcsMissingError(GcsError, FileNotFoundError):
    """No such bucket or object."""


class GcsPath(PurePosixPath):
    """gs://bucket/folder/name; as a PurePosixPath it is /bucket/folder/name."""

    def __str__(self) -> str:
        return f"gs:/{super().__str__()}"

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> "GcsPath":
        return self

    def expanduser(self) -> "GcsPath":
        return self

    def is_symlink(self) -> bool:
        return False

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def iterdir(self) -> Iterator["GcsPath"]:
        with self._errors():
            found = _client().ls(str(self), detail=False)
        names = {name.rstrip("/") for name in found} - {str(self).removeprefix("gs://")}
        return (self / name.rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str) -> Iterator["GcsPath"]:
        """Of one level; a `*` stands for anything, dots in front included."""
        with contextlib.suppress(FileNotFoundError):
            yield from (x for x in self.iterdir() if fnmatch.fnmatchcase(x.name, pattern))

    def files(self) -> list[str]:
        """Names of all objects below, relative to this folder."""
        with self._errors():
            found = _client().find(str(self))
        below = (PurePosixPath(f"/{name}") for name in found if not name.endswith("/"))
        return sorted(path.relative_to(PurePosixPath(*self.parts)).as_posix() for path in below)

    def open(self, mode: str) -> IO[bytes]:
        assert mode == "rb", mode
        with self._errors():
            return _client().open(str(self), mode)

    def read_bytes(self) -> bytes:
        with self._errors():
            return _client().cat_file(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        with self._errors():
            _client().pipe_file(str(self), text.encode(encoding))

    def touch(self) -> None:
        self.write_text("")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no empty folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            with self._errors():
                _client().rm_file(str(self))

    def rmtree(self) -> None:
        with self._errors():
            _client().rm(str(self), recursive=True)

    def rename(self, target: "GcsPath") -> None:
        """Copies, of a folder one object after the other; then nothing is left here."""
        folder = self.is_dir()
        for name in self.files() if folder else [""]:
            with self._errors():
                _client().cp_file(str(self / name), str(target / name))
        self.rmtree() if folder else self.unlink()

    def size(self) -> int | None:
        """Bytes of an object, None where there is none."""
        return None if (info := self._info()) is None else info["size"]

    def upload(self, local: Path) -> None:
        with self._errors():
            _client().put_file(str(local), str(self))

    def download(self, local: Path) -> None:
        with self._errors():
            _client().get_file(str(self), str(local))

    def _info(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError), self._errors():
            return _client().info(str(self))
        return None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise GcsMissingError(errno.ENOENT, "no such bucket or object", str(self)) from None
        except Exception as error:  # gcsfs' own, aiohttp's, google-auth's; few of them OSErrors
            raise GcsError(errno.EIO, one_line(error), str(self)) from error


@functools.cache
def _client() -> Any:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs in pages what it raises
    return fsspec.filesystem("gcs")
