"""Weights of the Llama family between a Hugging Face folder and the parameter tree, without torch.

The tree: {"embed": {"embedding": [V, D]}, "layers": [one dict a layer], "final_norm": {"scale":
[D]}} and, when the embeddings are untied, {"lm_head": {"kernel": [D, V]}}. Kernels are [in, out],
so Hugging Face's [out, in] matrices are transposed; q and k stay in its half-split rotary order.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppo_jax import smollm2
from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import (
    CONFIG,
    check_replaceable,
    read_json,
    read_model_config,
    whole_folder,
    write_model_config,
)
from ppo_jax.types import PyTree

KNOWN_MODELS = {smollm2.NAME: smollm2.ensure_cached}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Slot(NamedTuple):
    """Where one Hugging Face tensor lives in the tree, and its shape in the file."""

    path: tuple[str | int, ...]
    shape: tuple[int, ...]


def resolve_model(name_or_path: str | Path) -> Path:
    """The Hugging Face folder of a known name or of a path; ConfigError when it is neither."""
    name = str(name_or_path)
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name]()
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    problem = "is a folder without config.json" if folder.is_dir() else "is no folder"
    near = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], KNOWN_MODELS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(KNOWN_MODELS)}"
    raise ConfigError(f"model {name!r} {problem}; {hint} (nothing is downloaded from a hub)")


def load_hf(path: str | Path, *, dtype: str = "float32") -> tuple[ModelConfig, PyTree]:
    """Shape and parameters (numpy, `dtype`) of a Hugging Face folder, one or several safetensors.

    Every tensor is used exactly once: a missing, extra or misshapen one raises ConfigError naming
    it, its file and the expected shape. An `lm_head.weight` stored beside tied embeddings must
    equal them; rotary `inv_freq` buffers of old exports are skipped.
    """
    folder = Path(path)
    model_config = read_model_config(folder)
    slots = tensor_slots(model_config)
    files, index_file, promised = _stored_tensors(folder)
    _check_names(folder, slots, files, index_file, promised)
    leaves: dict[tuple[str | int, ...], np.ndarray] = {}
    for file in dict.fromkeys(files.values()):
        with safe_open(file, "numpy") as tensors:
            for name in (n for n in slots if files[n] == file):
                leaves[slots[name].path] = _read_tensor(tensors, name, file, slots[name], dtype)
    if model_config.tie_embeddings and "lm_head.weight" in files:
        _check_tied_head(files["lm_head.weight"], leaves[("embed", "embedding")], dtype)
    return model_config, _tree(leaves, model_config.num_layers)


def save_hf(
    path: str | Path,
    model_config: ModelConfig,
    params: PyTree,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    max_shard_bytes: int | float = 5e9,
) -> None:
    """Writes a Hugging Face folder that transformers 5 loads with no missing or unexpected key.

    `params` may hold jax or numpy arrays; `tokenizer` may be None. The folder appears whole or not
    at all. An older model folder is replaced; ConfigError when other files lie there, when the tree
    does not fit `model_config`, or for an unknown `dtype` (float32, bfloat16, float16).
    """
    folder = Path(path).expanduser()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown: expected {', '.join(DTYPES)}")
    check_replaceable(folder)
    slots = tensor_slots(model_config)
    leaves = _checked_leaves(params, slots)
    shards = _plan_shards(slots, np.dtype(DTYPES[dtype]).itemsize, max_shard_bytes)
    with whole_folder(folder) as new:
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = file if len(shards) > 1 else SINGLE
            tensors = {name: _to_hf(leaves[name], DTYPES[dtype]) for name in names}
            save_file(tensors, new / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            count = sum(int(np.prod(slot.shape)) for slot in slots.values())
            size = count * np.dtype(DTYPES[dtype]).itemsize
            metadata = {"total_parameters": count, "total_size": size}
            index = {"metadata": metadata, "weight_map": weight_map}
            (new / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        write_model_config(new, model_config, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)


def tensor_slots(model_config: ModelConfig) -> dict[str, Slot]:
    """Every tensor of a Llama checkpoint by Hugging Face name, in the order of the network."""
    m = model_config
    d, f = m.embed_dim, m.mlp_dim
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    layer = {
        "input_layernorm": ("attn_norm", "scale", (d,)),
        "self_attn.q_proj": ("q", "kernel", (heads, d)),
        "self_attn.k_proj": ("k", "kernel", (kv_heads, d)),
        "self_attn.v_proj": ("v", "kernel", (kv_heads, d)),
        "self_attn.o_proj": ("o", "kernel", (d, heads)),
        "post_attention_layernorm": ("mlp_norm", "scale", (d,)),
        "mlp.gate_proj": ("gate", "kernel", (f, d)),
        "mlp.up_proj": ("up", "kernel", (f, d)),
        "mlp.down_proj": ("down", "kernel", (d, f)),
    }
    slots = {"model.embed_tokens.weight": Slot(("embed", "embedding"), (m.vocab_size, d))}
    for i in range(m.num_layers):
        for name, (module, kind, shape) in layer.items():
            slots[f"model.layers.{i}.{name}.weight"] = Slot(("layers", i, module, kind), shape)
    slots["model.norm.weight"] = Slot(("final_norm", "scale"), (d,))
    if not m.tie_embeddings:
        slots["lm_head.weight"] = Slot(("lm_head", "kernel"), (m.vocab_size, d))
    return slots


def _stored_tensors(folder: Path) -> tuple[dict[str, Path], Path, dict[str, str]]:
    """Tensor name -> file that really holds it, the file to blame, and the index's own claims."""
    index_file, promised = folder / SINGLE, {}
    shards = [folder / SINGLE]
    if not (folder / SINGLE).is_file():
        if not (folder / INDEX).is_file():
            pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
            hint = f"; pickled weights ({min(pickled)}) are not read" if pickled else ""
            raise ConfigError(f"{folder}: expected {SINGLE} or {INDEX}, found neither{hint}")
        index_file = folder / INDEX
        promised = read_json(index_file).get("weight_map")
        if not isinstance(promised, Mapping) or not promised:
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


