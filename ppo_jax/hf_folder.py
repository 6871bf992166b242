"""The JSON files of a Hugging Face model folder, both ways, and folders that appear whole."""

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

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError, StorageError

CONFIG = "config.json"
GENERATION = "generation_config.json"

# Switches of LlamaConfig that change the network: only these values are implemented here.
SUPPORTED = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, None),
    "is_encoder_decoder": (False,),
}
# transformers' LlamaConfig, for keys that a file leaves out.
DEFAULTS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "is_encoder_decoder": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a saved model folder may hold; anything else there is the user's and is not deleted.
MODEL_FILES = (
    "config.json generation_config.json *.safetensors model.safetensors.index.json tokenizer.json "
    "tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja "
    "vocab.json merges.txt tokenizer.model"
).split()
LLAMA3_KEYS = {  # Hugging Face's name -> RopeScaling's
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_positions",
}


def read_model_config(path: str | Path) -> ModelConfig:
    """Shape of the model in a Hugging Face folder, from config.json and generation_config.json.

    EOS ids are those of both files, generation_config.json's first. Keys of transformers 4
    (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are read. Raises ConfigError naming
    file, field, value and what is supported.
    """
    file = Path(path) / CONFIG
    raw = read_json(file)
    for key, allowed in SUPPORTED.items():
        value = raw.get(key, DEFAULTS.get(key))
        if value not in allowed:
            names = " or ".join(json.dumps(a) for a in allowed)
            raise ConfigError(f"{file}: {key} = {_short(value)} is not supported, only {names} is")
    hidden, heads = _size(file, raw, "hidden_size"), _size(file, raw, "num_attention_heads")
    kv_heads = _size(file, raw, "num_key_value_heads", default=heads)
    for key, whole, part in (
        ("hidden_size", hidden, heads),
        ("num_key_value_heads", heads, kv_heads),
    ):
        if whole % part:
            raise ConfigError(f"{file}: {key} does not fit: {whole} is not a multiple of {part}")
    theta, scaling = _rope(file, raw)
    eos = _eos_ids(Path(path), raw)
    pad = raw.get("pad_token_id")
    return ModelConfig(
        vocab_size=_size(file, raw, "vocab_size"),
        embed_dim=hidden,
        num_layers=_size(file, raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_size(file, raw, "head_dim", default=hidden // heads),
        mlp_dim=_size(file, raw, "intermediate_size"),
        max_positions=_size(file, raw, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(file, raw, "rms_norm_eps"),
        tie_embeddings=bool(raw.get("tie_word_embeddings", DEFAULTS["tie_word_embeddings"])),
        init_std=_number(file, raw, "initializer_range"),
        bos_token_id=raw.get("bos_token_id", DEFAULTS["bos_token_id"]),
        eos_token_ids=eos,
        # Any id serves as padding, for masks come from lengths; an EOS id reads best in a dump.
        pad_token_id=pad if pad is not None and pad >= 0 else (*eos, 0)[0],
    )


def write_model_config(folder: Path, model_config: ModelConfig, dtype: str) -> None:
    """Writes config.json and generation_config.json in the form transformers 5 reads."""
    m = model_config
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": m.rope_theta}
    if m.rope_scaling is not None:
        rope["rope_type"] = "llama3"
        rope |= {theirs: getattr(m.rope_scaling, ours) for theirs, ours in LLAMA3_KEYS.items()}
    eos = list(m.eos_token_ids)
    special = {
        "bos_token_id": m.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": m.pad_token_id,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": m.vocab_size,
        "hidden_size": m.embed_dim,
        "intermediate_size": m.mlp_dim,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_heads,
        "num_key_value_heads": m.num_kv_heads,
        "head_dim": m.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": m.max_positions,
        "initializer_range": m.init_std,
        "rms_norm_eps": m.norm_eps,
        "rope_parameters": rope,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": m.tie_embeddings,
        "dtype": dtype,
        **special,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / GENERATION).write_text(json.dumps(special, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError names the file when it is missing or broken."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"has no {file.name}" if file.parent.is_dir() else "does not exist"
        raise ConfigError(
            f"{file.parent} {what}: expected a Hugging Face model folder (config.json, "
            "model.safetensors, tokenizer.json)"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a JSON object, found {_short(raw)}")
    return raw


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling that becomes `path` at the end: a crash leaves no half folder.

    An older folder at `path` is replaced. Raises StorageError when the disk refuses.
    """
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
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        _swap(new, path, temporary / "old")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    if CONFIG not in names or "model_type" not in read_json(folder / CONFIG):
        raise ConfigError(f"{folder} is not empty and not a model folder: choose a new folder")
    for name in names:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES):
            raise ConfigError(
                f"{folder} also holds {name}, which would be lost: choose a new folder"
            )


def _rope(file: Path, raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ConfigError(
            f'{file}: rope type = {_short(kind)} is not supported, only "default" or "llama3" is'
        )
    missing = [key for key in LLAMA3_KEYS if key not in rope]
    if missing:
        raise ConfigError(f"{file}: rope type llama3 needs {', '.join(missing)}")
    scaling = {ours: float(rope[theirs]) for theirs, ours in LLAMA3_KEYS.items()}
    positions = int(scaling.pop("original_max_positions"))
    return float(theta), RopeScaling(**scaling, original_max_positions=positions)


def _eos_ids(folder: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    sources = [(CONFIG, raw.get("eos_token_id", DEFAULTS["eos_token_id"]))]
    if (folder / GENERATION).is_file():
        sources.insert(0, (GENERATION, read_json(folder / GENERATION).get("eos_token_id")))
    ids: list[int] = []
    for name, value in sources:
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int and v >= 0 for v in values):
            raise ConfigError(
                f"{folder / name}: eos_token_id = {_short(value)}, expected an id or a list of ids"
            )
        ids += values
    return tuple(dict.fromkeys(ids))


def _size(file: Path, raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = raw.get(key, DEFAULTS.get(key)) if value is not None or default is None else default
    if type(value) is not int or value < 1:
        found = "is missing" if key not in raw else f"= {_short(value)}"
        raise ConfigError(f"{file}: {key} {found}, expected a positive integer")
    return value


def _number(file: Path, raw: dict[str, Any], key: str) -> float:
    value: Any = raw.get(key, DEFAULTS.get(key))
    if type(value) not in (int, float) or not value >= 0:  # NaN is refused too
        raise ConfigError(f"{file}: {key} = {_short(value)}, expected a number of at least 0")
    return float(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
