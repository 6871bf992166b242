"""Adapters against torch's PEFT: it loads ours, we load its own, the same logits and gradients."""

import copy
import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import load_file
from torch_families import saved, torch_model
from transformers import AutoModelForCausalLM

from builders import row_states
from family_configs import FAMILIES, VOCAB, first_case, model_config
from peft_builders import WEIGHTS, random_adapters
from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.decoder import Decoder, lora_scale
from ppo_jax.lora import attach, init_adapters, merge
from ppo_jax.model import unembed
from ppo_jax.peft_folder import read_adapters, write_adapters
from ppo_jax.weights import load_hf, save_hf

B, S, RANK = 2, 12, 3
QKV = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}
MLP = {"gpt2": r".*\.mlp\.c_(fc|proj)", "gpt_neox": r".*\.mlp\.dense_.*"}
CHOICES = ("names", "all-linear", "regex")


class Pair(NamedTuple):
    """One model, theirs and ours."""

    family: str
    theirs: torch.nn.Module
    config: ModelConfig
    params: dict

    def copy(self):
        """Theirs, to be changed: PEFT puts its layers into the model it is given."""
        return copy.deepcopy(self.theirs)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory) -> Pair:
    model = torch_model(first_case(request.param))
    folder = saved(model, tmp_path_factory.mktemp("model"))
    return Pair(request.param, model, *load_hf(folder))


def targets_of(family: str, choice: str):
    """target_modules as users of PEFT give them."""
    return {
        "names": QKV.get(family, ["q_proj", "v_proj"]),
        "all-linear": "all-linear",
        "regex": MLP.get(family, r"model\.layers\.\d+\.mlp\.(up|down)_proj"),
    }[choice]


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [B, S], the second row right-padded with random ids."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, size=(B, S))
    return ids, np.arange(S) < np.array([[S], [S - 5]])


def torch_logits(model, ids, mask) -> torch.Tensor:
    return model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()).logits


@functools.partial(jax.jit, static_argnums=0)
def our_logits(decoder, params, adapters, ids, mask):
    whole = attach(params, adapters)
    return unembed(decoder, whole, row_states(decoder, whole, ids, mask))


def assert_same_logits(pair, model, lora, adapters, seed):
    ids, mask = batch(seed)
    with torch.no_grad():
        theirs = torch_logits(model.eval(), ids, mask).numpy()
    decoder = Decoder(pair.config, remat="none", lora_scale=lora_scale(lora))
    ours = np.asarray(our_logits(decoder, pair.params, adapters, ids, mask))
    assert np.abs(ours - theirs)[mask].max() <= 2e-4
    base = np.asarray(our_logits(decoder, pair.params, None, ids, mask))
    assert np.abs(ours - base)[mask].max() > 0.1  # the adapters are not idle


def our_adapters(pair, lora, seed):
    """As large as the weights: a product that is left out or turned would show."""
    return random_adapters(pair.config, lora, seed, scale=0.3)


@pytest.mark.parametrize("targets", [("*",), ("mlp.*",)], ids=["all", "mlp"])
def test_peft_loads_what_is_written(pair, tmp_path, targets):
    lora = LoraOptions(RANK, 5.0, targets)
    adapters = our_adapters(pair, lora, 1)
    write_adapters(tmp_path / "a", pair.config, lora, adapters, base="org/name", revision="abc")
    model = PeftModel.from_pretrained(pair.copy(), tmp_path / "a")
    loaded, file = (
        get_peft_model_state_dict(model),
        load_file(tmp_path / "a/adapter_model.safetensors"),
    )
    assert loaded.keys() == file.keys()  # none missing, none unexpected
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), file[name])
    config = model.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("org/name", "abc")
    assert config.inference_mode and config.task_type == "CAUSAL_LM"
    assert_same_logits(pair, model, lora, adapters, 2)


@pytest.mark.filterwarnings("error:.*fan_in_fan_out")  # PEFT's complaint about a wrong one
def test_fan_in_fan_out_is_what_peft_wants(pair, tmp_path):
    lora = LoraOptions(RANK)
    write_adapters(tmp_path / "a", pair.config, lora, our_adapters(pair, lora, 3), base=None)
    PeftModel.from_pretrained(pair.copy(), tmp_path / "a")


