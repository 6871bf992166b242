"""Low-rank adapters between a PEFT folder and their tree, without torch.

The folder holds adapter_config.json and adapter_model.safetensors. PEFT keeps A as [rank, in] and B
as [out, rank], whatever the orientation of the matrix they are beside.
"""

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    check_replaceable,
    copy_tokenizer,
    read_json,
    short,
    whole_folder,
)
from ppo_jax.hf_tensors import LINEAR, NAMES, PLAIN, Slot, layer_slots, matrices
from ppo_jax.hf_tensors import Path as TreePath
from ppo_jax.lora import adapted_modules
from ppo_jax.stored import DTYPES, Stored, read_tensor
from ppo_jax.types import PyTree

PREFIX = "base_model.model"  # PEFT's wrappers around the model, which it leaves in the names

# Fields that say how the file came about, where the adapters sit (the tensors say it themselves) or
# how they are trained further; none of them changes what the stored tensors compute.
_HARMLESS = frozenset(
    "auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out layers_pattern megatron_core "
    "loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config "
    "ensure_weight_tying".split()
)
# Fields of which some values are plain LoRA. Initialisations that are not listed here move a part
# of the base's weights into the adapters, which then do not fit the base any more.
_SUPPORTED = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
}


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds adapters for another model: PEFT's mark is its config file."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def base_model(path: str | Path) -> tuple[str, str | None]:
    """(name or folder, revision) of the model under the adapters, as its config file has them."""
    file, raw = _read_config(Path(path).expanduser())
    found = [raw.get(key) for key in ("base_model_name_or_path", "revision")]
    if not isinstance(found[0], str) or not found[0]:
        raise ConfigError(
            f"{file}: base_model_name_or_path = {short(found[0])}: expected the folder or hub id "
            "of the model under the adapters"
        )
    if not isinstance(found[1], str | None):
        raise ConfigError(f"{file}: revision = {short(found[1])}: expected a string or null")
    return found[0], found[1] or None


def read_adapters(path: str | Path, config: ModelConfig) -> tuple[LoraOptions, PyTree]:
    """Options and float32 NumPy adapters {"layers": [...]} of a PEFT folder.

    Which matrices are adapted is what the tensors say: `targets` names them, each as the family
    calls it within a layer. Raises ConfigError, naming file and field or tensor, for any variant
    that is not plain LoRA on every layer, and for a missing, extra or misshapen tensor.
    """
    folder = Path(path).expanduser()
    config_file, raw = _read_config(folder)
    rank, alpha = _check_fields(config_file, raw)
    file = folder / ADAPTER
    if not file.is_file():
        pickled = "; pickled weights (adapter_model.bin) are not read"
        hint = pickled if (folder / "adapter_model.bin").is_file() else ""
        raise ConfigError(f"{folder}: expected {ADAPTER}, found none{hint}")
    try:
        with safe_open(file, "numpy") as tensors:
            stored = set(tensors.keys())
            modules = _stored_modules(file, config, stored, raw)
            slots = _slots(config, modules, rank)
            _check_names(file, slots, stored)
            layers: Any = [{m: {} for m in modules} for _ in range(config.num_layers)]
            for name, slot in slots.items():
                _, layer, module, part = slot.path
                layers[layer][module][part] = read_tensor(
                    tensors, Stored(file, name), slot, "float32"
                )
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as safetensors: {error}") from None
    names = NAMES[config.family].modules
    targets = tuple(names[module] for module in modules)
    return LoraOptions(rank, alpha, targets), {"layers": layers}


def write_adapters(
    path: str | Path,
    config: ModelConfig,
    lora: LoraOptions,
    adapters: PyTree,
    *,
    base: str | None,
    revision: str | None = None,
    origin: Path | None = None,
    dtype: str = "float32",
) -> None:
    """Write a folder that PEFT loads onto the model `base` (a folder or hub id; None: unnamed).

    `adapters` has its layers as a list, of jax or NumPy arrays. Tokenizer and chat template of the
    folder `origin` are copied as they are. The folder appears whole or not at all; an older adapter
    or model folder is replaced. ConfigError when other files lie there, when the tree does not fit
    `config` and `lora`, or for an unknown `dtype`.
    """
    folder = Path(path).expanduser()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown: expected {', '.join(DTYPES)}")
    if lora.rank is None:
        raise ConfigError("model.lora.rank=None: there are no adapters to write")
    check_replaceable(folder)
    modules = adapted_modules(config, lora.targets)
    slots = _slots(config, modules, lora.rank)
    leaves = _checked_leaves(adapters, slots)
    tensors = {
        name: np.ascontiguousarray(slot.layout.to_file(leaves[slot.path]).astype(DTYPES[dtype]))
        for name, slot in slots.items()
    }
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    names = NAMES[config.family]
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": [names.modules[module] for module in modules],
        "fan_in_fan_out": names.conv1d,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(folder) as new:
        (new / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, new / ADAPTER, metadata={"format": "pt"})
        if origin is not None:
            copy_tokenizer(origin, new)


def _read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    if not is_adapter_folder(folder):
        raise ConfigError(
            f"{folder} has no {ADAPTER_CONFIG}: expected a PEFT folder (this and {ADAPTER})"
        )
    return folder / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG)


