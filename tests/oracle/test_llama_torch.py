"""Logits and gradients of the decoder against torch's LlamaForCausalLM, float32."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_jax.config import ModelConfig
from ppo_jax.model import Decoder, stack_layers, trunk, unembed, unstack_layers
from ppo_jax.weights import load_hf

torch.set_num_threads(1)
B, S, VOCAB = 3, 48, 101

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    # torch gives the input embedding of a padding id no gradient, even where it is a real token.
    "pad_token_id": None,
}


def llama3(theta, factor, low, high, original):
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# The llama3 cases see positions up to S - 1, beyond their original context.
CASES = {
    "gqa": {},
    "mha-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "mqa": {"num_key_value_heads": 1},
    "wide-heads": {"head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1}
    | {"hidden_size": 36},
    "narrow-heads-untied": {"head_dim": 4, "tie_word_embeddings": False},
    "nine-heads": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
    "theta-eps": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    | {"rms_norm_eps": 1e-3, "num_hidden_layers": 3},
    "small-eps": {"rms_norm_eps": 1e-6, "intermediate_size": 80, "num_hidden_layers": 1},
    "llama3": {"rope_parameters": llama3(1e4, 8.0, 1.0, 4.0, 16)},
    "llama3-untied": {"rope_parameters": llama3(5e5, 32.0, 1.0, 4.0, 24), "head_dim": 16}
    | {"tie_word_embeddings": False},
    "llama3-mqa": {"rope_parameters": llama3(100.0, 4.0, 2.0, 9.0, 12), "head_dim": 32}
    | {"num_key_value_heads": 1, "rms_norm_eps": 1e-4},
}
PADDINGS = ("none", "left", "right")


class Pair(NamedTuple):
    """One model, theirs and ours."""

    theirs: LlamaForCausalLM
    config: ModelConfig
    params: dict


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory) -> Pair:
    torch.manual_seed(list(CASES).index(request.param))
    model = LlamaForCausalLM(LlamaConfig(**BASE | CASES[request.param])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Wide enough for attention and predictions far from uniform; norm scales beside 1.
            weight.normal_(1.0, 0.2) if "norm" in name else weight.normal_(0.0, 0.3)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return Pair(model, *load_hf(folder))


def batch(padding: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [B, S]; rows of different length, the first whole; padding holds random ids."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[S], [S // 2 + 7], [5]])
    column = np.arange(S)
    mask = {
        "none": np.ones((B, S), bool),
        "left": column >= S - lengths,
        "right": column < lengths,
    }[padding]
    return rng.integers(0, VOCAB, size=(B, S)), mask


def torch_forward(model, ids, mask):
    """(logits, gradient of the mean cross-entropy by weight name) over the real tokens."""
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    model.zero_grad()
    logits = model(ids, attention_mask=mask.long(), position_ids=positions).logits
    both = mask[:, :-1] & mask[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][both], ids[:, 1:][both])
    loss.backward()
    gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    return logits.detach().numpy(), gradients


@functools.partial(jax.jit, static_argnums=0)
def jax_forward(decoder, params, ids, mask):
    """The same of the production decoder; the gradients as a tree."""

    def loss(params):
        logits = unembed(params, trunk(decoder, params, ids, mask))
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1)[..., 0]
        both = mask[:, :-1] & mask[:, 1:]
        return -jnp.sum(jnp.where(both, chosen, 0.0)) / jnp.sum(both), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, gradients


def by_torch_name(tree) -> dict[str, np.ndarray]:
    """Leaves of a trunk's tree under torch's names, in torch's orientation."""
    named = {
        "model.embed_tokens": tree["embed"]["embedding"],
        "model.norm": tree["final_norm"]["scale"],
    }
    if "lm_head" in tree:
        named["lm_head"] = tree["lm_head"]["kernel"].T
    for i, layer in enumerate(tree["layers"]):
        prefix = f"model.layers.{i}"
        for part in "qkvo":
            named[f"{prefix}.self_attn.{part}_proj"] = layer[part]["kernel"].T
        for part in ("gate", "up", "down"):
            named[f"{prefix}.mlp.{part}_proj"] = layer[part]["kernel"].T
        named[f"{prefix}.input_layernorm"] = layer["attn_norm"]["scale"]
        named[f"{prefix}.post_attention_layernorm"] = layer["mlp_norm"]["scale"]
    return {f"{name}.weight": np.asarray(leaf) for name, leaf in named.items()}


@pytest.mark.parametrize(
    "padding, layers",
    [("none", "list"), ("left", "list"), ("right", "list"), ("left", "stacked")],
)
def test_logits_and_gradients(pair, padding, layers):
    ids, mask = batch(padding, seed=PADDINGS.index(padding))
    their_logits, their_gradients = torch_forward(pair.theirs, ids, mask)
    params = stack_layers(pair.params) if layers == "stacked" else pair.params
    logits, gradients = jax_forward(Decoder(pair.config), params, ids, mask)

    difference = np.abs(np.asarray(logits) - their_logits)[mask].max()
    assert their_logits[mask].std() > 0.5  # the comparison is of something
    assert difference < 1e-4

    named = by_torch_name(unstack_layers(gradients))
    assert named.keys() == their_gradients.keys()
    error = {
        name: np.abs(named[name] - theirs).max() / np.abs(theirs).max()
        for name, theirs in their_gradients.items()
    }
    print(f"logits {difference:.1e}, gradient {max(error.values()):.1e}")
    assert max(error.values()) < 1e-4, error


def test_padding_is_not_read(pair):
    """The same rows, padded on either side or not at all, have the same logits."""
    ids, mask = batch("right", seed=7)
    lengths = mask.sum(1)
    left = np.stack([np.roll(row, S - n) for row, n in zip(ids, lengths, strict=True)])
    decoder = Decoder(pair.config)
    right_logits, _ = jax_forward(decoder, pair.params, ids, mask)
    left_logits, _ = jax_forward(decoder, pair.params, left, np.asarray(mask[:, ::-1]))
    for row, n in enumerate(lengths):
        with torch.no_grad():
            alone = pair.theirs(torch.from_numpy(ids[row : row + 1, :n])).logits[0].numpy()
        np.testing.assert_allclose(right_logits[row, :n], alone, atol=1e-4, rtol=0)
        np.testing.assert_allclose(left_logits[row, S - n :], alone, atol=1e-4, rtol=0)
