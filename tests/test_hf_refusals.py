"""What a config.json may ask for and is not implemented: one line names file, key and value."""

import json

import pytest

from family_configs import FAMILIES, FULL, LOCAL, first_case, hf_config
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, read_model_config
from ppo_jax.hf_keys import activation_key, eps_key, size_keys

CHUNKED = "chunked_attention"
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
NESTED = {FULL: {"rope_type": "default", "rope_theta": 3.0}}


def refused(tmp_path, id_, changes, words):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(id_) | changes))
    with pytest.raises(ConfigError) as error:
        read_model_config(tmp_path)
    assert "\n" not in str(error.value)
    for word in [str(tmp_path / "config.json"), *words]:
        assert word in str(error.value), (word, str(error.value))


@pytest.mark.parametrize("family", FAMILIES)
def test_refused_in_every_family(tmp_path, family):
    id_, sizes = first_case(family), size_keys(family)
    act, eps, layers = activation_key(family), eps_key(family), sizes["num_layers"]
    for changes, words in [
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "bits"]),
        ({"is_causal": False}, ["is_causal", "false"]),
        ({"per_layer_config": {"0": {}}}, ["per_layer_config"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder", "true"]),
        ({"pruned_heads": {"0": [1]}}, ["pruned_heads", "[1]"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention", "true"]),
        ({"add_cross_attention": True}, ["add_cross_attention", "true"]),
        ({act: "quick_gelu"}, [act, '"quick_gelu"', "gelu_new"]),
        ({eps: "small"}, [eps, "small"]),
        ({eps: float("nan")}, [eps, "NaN"]),
        ({"vocab_size": None}, ["vocab_size", "None"]),
        ({layers: 0}, [layers]),
        ({sizes["num_heads"]: 0}, [sizes["num_heads"], "0"]),
        ({sizes["max_positions"]: -3}, [sizes["max_positions"], "-3"]),
        ({"eos_token_id": "end"}, ["eos_token_id", "end"]),
        ({"eos_token_id": [1, -1]}, ["eos_token_id", "[1, -1]"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "yes"]),
        ({"initializer_range": "wide"}, ["initializer_range", "wide"]),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, ["auto_map", "own.Model"]),
    ]:
        refused(tmp_path, id_, changes, words)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_refused_ropes(tmp_path, family):
    nested = family == "gemma3_text"
    put = lambda rope: {"rope_parameters": {FULL: rope} if nested else rope}
    base = {"rope_theta": 1e4} | ({"partial_rotary_factor": 1.0} if family == "gpt_neox" else {})
    llama3 = base | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for rope, words in [
        (base | YARN, ['"yarn"', "llama3"]),
        (base | {"rope_type": "dynamic", "factor": 2.0}, ['"dynamic"', "linear"]),
        (base | {"rope_type": "linear"}, ["linear", "factor"]),
        (base | {"rope_type": "linear", "factor": None}, ["factor", "null"]),
        (base | {"rope_type": "linear", "factor": 0}, ["factor", "0"]),
        (llama3, ["llama3", "factor"]),
        (base | {"factor": 4.0}, ["factor = 4.0", '"default"']),  # a type was meant beside it
        (base | {"mrope_section": [2, 2]}, ["mrope_section", '"default"']),
        (base | {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, ["beta_fast", "linear"]),
        (base | {"rope_theta": "big"}, ["rope_theta", '"big"']),
        (base | {"rope_theta": 0.0}, ["rope_theta", "0.0"]),
        (base | {"partial_rotary_factor": 1.5}, ["partial_rotary_factor", "1.5"]),
    ]:
        refused(tmp_path, first_case(family), put(rope), words)
    other = base if nested else NESTED  # one rope for all where each kind has its own, or reverse
    refused(tmp_path, first_case(family), {"rope_parameters": other}, ["rope_parameters", FULL])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt2", "gpt_neox")])
def test_part_of_a_head_rotates_in_gpt_neox_alone(tmp_path, family):
    words = ["partial_rotary_factor", "0.5", family]
    refused(tmp_path, first_case(family), {"partial_rotary_factor": 0.5}, words)


SOME = {"layer_types": [FULL, LOCAL]}


@pytest.mark.parametrize(
    ("id_", "changes", "words"),
    [
        ("llama-gqa", {"layer_types": [FULL, CHUNKED]}, ["layer_types", CHUNKED, FULL]),
        ("llama-gqa", SOME | {"sliding_window": 4}, ["layer_types", LOCAL]),
        ("mistral-window", SOME, ["layer_types", FULL, "sliding_window = 5"]),
        ("mistral-plain", SOME, ["layer_types", LOCAL, "null"]),
        ("qwen2-plain", SOME, ["layer_types", LOCAL, "sliding_window = null"]),
        ("qwen3-window", {"layer_types": [FULL, LOCAL, CHUNKED]}, ["layer_types", CHUNKED]),
        ("qwen3-window", {"layer_types": [FULL, LOCAL, "mamba?"]}, ["layer_types", "mamba?"]),
        ("gemma2-softcaps", {"layer_types": [FULL]}, ["layer_types", "2", "1"]),
        ("gemma2-softcaps", {"sliding_window": None}, ["layer_types", "sliding_window = null"]),
        ("gemma2-softcaps", {"sliding_window": 0}, ["sliding_window = 0"]),
        ("gemma2-softcaps", {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar = 0"]),
        ("gemma2-softcaps", {"attn_logit_softcapping": 0.0}, ["attn_logit_softcapping = 0.0"]),
        ("gemma2-softcaps", {"final_logit_softcapping": -1.0}, ["final_logit_softcapping = -1.0"]),
        (
            "gemma3_text-two-thetas",
            {"attn_logit_softcapping": 50.0},  # in the file, but transformers never applies it
            ["attn_logit_softcapping = 50.0", "null"],
        ),
        (
            "gemma3_text-two-thetas",
            {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}},
            [LOCAL, '"linear"', '"default"'],
        ),
        ("gpt2-tied", {"scale_attn_by_inverse_layer_idx": True}, ["inverse_layer_idx", "true"]),
        ("gpt2-tied", {"scale_attn_weights": False}, ["scale_attn_weights", "false"]),
        ("gpt2-tied", {"n_head": 3}, ["n_embd", "32", "3"]),
        ("gpt2-tied", {"head_dim": 16}, ["head_dim = 16", "n_embd / n_head = 8"]),
        ("gpt_neox-parallel", {"head_dim": 16}, ["head_dim = 16", "= 8"]),
        ("gpt_neox-parallel", {"rotary_pct": 0.0}, ["partial_rotary_factor", "0.0"]),
        ("gpt_neox-parallel", {"rotary_pct": None}, ["partial_rotary_factor", "null"]),
        ("gpt_neox-parallel", {"rotary_pct": 0.1}, ["partial_rotary_factor", "0.1", "1 to 8"]),
        ("gpt_neox-parallel", {"rope_theta": 5.0}, ["rope_theta = 5.0", "10000"]),
        (
            "gpt_neox-parallel",
            {"partial_rotary_factor": 0.5, "rotary_pct": 0.25},
            ["partial_rotary_factor = 0.5", "0.25"],
        ),
        ("llama-gqa", {"num_key_value_heads": 3}, ["num_key_value_heads", "4", "3"]),
        ("llama-gqa", {"head_dim": 7}, ["head_dim", "7"]),
        ("llama-gqa", {"pretraining_tp": 2}, ["pretraining_tp", "2"]),
        ("llama-gqa", {"attention_bias": "yes"}, ["attention_bias", "yes"]),
        ("llama-gqa", {"model_type": "bert"}, ["model_type", '"bert"', "gpt_neox"]),
        ("llama-gqa", {"model_type": "gemma3"}, ["model_type", '"gemma3"', "gemma3_text"]),
        ("llama-gqa", {"model_type": None}, ["model_type", "null"]),
    ],
)
def test_refused_in_one_family(tmp_path, id_, changes, words):
    refused(tmp_path, id_, changes, words)


@pytest.mark.parametrize("named", [5, "LlamaForSequenceClassification", {"a": 1}])
def test_architectures_are_a_list(tmp_path, named):
    keys = hf_config("llama-gqa") | {"architectures": named}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(ConfigError, match="architectures = .*expected a list"):
        classifier_labels(tmp_path)
