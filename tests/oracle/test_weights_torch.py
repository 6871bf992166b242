"""Weights of every family: transformers reads what is written, and the other way round."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_families import saved, torch_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from builders import row_states
from family_configs import FAMILIES, IDS, VOCAB, first_case, hf_config
from ppo_jax.decoder import Decoder
from ppo_jax.hf_config import read_model_config
from ppo_jax.model import value_head
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.weights import load_classifier, load_hf, save_hf
from trees import assert_same

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
TOKENS = torch.arange(2 * 20).reshape(2, 20) * 7 % VOCAB
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def reload(auto, folder):
    """A model by transformers, which must find each of its tensors and no other."""
    model, info = auto.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, attn_implementation="eager"
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert not info.get("error_msgs")
    return model.eval()


def assert_same_tensors(model, other):
    state = model.state_dict()
    assert state.keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name


@pytest.mark.parametrize("id_", IDS)
def test_round_trip(tmp_path, id_):
    """theirs -> ours -> theirs and ours -> theirs -> ours, to the bit."""
    model = torch_model(id_)
    config, params = load_hf(saved(model, tmp_path / "theirs"))
    save_hf(tmp_path / "ours", config, params, byte_tokenizer(), origin=tmp_path / "theirs")
    again = reload(AutoModelForCausalLM, tmp_path / "ours")
    assert again.dtype == torch.float32 and type(again) is type(model)
    assert_same_tensors(again, model)
    with torch.no_grad():  # what config.json says is read as it was meant
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    same_config, same_params = load_hf(tmp_path / "ours")
    assert same_config == config
    assert_same(same_params, params)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert tokenizer.encode("aé") == [97, 195, 169]


@pytest.mark.parametrize("shards", ["single", "sharded"])
@pytest.mark.parametrize("dtype", TORCH)
@EVERY_FAMILY
def test_round_trip_of_files(tmp_path, family, dtype, shards):
    """In every precision, in one file and in several."""
    model = torch_model(first_case(family)).to(TORCH[dtype])
    theirs, limit = ("10KB", 10e3) if shards == "sharded" else ("5GB", 5e9)
    folder = saved(model, tmp_path / "theirs", max_shard_size=theirs)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards == "sharded")
    config, params = load_hf(folder)
    save_hf(tmp_path / "ours", config, params, None, dtype=dtype, max_shard_bytes=limit)
    again = reload(AutoModelForCausalLM, tmp_path / "ours")
    assert again.dtype == TORCH[dtype]
    assert_same_tensors(again, model)
    assert_same(load_hf(tmp_path / "ours")[1], params)


def our_scores(config, params, head):
    mask_BS = jnp.ones(TOKENS.shape, bool)
    hidden_BSD = row_states(Decoder(config), params, jnp.asarray(TOKENS.numpy()), mask_BS)
    return np.asarray(value_head(head, hidden_BSD[:, -1]))


@EVERY_FAMILY
def test_classifier(tmp_path, family):
    """A critic or reward model: AutoModelForSequenceClassification with one output."""
    model = torch_model(first_case(family), labels=1, pad_token_id=VOCAB - 1)
    config, params, head = load_classifier(saved(model, tmp_path / "theirs"))
    assert "lm_head" not in params and head["kernel"].shape == (32, 1)
    with torch.no_grad():
        scores = model(TOKENS).logits[:, 0].numpy()
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(our_scores(config, params, head), scores, atol=1e-4, rtol=0)
    save_hf(tmp_path / "ours", config, params, None, head=head)
    again = reload(AutoModelForSequenceClassification, tmp_path / "ours")
    assert type(again) is type(model) and again.config.num_labels == 1
    assert_same_tensors(again, model)
    with torch.no_grad():
        np.testing.assert_array_equal(again(TOKENS).logits[:, 0].numpy(), scores)


@EVERY_FAMILY
def test_language_model_saved_as_classifier(tmp_path, family):
    """The critic of a run: the trunk of a language model, and a head of its own."""
    model = torch_model(first_case(family))
    config, params = load_hf(saved(model, tmp_path / "theirs"))
    head = {"kernel": np.linspace(-1, 1, 32, dtype=np.float32)[:, None]}
    save_hf(tmp_path / "critic", config, params, None, head=head)
    critic = reload(AutoModelForSequenceClassification, tmp_path / "critic")
    params.pop("lm_head", None)
    with torch.no_grad():
        scores = critic(TOKENS).logits[:, 0].numpy()
    np.testing.assert_allclose(our_scores(config, params, head), scores, atol=1e-4, rtol=0)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_gpt2_of_the_hub(tmp_path):
    """No `transformer.` before the names, and the causal masks stored beside the weights."""
    model = torch_model("gpt2-tied")
    folder = saved(model, tmp_path / "theirs")
    expected = load_hf(folder)[1]

    def change(tensors):
        tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        assert "wte.weight" in tensors and "h.0.attn.c_attn.bias" in tensors
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = torch.tril(torch.ones(1, 1, 64, 64))
            tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        return tensors

    rewrite(folder, change)
    assert_same(load_hf(folder)[1], expected)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert_same_tensors(theirs, model)  # transformers reads such a file as the same model too


@pytest.mark.parametrize("head", ["embed_out.weight", "lm_head.weight"])
def test_pythia_of_the_hub(tmp_path, head):
    """Masks and frequencies stored beside the weights, and either name of the head."""
    folder = saved(torch_model("gpt_neox-parallel"), tmp_path / "theirs")
    expected = load_hf(folder)[1]

    def change(tensors):
        (found,) = [name for name in tensors if name in ("embed_out.weight", "lm_head.weight")]
        tensors[head] = tensors.pop(found)
        for i in range(2):
            prefix = f"gpt_neox.layers.{i}.attention"
            tensors[f"{prefix}.bias"] = torch.tril(torch.ones(1, 1, 64, 64)).bool()
            tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(1)
        return tensors

    rewrite(folder, change)
    assert_same(load_hf(folder)[1], expected)


OLD_ROPE = {  # as transformers 4 wrote them
    "llama-gqa": {"rope_theta": 10000.0, "rope_scaling": None},
    "llama-llama3": {
        "rope_theta": 1e3,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 12,
        },
    },
    "llama-linear": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "mistral-window": {"rope_theta": 10000.0},
    "qwen2-window": {"rope_theta": 10000.0, "rope_scaling": None},
    "qwen3-window": {"rope_theta": 10000.0, "rope_scaling": None},
    "gpt_neox-parallel": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "rope_scaling": None},
    "gpt_neox-rotary-half": {"rotary_pct": 0.5, "rotary_emb_base": 1000},
    "gemma2-softcaps": {"rope_theta": 10000.0},
    "gemma3_text-two-thetas": {"rope_theta": 1e6, "rope_local_base_freq": 10000.0}
    | {"sliding_window_pattern": 3, "rope_scaling": None},
    "gemma3_text-linear-softcap": {"rope_theta": 1e3, "rope_local_base_freq": 30.0}
    | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


@pytest.mark.parametrize("id_", OLD_ROPE)
def test_config_of_transformers_4(tmp_path, id_):
    """Its keys are read as the same network as those that transformers 5 writes for it."""
    folder = saved(torch_model(id_), tmp_path / "theirs")
    expected = read_model_config(folder)
    keys = hf_config(id_)
    keys.pop("rope_parameters", None)
    if "sliding_window_pattern" in OLD_ROPE[id_]:
        keys.pop("layer_types")
    keys |= OLD_ROPE[id_] | {"torch_dtype": "float16", "transformers_version": "4.40.0"}
    (folder / "config.json").write_text(json.dumps(keys))
    assert read_model_config(folder) == expected
    # What is written in its place says each thing once, in the new words.
    save_hf(tmp_path / "ours", *load_hf(folder), None, origin=folder)
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    stale = set(OLD_ROPE[id_]) | {"torch_dtype"}
    assert not stale & raw.keys() and raw["dtype"] == "float32" and "rope_parameters" in raw
    assert read_model_config(tmp_path / "ours") == expected
    reload(AutoModelForCausalLM, tmp_path / "ours")
