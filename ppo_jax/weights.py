"""Weights between a Hugging Face folder and the parameter tree, without torch.

The tree: {"embed": {"embedding": [V, D]}, "layers": [one dict a layer], "final_norm": {"scale":
[D], ...}}, {"positions": {"embedding": [P, D]}} where positions are learned, and {"lm_head":
{"kernel": [D, V]}} when the embeddings are untied. Kernels are [in, out]; q and k stay in Hugging
Face's half-split rotary order.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, read_model_config
from ppo_jax.hf_export import REWARD_BIAS, write_model_config
from ppo_jax.hf_folder import (
    CONFIG,
    INDEX,
    SINGLE,
    check_replaceable,
    copy_tokenizer,
    read_json,
    whole_folder,
)
from ppo_jax.hf_tensors import NAMES, PLAIN, Slot, tensor_slots
from ppo_jax.stored import DTYPES, Stored, by_our_names, check_names, read_tensor, stored_tensors
from ppo_jax.types import PyTree


def load_hf(path: str | Path, *, dtype: str = "float32") -> tuple[ModelConfig, PyTree]:
    """Shape and parameters (numpy, `dtype`) of a language model's folder.

    One or several safetensors in float32, bfloat16 or float16. Every tensor is used exactly once:
    a missing, extra or misshapen one raises ConfigError naming it, its file and the expected shape.
    A head stored beside tied embeddings must equal them; buffers of old exports are skipped.
    """
    folder = Path(path)
    labels = classifier_labels(folder)
    if labels is not None:
        raise ConfigError(
            f"{folder / CONFIG}: architectures names a sequence classifier, which has no "
            "language-model head: expected a language model"
        )
    return _load(folder, dtype, None)


def load_classifier(
    path: str | Path, *, dtype: str = "float32"
) -> tuple[ModelConfig, PyTree, PyTree]:
    """(shape, trunk, head {"kernel": [D, labels]}) of an AutoModelForSequenceClassification; with
    the bias [1] of a reward model that was written by `save_hf`."""
    folder = Path(path)
    labels = classifier_labels(folder)
    if labels is None:
        raise ConfigError(
            f"{folder / CONFIG}: architectures names no ...ForSequenceClassification: expected a "
            "sequence classifier"
        )
    model_config, params = _load(folder, dtype, labels)
    head, bias = params.pop("score"), read_json(folder / CONFIG).get(REWARD_BIAS)
    if bias is None:
        return model_config, params, head
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
        raise ConfigError(f"{folder / CONFIG}: {REWARD_BIAS} = {bias!r}, expected a number")
    return model_config, params, {**head, "bias": np.full(1, bias, np.float32)}


def _load(folder: Path, dtype: str, labels: int | None) -> tuple[ModelConfig, PyTree]:
    model_config = read_model_config(folder)
    slots = tensor_slots(model_config, labels=labels)
    files, index_file, promised = stored_tensors(folder)
    stored = by_our_names(model_config, slots, files)
    check_names(model_config, folder, slots, stored, index_file, promised)
    leaves: dict[tuple[str | int, ...], np.ndarray] = {}
    for file in dict.fromkeys(files.values()):
        with safe_open(file, "numpy") as tensors:
            for name in (n for n in slots if stored[n].file == file):
                leaves[slots[name].path] = read_tensor(tensors, stored[name], slots[name], dtype)
    head = stored.get(f"{NAMES[model_config.family].lm_head}.weight")
    if head is not None and model_config.tie_embeddings and labels is None:
        _check_tied_head(head, leaves[("embed", "embedding")], dtype)
    return model_config, _tree(leaves, model_config.num_layers)


def save_hf(
    path: str | Path,
    model_config: ModelConfig,
    params: PyTree,
    tokenizer: Any,
    *,
    head: PyTree | None = None,
    origin: Path | None = None,
    dtype: str = "float32",
    max_shard_bytes: int | float = 5e9,
) -> None:
    """Write a Hugging Face folder that transformers 5 loads with no missing or unexpected key.

    `params` may hold jax or numpy arrays; `tokenizer` may be None. With a `head` ({"kernel": [D,
    labels]}) it is an AutoModelForSequenceClassification, and a bias [1] of its head goes into
    config.json as `ppo_jax_reward_bias`, which transformers does not add. What `origin`, the folder
    the model came from, holds beside the weights is carried through: tokenizer files and chat
    template as they are, sampling defaults, dropout rates. The folder appears whole or not at all.
    An older model folder is replaced; ConfigError when other files lie there, when the tree does
    not fit `model_config`, or for an unknown `dtype` (float32, bfloat16, float16).
    """
    folder = Path(path).expanduser()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown: expected {', '.join(DTYPES)}")
    check_replaceable(folder)
    labels = None if head is None else int(head["kernel"].shape[-1])
    bias = float(head["bias"][0]) if head is not None and "bias" in head else None
    if head is not None:
        params = {k: v for k, v in params.items() if k != "lm_head"}
        params["score"] = {"kernel": head["kernel"]}
    slots = tensor_slots(model_config, labels=labels)
    leaves = _checked_leaves(params, slots)
    with whole_folder(folder) as new:
        _write_tensors(new, slots, leaves, dtype, max_shard_bytes)
        save_beside(new, model_config, tokenizer, dtype, labels=labels, bias=bias, origin=origin)


def save_beside(
    folder: Path,
    model_config: ModelConfig,
    tokenizer: Any,
    dtype: str,
    *,
    labels: int | None = None,
    bias: float | None = None,
    origin: Path | None = None,
) -> None:
    """Write what lies beside weights: configs, and `origin`'s tokenizer files or `tokenizer`."""
    write_model_config(folder, model_config, dtype, labels=labels, bias=bias, origin=origin)
    if not (origin is not None and copy_tokenizer(origin, folder)) and tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_tensors(folder, slots, leaves, dtype: str, max_shard_bytes: int | float) -> None:
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    shards = _plan_shards(slots, itemsize, max_shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        tensors = {name: _to_hf(leaves[name], DTYPES[dtype]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        count = sum(int(np.prod(slot.shape)) for slot in slots.values())
        metadata = {"total_parameters": count, "total_size": count * itemsize}
        index = {"metadata": metadata, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _check_tied_head(stored: Stored, embedding: np.ndarray, dtype: str) -> None:
    slot = Slot(("lm_head", "embedding"), embedding.shape, PLAIN)
    with safe_open(stored.file, "numpy") as tensors:
        head = read_tensor(tensors, stored, slot, dtype)
    if not np.array_equal(head, embedding):
        raise ConfigError(
            f"{stored.file}: {stored.name} differs from the token embedding although config.json "
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
    for name, (path, shape, layout) in slots.items():
        where = ".".join(map(str, path))
        if path not in flat:
            raise ConfigError(f"parameter {where} ({name}) is missing from the tree")
        leaf = flat.pop(path)
        ours = layout.to_tree(np.broadcast_to(np.False_, shape)).shape
        if leaf.shape != ours:
            raise ConfigError(
                f"parameter {where} has shape {list(leaf.shape)}, expected {list(ours)}"
            )
        leaves[name] = layout.to_file(leaf)
    if flat:
        where = ".".join(map(str, next(iter(flat))))
        raise ConfigError(f"parameter {where} has no place in a checkpoint of this config")
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
