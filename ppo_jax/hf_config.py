"""config.json and generation_config.json to a ModelConfig, for every family.

transformers' own config classes fill in what a file leaves out and read the keys of version 4
(`rope_theta`, `rotary_pct`, `sliding_window_pattern`) as well as those of version 5.
"""

import json
import math
from pathlib import Path
from typing import Any

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import CONFIG, GENERATION, read_json, short
from ppo_jax.hf_keys import (
    ACTIVATIONS,
    FAMILIES,
    FULL,
    LLAMA3,
    LOCAL,
    SWITCHES,
    activation_key,
    eps_key,
    has_attention_bias,
    has_window,
    names_layers,
    size_keys,
)

# Keys that change the network: only these values are implemented.
_SUPPORTED = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False,),
    "is_causal": (True,),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "pretraining_tp": (1, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False, None),
}
_SUPPORTED_OF = {"gemma3_text": {"attn_logit_softcapping": (None,)}}  # read, and never applied


def read_model_config(path: str | Path) -> ModelConfig:
    """Shape and switches of the model in a Hugging Face folder.

    EOS ids are those of config.json and generation_config.json, the latter's first. Raises
    ConfigError naming file, field, value and what is supported.
    """
    file = Path(path) / CONFIG
    theirs = _parse(file, read_json(file))
    generation = Path(path) / GENERATION
    defaults = read_json(generation) if generation.is_file() else {}
    eos = _eos_ids(file, theirs.eos_token_id, generation, defaults.get("eos_token_id"))
    pad, bos = (_special_id(theirs, defaults, f"{name}_token_id") for name in ("pad", "bos"))
    return ModelConfig(
        family=theirs.model_type,
        **_sizes(file, theirs),
        **_positions(file, theirs),
        **_window(file, theirs),
        **_switches(file, theirs),
        norm_eps=_number(file, theirs, eps_key(theirs.model_type)),
        tie_embeddings=bool(theirs.tie_word_embeddings),
        init_std=_number(file, theirs, "initializer_range"),
        bos_token_id=bos,
        eos_token_ids=eos,
        # Any id serves as padding, for masks come from lengths; an EOS id reads best in a dump.
        pad_token_id=pad if pad is not None else (*eos, 0)[0],
    )


def classifier_labels(path: str | Path) -> int | None:
    """Outputs of a sequence classifier's head; None for a folder that holds a language model."""
    file = Path(path) / CONFIG
    raw = read_json(file)
    named = raw.get("architectures") or []
    if not isinstance(named, list):
        raise ConfigError(f"{file}: architectures = {short(named)}, expected a list of class names")
    if not any(str(name).endswith("ForSequenceClassification") for name in named):
        return None
    return int(_parse(file, raw).num_labels)


def padding_id(path: str | Path) -> int | None:
    """The padding token that config.json names: a classifier of transformers does not read it."""
    file = Path(path) / CONFIG
    return _parse(file, read_json(file)).pad_token_id


def _parse(file: Path, raw: dict[str, Any]) -> Any:
    """transformers' config object."""
    from transformers import CONFIG_MAPPING

    family: Any = raw.get("model_type")
    if family not in FAMILIES:
        hint = "; its text model alone is gemma3_text" if family == "gemma3" else ""
        raise ConfigError(
            f"{file}: model_type = {short(family)} is not supported, only "
            f"{', '.join(FAMILIES)}{hint}"
        )
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise ConfigError(
            f"{file}: auto_map = {short(raw['auto_map'])} asks for modelling code of its own, "
            f"which is not run: expected a plain {family} model"
        )
    for key, allowed in (_SUPPORTED | _SUPPORTED_OF.get(family, {})).items():
        if raw.get(key, allowed[0]) not in allowed:
            names = " or ".join(json.dumps(a) for a in allowed)
            raise ConfigError(
                f"{file}: {key} = {short(raw[key])} is not supported, only {names} is"
            )
    for key in size_keys(family).values():
        if raw.get(key) is not None:
            _check_size(file, key, raw[key])
    try:
        return CONFIG_MAPPING[family].from_dict(raw)
    except Exception as error:  # transformers and huggingface_hub raise what they like
        text = " ".join(str(error).split())
        text = text if len(text) <= 300 else f"{text[:140]} ... {text[-155:]}"
        raise ConfigError(f"{file}: {text}") from None