@pytest.mark.parametrize("choice", CHOICES)
def test_reads_what_peft_saves_and_gives_it_back(pair, tmp_path, choice):
    torch.manual_seed(4)
    options = LoraConfig(
        r=RANK,
        lora_alpha=4.5,
        target_modules=targets_of(pair.family, choice),
        fan_in_fan_out=pair.family == "gpt2",
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(pair.copy(), options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    lora, adapters = read_adapters(tmp_path / "theirs", pair.config)
    assert (lora.rank, lora.alpha) == (RANK, 4.5)
    assert_same_logits(pair, model, lora, adapters, 5)
    write_adapters(tmp_path / "ours", pair.config, lora, adapters, base="b")
    theirs, ours = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")
    )
    assert theirs.keys() == ours.keys()
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name])
    # PEFT puts its layers where the rewritten config says, and nowhere else
    again = PeftModel.from_pretrained(pair.copy(), tmp_path / "ours")
    assert get_peft_model_state_dict(again).keys() == theirs.keys()


def test_merged_export_is_pefts(pair, tmp_path):
    lora = LoraOptions(RANK, 7.0)
    adapters = our_adapters(pair, lora, 6)
    merged = merge(attach(pair.params, adapters), lora_scale(lora))
    save_hf(tmp_path / "merged", pair.config, merged, None)
    ours, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    write_adapters(tmp_path / "a", pair.config, lora, adapters, base=None)
    theirs = PeftModel.from_pretrained(pair.copy(), tmp_path / "a").merge_and_unload()
    state = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.allclose(weight, state[name], rtol=1e-5, atol=1e-6), name
    ids, mask = batch(7)
    with torch.no_grad():
        difference = torch_logits(ours.eval(), ids, mask) - torch_logits(theirs.eval(), ids, mask)
    assert difference.abs()[torch.from_numpy(mask)].max() <= 2e-4


def test_gradients_are_torchs(pair, tmp_path):
    lora = LoraOptions(RANK, 5.0)
    adapters = our_adapters(pair, lora, 8)
    ids, mask = batch(9)
    both = mask[:, :-1] & mask[:, 1:]

    write_adapters(tmp_path / "a", pair.config, lora, adapters, base=None)
    model = PeftModel.from_pretrained(pair.copy(), tmp_path / "a", is_trainable=True)
    logits = torch_logits(model.eval(), ids, mask)
    torch.nn.functional.cross_entropy(
        logits[:, :-1][both], torch.from_numpy(ids)[:, 1:][both]
    ).backward()
    theirs = {
        name.replace(".default", ""): weight.grad.numpy()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }

    decoder = Decoder(pair.config, remat="none", lora_scale=lora_scale(lora))

    def loss(adapters):
        logits_BSV = our_logits(decoder, pair.params, adapters, ids, mask)[:, :-1]
        logprobs_BSV = jax.nn.log_softmax(logits_BSV)
        taken_BS = jnp.take_along_axis(logprobs_BSV, ids[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(both, taken_BS, 0.0)) / both.sum()

    # A gradient turns on its way to PEFT's names just as its adapter does.
    write_adapters(tmp_path / "g", pair.config, lora, jax.grad(loss)(adapters), base=None)
    ours = load_file(tmp_path / "g" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        assert np.abs(ours[name] - gradient).max() <= 1e-4 * scale, name


def test_every_field_of_pefts_config_is_known(tmp_path: Path):
    """A default config is plain LoRA: no field of the installed PEFT is refused by itself."""
    config, lora = model_config("llama-gqa"), LoraOptions(RANK)
    adapters = init_adapters(config, lora, jax.random.key(0))
    write_adapters(tmp_path / "a", config, lora, adapters, base="b")
    fields = LoraConfig(r=RANK, lora_alpha=6, target_modules="all-linear").to_dict()
    fields = {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(fields))
    assert read_adapters(tmp_path / "a", config)[0].alpha == 6.0
