"""The tensors in the safetensors files of a folder: which there are, under which names."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import INDEX, PICKLED, SINGLE, check_links, read_json
from ppo_jax.hf_tensors import NAMES, SCORE, Slot

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Constants that old exports stored beside the weights: rotary frequencies and causal masks.
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")


class Stored(NamedTuple):
    """A tensor as it lies on the disk."""

    file: Path
    name: str


def stored_tensors(folder: Path) -> tuple[dict[str, Path], Path, dict[str, str]]:
    """Tensor name -> file that really holds it, the file to blame, and the index's own claims."""
    check_links(folder)
    index_file, promised = folder / SINGLE, {}
    shards = [folder / SINGLE]
    if not (folder / SINGLE).is_file():
        if not (folder / INDEX).is_file():
            pickled = [p.name for p in folder.iterdir() if p.suffix in PICKLED]
            hint = f"; pickled weights ({min(pickled)}) are not read" if pickled else ""
            raise ConfigError(f"{folder}: expected {SINGLE} or {INDEX}, found neither{hint}")
        index_file = folder / INDEX
        promised = read_json(index_file).get("weight_map")
        named = isinstance(promised, Mapping) and all(isinstance(f, str) for f in promised.values())
        if not promised or not named:
            raise ConfigError(f"{index_file}: expected a weight_map of tensor names to files")
        shards = [folder / name for name in sorted(set(promised.values()))]
    files: dict[str, Path] = {}
    for shard in shards:
        if shard.parent != folder or not shard.is_file():
            raise ConfigError(f"{index_file}: names the file {shard.name}, which is not there")
        try:
            with safe_open(shard, "numpy") as tensors:
                names = list(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{shard}: cannot be read as safetensors: {error}") from None
        for name in names:
            if name in files:
                raise ConfigError(f"{shard}: tensor {name} is also in {files[name].name}")
            files[name] = shard
    return files, index_file, dict(promised)


def by_our_names(config: ModelConfig, slots, files: dict[str, Path]) -> dict[str, Stored]:
    """The stored tensors by the names of `slots`.

    Some exports leave the trunk's prefix away, and transformers 5 has renamed GPT-NeoX's head.
    """
    names = NAMES[config.family]
    head = f"{names.lm_head}.weight"
    without_prefix = {name.removeprefix(f"{names.trunk}."): name for name in slots}
    found = {}
    for name, file in files.items():
        ours = without_prefix.get(name, name)
        if name == "lm_head.weight" and head not in files:
            ours = head
        if ours in found:
            raise ConfigError(f"{file}: tensor {name} is also there as {found[ours].name}")
        found[ours] = Stored(file, name)
    return found


def check_names(config, folder, slots, stored, index_file, promised) -> None:
    names = NAMES[config.family]
    head = f"{names.lm_head}.weight"
    # A head beside tied embeddings is compared with them later; a classifier has no such head.
    known = {*slots, *(() if SCORE in slots else (head,))}
    extra = [n for n in stored if n not in known and not BUFFERS.fullmatch(n)]
    missing = [name for name in slots if name not in stored]
    if missing:
        name = missing[0]
        file = folder / promised[name] if name in promised else index_file
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        hint = "; tie_word_embeddings is false in config.json" if name == head else ""
        near = difflib.get_close_matches(name, extra, n=1)
        hint += f"; nearest there: {near[0]}" if near else ""
        shape = list(slots[name].shape)
        raise ConfigError(f"{file}: tensor {name} is missing{more}, expected shape {shape}{hint}")
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise ConfigError(
            f"{stored[extra[0]].file}: unexpected tensor {extra[0]}{more}: config.json describes a "
            f"{config.family} model of {len(slots)} tensors without it"
        )


def read_tensor(tensors: Any, stored: Stored, slot: Slot, dtype: str) -> np.ndarray:
    """A tensor of an open safetensors file, in the tree's orientation."""
    tensor = tensors.get_slice(stored.name)
    if tuple(tensor.get_shape()) != slot.shape:
        raise ConfigError(
            f"{stored.file}: tensor {stored.name} has shape {list(tensor.get_shape())}, "
            f"expected {list(slot.shape)}"
        )
    if tensor.get_dtype() not in ("F32", "BF16", "F16"):
        raise ConfigError(
            f"{stored.file}: tensor {stored.name} has dtype {tensor.get_dtype()}, expected F32, "
            "BF16 or F16"
        )
    array = tensors.get_tensor(stored.name).astype(DTYPES[dtype])
    return np.ascontiguousarray(slot.layout.to_tree(array))
