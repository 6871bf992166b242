"""Models named by a Hugging Face hub id: the files that are needed, fetched once and pinned.

Only configuration, tokenizer and safetensors files are asked for: nothing that can hold a pickle
or code ever reaches the disk.
"""

import contextlib
import functools
import json
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.errors import ConfigError, PPOJaxError, StorageError
from ppo_jax.hf_folder import ADAPTER, CHAT_TEMPLATES, INDEX, PICKLED, SINGLE, TOKENIZER_FILES

FILES = (
    f"config.json generation_config.json {SINGLE} {INDEX} adapter_config.json {ADAPTER} "
    f"{' '.join(TOKENIZER_FILES)} {CHAT_TEMPLATES}/*.jinja"
).split()
# The hub's own rule for either half of an id.
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
FOLDER_ROUTE = (
    f"give the path of a Hugging Face folder instead (config.json, {SINGLE}, tokenizer.json)"
)


class Snapshot(NamedTuple):
    """A repository's files as they were at one commit."""

    folder: Path
    revision: str  # the commit's full hash, whatever branch or tag was asked for


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as `organisation/name` and is no path that exists here.

    A bare word is none: it is far likelier a mistyped folder or known name.
    """
    return (
        re.fullmatch(f"{PART}/{PART}", name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
        and not os.path.lexists(name)
    )


def snapshot(name: str, revision: str | None = None) -> Snapshot:
    """The model repository `name` at a branch, tag or commit (default: main), in the local cache.

    A commit that is whole in the cache is served without touching the network, and so is
    everything when HF_HUB_OFFLINE is set. Raises ConfigError where the repository or revision
    cannot be had or has no safetensors, StorageError where the cache cannot be written.
    """
    folder = _fetch(name, revision, FILES)
    pinned = folder.name
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        shards = _shards(name, folder / INDEX)
        if _missing(folder, shards):
            _fetch(name, pinned, shards)
        if missing := _missing(folder, shards):
            raise ConfigError(
                f"model {name!r}: {INDEX} names the file {missing[0]}, which is not there "
                f"(revision {pinned})"
            )
    elif not any((folder / file).is_file() for file in (SINGLE, ADAPTER)):
        raise _no_weights(name, pinned)
    return Snapshot(folder, pinned)


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> Path:
    import huggingface_hub as library

    download = functools.partial(
        library.snapshot_download,
        name,
        revision=revision,
        allow_patterns=list(files),  # the library's * matches a slash too: *.jinja would not do
    )
    try:
        if re.fullmatch("[0-9a-f]{40}", revision or ""):
            # Even where all files are there, the library may ask the hub for something else, and
            # wait for it. Only with the commit's list of files does it tell a part from the whole.
            missing = (
                library.errors.CachedRepoTreeNotFoundError,
                library.errors.LocalEntryNotFoundError,
            )
            with contextlib.suppress(*missing):
                library.get_cached_repo_tree(name, revision=revision)
                return Path(download(local_files_only=True))
        return Path(download())
    except Exception as error:  # HTTP errors of whichever client the library uses, among others
        raise _failure(name, revision, error) from error


def _shards(name: str, index_file: Path) -> list[str]:
    """File names in an index, which is data from the network: plain safetensors names only."""
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = []
    if not shards:
        raise ConfigError(f"{index_file}: expected a weight_map of tensor names to files")
    for shard in shards:
        if not re.fullmatch(PART, shard) or not shard.endswith(".safetensors"):
            raise ConfigError(
                f"model {name!r}: {INDEX} names the file {shard!r}, expected a .safetensors file "
                "beside it"
            )
    return shards


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _no_weights(name: str, pinned: str) -> ConfigError:
    from huggingface_hub import HfApi

    expected = f"expected {SINGLE}, {INDEX} or {ADAPTER}"
    try:
        files = HfApi().list_repo_files(name, revision=pinned)
    except Exception:  # offline: the cache alone cannot tell what else there is
        return ConfigError(
            f"model {name!r}: the local cache holds no weights of revision {pinned} ({expected}) "
            f"and the hub cannot be asked; {FOLDER_ROUTE}"
        )
    pickled = [file for file in files if file.endswith(PICKLED)]
    hint = f"; pickled weights ({pickled[0]}) are not read" if pickled else ""
    return ConfigError(f"model {name!r} has no safetensors on the hub: {expected}{hint}")


def _failure(name: str, revision: str | None, error: Exception) -> PPOJaxError:
    """What the library could not do, in one line that says what can be done about it."""
    from huggingface_hub import constants, errors

    model = f"model {name!r}" + (f" at revision {revision!r}" if revision is not None else "")
    cause: Any = error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__
    if isinstance(cause, errors.GatedRepoError):
        return ConfigError(
            f"{model} is gated: accept its terms on its page of the hub and set HF_TOKEN to a "
            f"token of that account, or {FOLDER_ROUTE}"
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return ConfigError(
            f"model {name!r} is neither a folder here nor a repository on the hub "
            "(a private or gated one needs a token in HF_TOKEN)"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return ConfigError(
            f"model {name!r} has no revision {revision!r} on the hub: expected a branch, a tag or "
            "the full hash of a commit"
        )
    if isinstance(cause, OSError) and cause.errno is not None:  # the disk's, not the network's
        return StorageError(
            f"{model} cannot be stored in {constants.HF_HUB_CACHE}: {cause.strerror or cause}"
        )
    response = getattr(cause, "response", None)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        why = "offline: HF_HUB_OFFLINE is set and the local cache does not hold all of it"
    elif response is not None:
        token = "; is the token in HF_TOKEN right?" if response.status_code in (401, 403) else ""
        why = f"{constants.ENDPOINT} answers {response.status_code}{token}"
    elif isinstance(cause, json.JSONDecodeError):  # a login page, say
        why = f"{constants.ENDPOINT} does not answer as a hub does"
    else:
        reason = textwrap.shorten(str(cause), 160, placeholder="…") or type(cause).__name__
        why = f"{constants.ENDPOINT}: {reason}"
    return ConfigError(f"{model} cannot be fetched from the hub ({why}); {FOLDER_ROUTE}")
