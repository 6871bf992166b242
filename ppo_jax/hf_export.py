"""A ModelConfig as the config.json and generation_config.json that transformers reads."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import read_model_config
from ppo_jax.hf_folder import CONFIG, GENERATION, read_json
from ppo_jax.hf_keys import (
    ACTIVATIONS,
    ARCHITECTURES,
    FULL,
    LLAMA3,
    LOCAL,
    activation_key,
    eps_key,
    has_attention_bias,
    has_window,
    names_layers,
    size_keys,
)

# Of an original's config: said anew, or true of the original alone.
_STALE = (
    "rope_theta rope_scaling rotary_pct rotary_emb_base rope_local_base_freq rope_parameters "
    "sliding_window_pattern _sliding_window_pattern torch_dtype auto_map transformers_version "
    "_name_or_path architectures num_labels id2label label2id problem_type ppo_jax_reward_bias"
).split()
# transformers' heads have no bias: a reward model's is kept beside them, for whoever adds it.
REWARD_BIAS = "ppo_jax_reward_bias"


def write_model_config(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    *,
    labels: int | None = None,
    bias: float | None = None,
    origin: Path | None = None,
) -> None:
    """Write config.json and generation_config.json in the form transformers 5 reads.

    What the files of `origin` (a folder of the same family) say beyond the model's shape goes
    along: dropout rates, sampling defaults. `labels`: as a sequence classifier of so many outputs;
    `bias`: of a reward model's head.
    Raises ConfigError when the switches are not those of a model of `config.family`.
    """
    from transformers import CONFIG_MAPPING

    special, carried = _special_ids(config), _carried(origin, config.family)
    keys = _shape(config) | special | {"dtype": dtype}
    keys["architectures"] = [ARCHITECTURES[config.family][labels is not None]]
    spelling = activation_key(config.family)
    if ACTIVATIONS.get(carried.get(spelling, "")) == config.activation:
        keys[spelling] = carried[spelling]  # one function may have several names
    if labels is not None:
        keys["num_labels"] = labels
    if bias is not None:
        keys[REWARD_BIAS] = bias
    make = CONFIG_MAPPING[config.family].from_dict
    generation = {} if origin is None else _json(origin / GENERATION)
    padless = carried and make(carried).pad_token_id is generation.get("pad_token_id") is None
    unread = config.eos_token_ids[:1] == (config.pad_token_id,)
    if (padless and labels is None) or (bias is not None and unread):
        # Padding with an EOS id, as we do, is no trait of the model. A classifier needs some id to
        # read several rows at once, but would not read it: a reward model reads the EOS.
        special["pad_token_id"] = keys["pad_token_id"] = None
    make(carried | keys).save_pretrained(folder)
    generation = {**generation, **special}
    generation.pop("transformers_version", None)
    (folder / GENERATION).write_text(json.dumps(generation, indent=2) + "\n")
    _check_read_back(folder, config)


def _special_ids(config: ModelConfig) -> dict[str, Any]:
    eos = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
    }


def _carried(origin: Path | None, family: str) -> dict[str, Any]:
    raw = {} if origin is None else _json(origin / CONFIG)
    if raw.get("model_type") != family:
        return {}
    return {key: value for key, value in raw.items() if key not in _STALE}


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _shape(config: ModelConfig) -> dict[str, Any]:
    """The keys that describe the network."""
    family = config.family
    keys: dict[str, Any] = {
        "model_type": family,
        **{theirs: getattr(config, ours) for ours, theirs in size_keys(family).items()},
        eps_key(family): config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        activation_key(family): _activation(config),
    }
    if has_attention_bias(family):
        keys["attention_bias"] = config.out_bias
    if family == "llama":
        keys["mlp_bias"] = config.mlp_bias
    if family == "gpt_neox":
        keys["use_parallel_residual"] = config.parallel_residual
    if family.startswith("gemma"):
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        keys |= {
            "query_pre_attn_scalar": round(scale**-2),
            # Gemma 3's code never applies one: what cannot be said comes back as a difference.
            "attn_logit_softcapping": config.attention_softcap if family == "gemma2" else None,
            "final_logit_softcapping": config.logit_softcap,
        }
    if has_window(family):
        keys["sliding_window"] = config.window
    if names_layers(family):
        keys["layer_types"] = [LOCAL if local else FULL for local in config.is_local]
    if family.startswith("qwen"):
        keys["use_sliding_window"] = config.window is not None
    if config.position == "rope":
        keys["rope_parameters"] = _rope_parameters(config)
    return keys


def _activation(config: ModelConfig) -> str:
    if config.family == "gpt2" and config.activation == "gelu_tanh":
        return "gelu_new"  # the same formula, under the name that GPT-2's files have
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    rope = _rope(config.rope_theta, config.rope_scaling)
    if config.family == "gpt_neox":
        rotary = config.head_dim if config.rotary_dim is None else config.rotary_dim
        share = rotary / config.head_dim
        if int(config.head_dim * share) < rotary:  # as it is read: 49 * (1 / 49) is below 1
            share = math.nextafter(share, 1.0)
        rope["partial_rotary_factor"] = share
    if config.family != "gemma3_text":
        return rope
    theta = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    return {FULL: rope, LOCAL: _rope(theta, None)}


def _rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": scaling.factor}
    keys = {theirs: getattr(scaling, ours) for theirs, ours in LLAMA3.items()}
    return {"rope_type": "llama3", "rope_theta": theta, **keys}


def _check_read_back(folder: Path, config: ModelConfig) -> None:
    """What was written must describe the same network: else the family has no word for it."""
    again = read_model_config(folder)
    for field in dataclasses.fields(ModelConfig):
        meant, read = (getattr(c, field.name) for c in (config, again))
        if meant != read:
            raise ConfigError(
                f"{field.name}={meant}: a {config.family} config.json cannot say it, it would be "
                f"read as {read}; nearest valid: model.shape.{field.name}={read}"
            )