def _check_names(folder, slots, files, index_file, promised) -> None:
    missing = [name for name in slots if name not in files]
    extra = [name for name in files if name not in slots and not _ignorable(name)]
    if missing:
        name = missing[0]
        file = folder / promised[name] if name in promised else index_file
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        hint = "; tie_word_embeddings is false in config.json" if name == "lm_head.weight" else ""
        near = difflib.get_close_matches(name, extra, n=1)
        hint += f"; nearest there: {near[0]}" if near else ""
        shape = list(slots[name].shape)
        raise ConfigError(f"{file}: tensor {name} is missing{more}, expected shape {shape}{hint}")
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise ConfigError(
            f"{files[extra[0]]}: unexpected tensor {extra[0]}{more}: config.json describes a Llama "
            f"model of {len(slots)} tensors without it"
        )


def _ignorable(name: str) -> bool:
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def _read_tensor(tensors, name: str, file: Path, slot: Slot, dtype: str) -> np.ndarray:
    stored = tensors.get_slice(name)
    if tuple(stored.get_shape()) != slot.shape:
        raise ConfigError(
            f"{file}: tensor {name} has shape {list(stored.get_shape())}, "
            f"config.json expects {list(slot.shape)}"
        )
    if stored.get_dtype() not in ("F32", "BF16", "F16"):
        raise ConfigError(
            f"{file}: tensor {name} has dtype {stored.get_dtype()}, expected F32, BF16 or F16"
        )
    array = tensors.get_tensor(name).astype(DTYPES[dtype])
    return np.ascontiguousarray(array.T) if slot.path[-1] == "kernel" else array


def _check_tied_head(file: Path, embedding: np.ndarray, dtype: str) -> None:
    slot = Slot(("lm_head", "embedding"), embedding.shape)
    with safe_open(file, "numpy") as tensors:
        head = _read_tensor(tensors, "lm_head.weight", file, slot, dtype)
    if not np.array_equal(head, embedding):
        raise ConfigError(
            f"{file}: lm_head.weight differs from model.embed_tokens.weight although config.json "
            "has tie_word_embeddings = true: set it to false"
        )


def _tree(leaves: Mapping[tuple[str | int, ...], np.ndarray], num_layers: int) -> PyTree:
    tree: dict[str, Any] = {"layers": [{} for _ in range(num_layers)]}
    for (*path, last), leaf in leaves.items():
        node: Any = tree
        for part in path:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        node[last] = leaf
    return tree


def _checked_leaves(params: PyTree, slots: Mapping[str, Slot]) -> dict[str, Any]:
    """Hugging Face name -> leaf in Hugging Face orientation; every leaf of the tree once."""
    flat = dict(_flatten(params))
    leaves = {}
    for name, (path, shape) in slots.items():
        where = ".".join(map(str, path))
        if path not in flat:
            raise ConfigError(f"parameter {where} ({name}) is missing from the tree")
        leaf = flat.pop(path)
        leaves[name] = leaf.T if path[-1] == "kernel" else leaf
        if leaves[name].shape != shape:
            ours = list(reversed(shape) if path[-1] == "kernel" else shape)
            raise ConfigError(f"parameter {where} has shape {list(leaf.shape)}, expected {ours}")
    if flat:
        where = ".".join(map(str, next(iter(flat))))
        raise ConfigError(f"parameter {where} has no place in a Llama checkpoint of this config")
    return leaves


def _flatten(node: Any, path: tuple[str | int, ...] = ()):
    if not isinstance(node, Mapping | list | tuple):
        yield path, node
        return
    for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
        yield from _flatten(child, (*path, key))


def _to_hf(leaf: Any, dtype: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(leaf).astype(dtype))


def _plan_shards(slots: Mapping[str, Slot], itemsize: int, limit: int | float) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, slot in slots.items():
        size = int(np.prod(slot.shape)) * itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
