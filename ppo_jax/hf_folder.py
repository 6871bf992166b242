"""Hugging Face model folders as files: JSON read with care, folders that appear whole."""

import contextlib
import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.storage import on_gcs, uploading

CONFIG = "config.json"
GENERATION = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's: of adapters for another model
ADAPTER = "adapter_model.safetensors"
CHAT_TEMPLATES = "additional_chat_templates"  # a folder of named ones, beside the default template
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # never read

# What a saved model folder may hold; anything else there is the user's and is not deleted.
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja chat_template.json"
).split()
MODEL_FILES = [
    CONFIG,
    GENERATION,
    "*.safetensors",
    INDEX,
    ADAPTER_CONFIG,
    *TOKENIZER_FILES,
    CHAT_TEMPLATES,
]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model folder's file; ConfigError names the file when it is missing or
    broken, or whichever is a link out of the folder."""
    check_links(file.parent)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"has no {file.name}" if file.parent.is_dir() else "does not exist"
        raise ConfigError(
            f"{file.parent} {what}: expected a Hugging Face model folder (config.json, "
            "model.safetensors, tokenizer.json)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a JSON object, found {short(raw)}")
    return raw


def check_links(folder: Path) -> None:
    """Raises ConfigError where a file of a model folder is a link to a place outside: whoever made
    the folder would choose what else is read here.

    A snapshot in the hub's cache may link to the blobs beside it, as the hub's library makes it do.
    """
    if on_gcs(folder) or not folder.is_dir():
        return
    own = Path(os.path.realpath(folder))
    repository = own.parents[1] if len(own.parts) > 2 else own
    in_cache = own.parent.name == "snapshots" and repository.name.startswith("models--")
    allowed = [own, repository / "blobs"] if in_cache else [own]
    try:
        files = [*folder.iterdir(), *folder.glob(f"{CHAT_TEMPLATES}/*")]
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from None
    for file in files:
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(place) for place in allowed):
            raise ConfigError(
                f"{file}: is a link to {target}, outside the model's folder: put the file itself "
                "there"
            )


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling that becomes `path` at the end: a crash leaves no half folder (or
    on gs:// one without its config.json).

    An older folder at `path` is replaced. Raises StorageError when the disk refuses.
    """
    if on_gcs(path):
        with uploading(path, last=CONFIG) as new:
            yield new
        return
    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from None
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        for file in (path for path in new.rglob("*") if path.is_file()):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        _swap(new, path, temporary / "old")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copy a model folder's tokenizer and chat templates as they are; False if it has none.

    Python that the tokenizer's config names goes along unread, or the copy would be broken.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    settings = source / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in read_json(settings):
        found += sorted(source.glob("*.py"))
    found += sorted((source / CHAT_TEMPLATES).glob("*.jinja"))
    for file in found:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    return bool(found)


def _swap(new: Path, path: Path, old: Path) -> None:
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError when writing a model to `folder` would delete anything but a model."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: expected a new folder to write the model into")
    names = sorted(file.name for file in folder.iterdir())
    if not names:
        return
    marks = {CONFIG: "model_type", ADAPTER_CONFIG: "peft_type"}
    if not any(f in names and mark in read_json(folder / f) for f, mark in marks.items()):
        raise ConfigError(f"{folder} is not empty and not a model folder: choose a new folder")
    for name in names:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES):
            raise ConfigError(
                f"{folder} also holds {name}, which would be lost: choose a new folder"
            )


def short(value: Any) -> str:
    """A JSON value for a one-line message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