def _sizes(file: Path, theirs: Any) -> dict[str, int]:
    keys = size_keys(theirs.model_type)
    found: dict[str, Any] = {field: getattr(theirs, key, None) for field, key in keys.items()}
    for field in ("embed_dim", "num_heads"):
        _check_size(file, keys[field], found[field])
    heads, width = found["num_heads"], found["embed_dim"]
    defaults = {"num_kv_heads": heads, "head_dim": width // heads, "mlp_dim": 4 * width}
    found = {**found, **{k: v for k, v in defaults.items() if found.get(k) is None}}
    for field, value in found.items():
        _check_size(file, keys.get(field, field), value)
    own = getattr(theirs, "head_dim", None)
    if keys.get("head_dim") is None and own not in (None, found["head_dim"]):
        raise ConfigError(
            f"{file}: head_dim = {short(own)} is not supported for {theirs.model_type}, only "
            f"{keys['embed_dim']} / {keys['num_heads']} = {found['head_dim']} is"
        )
    for key, whole, part in (
        (keys["embed_dim"], width, heads if keys.get("head_dim") is None else 1),
        ("num_key_value_heads", heads, found["num_kv_heads"]),
    ):
        if whole % part:
            raise ConfigError(f"{file}: {key} does not fit: {whole} is not a multiple of {part}")
    return found


def _check_size(file: Path, key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{file}: {key} = {short(value)}, expected a positive integer")


def _number(file: Path, theirs: Any, key: str, *, positive: bool = False) -> float:
    """A finite number; `theirs` is a config or one of its dictionaries."""
    value: Any = theirs.get(key) if isinstance(theirs, dict) else getattr(theirs, key)
    least = math.ulp(0.0) if positive else 0.0
    if type(value) not in (int, float) or not least <= value < math.inf:
        expected = "a positive number" if positive else "a number of at least 0"
        raise ConfigError(f"{file}: {key} = {short(value)}, expected {expected}")
    return float(value)


def _positions(file: Path, theirs: Any) -> dict[str, Any]:
    if theirs.model_type == "gpt2":
        return {}
    rope, by_kind = theirs.rope_parameters, theirs.model_type == "gemma3_text"
    if set(rope) != {FULL, LOCAL} if by_kind else {FULL, LOCAL} & set(rope):
        expected = f"{FULL} and {LOCAL}, each with its own" if by_kind else "one rope of all layers"
        raise ConfigError(f"{file}: rope_parameters = {short(rope)}, expected {expected}")
    if not by_kind:
        theta, scaling, rotary = _rope(file, theirs, rope)
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": rotary}
    theta, scaling, _ = _rope(file, theirs, rope[FULL])
    local_theta, local_scaling, _ = _rope(file, theirs, rope[LOCAL])
    if local_scaling is not None:
        raise ConfigError(
            f'{file}: rope type of {LOCAL} = "{local_scaling.kind}" is not supported, only '
            '"default" is'
        )
    return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local_theta}


def _rope(file: Path, theirs: Any, rope: dict[str, Any]):
    """(theta, scaling, rotary dimensions or None)."""
    number = lambda key: _number(file, rope, key, positive=True)
    kind, theta, rotary = rope.get("rope_type", "default"), number("rope_theta"), None
    factor = "partial_rotary_factor"
    if theirs.model_type == "gpt_neox":
        head_dim = theirs.hidden_size // theirs.num_attention_heads
        rotary = int(head_dim * number(factor))
        if not 1 <= rotary <= head_dim:
            raise ConfigError(
                f"{file}: {factor} = {rope[factor]} rotates {rotary} of the {head_dim} dimensions "
                f"of a head, expected 1 to {head_dim}"
            )
        for key in (factor, "rope_theta"):  # beside the family's own keys, and then not read
            if getattr(theirs, key, None) not in (None, rope[key]):
                raise ConfigError(
                    f"{file}: {key} = {getattr(theirs, key)}, expected {rope[key]} as the other "
                    "keys say"
                )
    elif (share := rope.get(factor, getattr(theirs, factor, None))) not in (1, None):
        raise ConfigError(
            f"{file}: {factor} = {short(share)} is not supported for {theirs.model_type}, only 1 is"
        )
    _check_rope_keys(file, kind, rope)
    if kind == "default":
        return theta, None, rotary
    if kind == "linear":
        return theta, RopeScaling("linear", number("factor")), rotary
    if kind != "llama3":
        raise ConfigError(
            f'{file}: rope type = {short(kind)} is not supported, only "default", "linear" or '
            '"llama3" is'
        )
    scaling = {ours: number(key) for key, ours in LLAMA3.items()}
    positions = int(scaling.pop("original_max_positions"))
    return theta, RopeScaling("llama3", **scaling, original_max_positions=positions), rotary


def _check_rope_keys(file: Path, kind: str, rope: dict[str, Any]) -> None:
    """A key that this kind does not read was meant for another, as `factor` without a type is."""
    read = {"linear": {"factor"}, "llama3": set(LLAMA3)}.get(kind, set())
    read |= {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for key, value in rope.items():
        if key not in read and value is not None and kind in ("default", "linear", "llama3"):
            raise ConfigError(
                f"{file}: {key} = {short(value)} is not supported with rope type {short(kind)}"
            )


def _window(file: Path, theirs: Any) -> dict[str, Any]:
    """Which layers have a window; Llama has none, whatever its file says."""
    family, window = theirs.model_type, None
    if has_window(family):
        window = theirs.sliding_window
    if window is not None:
        _check_size(file, "sliding_window", window)
    usual = [FULL if window is None else LOCAL] * theirs.num_hidden_layers
    kinds = getattr(theirs, "layer_types", None) or usual
    allowed = {LOCAL, FULL} if window is not None and names_layers(family) else set(usual)
    unknown = [kind for kind in kinds if kind not in allowed]
    if unknown:
        where = f"{family} with sliding_window = {short(window)}"
        raise ConfigError(
            f"{file}: layer_types holds {short(unknown[0])}, expected of {where}: "
            f"{' or '.join(sorted(allowed))}"
        )
    local = tuple(kind == LOCAL for kind in kinds)
    if not any(local):
        return {}
    return {"window": window, "local_layers": None if all(local) else local}


def _switches(file: Path, theirs: Any) -> dict[str, Any]:
    family = theirs.model_type
    key = activation_key(family)
    activation = getattr(theirs, key)
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"{file}: {key} = {short(activation)} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    found = {"activation": ACTIVATIONS[activation], **SWITCHES.get(family, {})}
    if has_attention_bias(family) and theirs.attention_bias:
        found |= {"qkv_bias": True, "out_bias": True}
    if family == "llama" and theirs.mlp_bias:
        found["mlp_bias"] = True
    if family == "gpt_neox":
        found["parallel_residual"] = bool(theirs.use_parallel_residual)
    if family.startswith("gemma"):
        positive = lambda key: _number(file, theirs, key, positive=True)
        cap = lambda key: None if getattr(theirs, key) is None else positive(key)
        found |= {
            "attention_scale": positive("query_pre_attn_scalar") ** -0.5,
            "attention_softcap": cap("attn_logit_softcapping"),
            "logit_softcap": cap("final_logit_softcapping"),
        }
    return found


def _special_id(theirs: Any, generation: dict[str, Any], key: str) -> int | None:
    """config.json's id, else generation_config.json's."""
    ids = getattr(theirs, key, None), generation.get(key)
    return next((i for i in ids if type(i) is int and i >= 0), None)


def _eos_ids(file: Path, own: Any, generation: Path, preferred: Any) -> tuple[int, ...]:
    ids: list[int] = []
    for source, value in ((generation, preferred), (file, own)):
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int and v >= 0 for v in values):
            raise ConfigError(
                f"{source}: eos_token_id = {short(value)}, expected an id or a list of ids"
            )
        ids += values
    return tuple(dict.fromkeys(ids))