def _check_fields(file: Path, raw: Mapping[str, Any]) -> tuple[int, float]:
    """(rank, alpha) of a config that asks for plain LoRA and nothing else."""
    missing = [key for key in ("peft_type", "r", "lora_alpha") if key not in raw]
    if missing:
        raise ConfigError(f"{file}: {missing[0]} is missing: expected PEFT's config of a LoRA")
    for key, allowed in _SUPPORTED.items():
        value = raw.get(key, allowed[0])
        # by type too: 0 and 1 are no booleans here
        if not any(type(value) is type(a) and value == a for a in allowed):
            names = " or ".join(json.dumps(a) for a in allowed)
            raise ConfigError(f"{file}: {key} = {short(value)} is not supported, only {names} is")
    for key, value in raw.items():
        # off is null or false: PEFT takes {} for a variant with its defaults, 0 for a layer
        on = value is not None and value is not False
        if on and key not in _HARMLESS and key not in _SUPPORTED:
            raise ConfigError(
                f"{file}: {key} = {short(value)} is not supported: expected plain LoRA, without it"
            )
    rank, alpha = raw["r"], raw["lora_alpha"]
    if type(rank) is not int or rank < 1:
        raise ConfigError(f"{file}: r = {short(rank)}: expected a whole number of at least 1")
    if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
        raise ConfigError(f"{file}: lora_alpha = {short(alpha)}: expected a finite number")
    return rank, float(alpha)


def _stored_modules(
    file: Path, config: ModelConfig, stored: set[str], raw: Mapping[str, Any]
) -> tuple[str, ...]:
    """Our names of the matrices that the file adapts, and of those its config says it does."""
    candidates = _slots(config, tuple(matrices(config)), 1)
    extra = sorted(stored - candidates.keys())
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        near = difflib.get_close_matches(extra[0], candidates, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{file}: unexpected tensor {extra[0]}{more}: adapters are read for the matrices of a "
            f"{config.family} model's {config.num_layers} layers alone; nearest: {near}"
        )
    if not stored:
        raise ConfigError(f"{file}: holds no tensors, expected the adapters")
    # A list is matched as PEFT does it, from the end of a matrix's name: a file that has lost a
    # whole matrix is noticed. A regular expression is not run: it may take forever.
    targets = None if raw.get("exclude_modules") else raw.get("target_modules")
    ends = tuple(f".{t}" for t in targets) if isinstance(targets, list) else ()
    every = isinstance(targets, str) and targets.lower() == "all-linear"
    found = {
        slot.path[2]
        for name, slot in candidates.items()
        if name in stored or every or name.rsplit(".", 2)[0].endswith(ends)
    }
    return tuple(module for module in matrices(config) if module in found)


def _check_names(file: Path, slots: Mapping[str, Slot], stored: set[str]) -> None:
    missing = [name for name in slots if name not in stored]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        shape = list(slots[missing[0]].shape)
        raise ConfigError(
            f"{file}: tensor {missing[0]} is missing{more}, expected shape {shape}: a matrix is "
            "adapted in every layer or in none"
        )


def _slots(config: ModelConfig, modules: tuple[str, ...], rank: int) -> dict[str, Slot]:
    """The tensors of the adapters by PEFT's names, in the order of the network."""
    names, layer, sizes = NAMES[config.family], layer_slots(config), matrices(config)
    slots = {}
    for i in range(config.num_layers):
        for module in modules:
            size_in, size_out, _ = sizes[module]
            inside = names.modules[module]
            layout = layer[f"{inside}.weight"].layout
            # B's rows are the matrix's outputs: in the family's order of them, never as [in, out]
            layout_b = LINEAR if layout is PLAIN else layout
            name = f"{PREFIX}.{names.trunk}.{names.layers}.{i}.{inside}"
            path: TreePath = ("layers", i, module)
            slots[f"{name}.lora_A.weight"] = Slot((*path, "lora_a"), (rank, size_in), LINEAR)
            slots[f"{name}.lora_B.weight"] = Slot((*path, "lora_b"), (size_out, rank), layout_b)
    return slots


def _checked_leaves(adapters: PyTree, slots: Mapping[str, Slot]) -> dict[TreePath, np.ndarray]:
    """The leaves by path: just those that the slots want, in their shapes."""
    layers = adapters["layers"]
    if not isinstance(layers, list):
        raise ConfigError("adapters have their layers stacked, expected a list of layers")
    leaves = {
        ("layers", i, module, part): np.asarray(x)
        for i, layer in enumerate(layers)
        for module, parts in layer.items()
        for part, x in parts.items()
    }
    wanted = {slot.path: slot for slot in slots.values()}
    odd = sorted(map(str, leaves.keys() ^ wanted.keys()))
    if odd:
        raise ConfigError(f"adapters do not fit model.lora.targets: {odd[0]} is on one side only")
    for path, leaf in leaves.items():
        expected = wanted[path].shape[::-1]
        if leaf.shape != expected:
            where = ".".join(map(str, path))
            raise ConfigError(
                f"adapter {where} has shape {list(leaf.shape)}, expected {list(expected)}"
            )
    return leaves
