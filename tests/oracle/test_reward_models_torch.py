"""Reward models: our score of a response is that of transformers' classifier, and back."""

import json

import jax
import numpy as np
import pytest
import torch
from test_weights_torch import reload
from torch_families import saved, torch_model
from transformers import AutoModelForSequenceClassification

from family_configs import FAMILIES, VOCAB, first_case
from ppo_jax.classifier import Classifier, score_responses
from ppo_jax.config import ParallelOptions
from ppo_jax.decoder import Decoder
from ppo_jax.hf_config import padding_id
from ppo_jax.model import cast_weights
from ppo_jax.responses import as_rollout
from ppo_jax.sharding import make_mesh
from ppo_jax.types import Prompts
from ppo_jax.weights import load_classifier, save_hf

PAD = VOCAB - 1
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, PAD, size=n).tolist() for n in (1, 4, 6, 2)]
RESPONSES = [RNG.integers(0, PAD, size=n).tolist() for n in (5, 1, 6, 3)]
RESPONSES[2][4:] = [PAD, PAD]  # takes them for padding


def our_scores(folder) -> np.ndarray:
    config, trunk, head = load_classifier(folder)
    ids_BP = np.zeros((4, 6), np.int32)
    mask_BP = np.zeros((4, 6), bool)
    for i, prompt in enumerate(PROMPTS):
        ids_BP[i, 6 - len(prompt) :], mask_BP[i, 6 - len(prompt) :] = prompt, True
    zeros_B = np.zeros(4, np.int32)
    rollout = as_rollout(Prompts(ids_BP, mask_BP, zeros_B, zeros_B, {}), RESPONSES, 6)
    mesh = make_mesh(ParallelOptions(data=1))
    decoder = Decoder(config, mesh=mesh)
    model = Classifier(decoder, mesh, padding_id(folder), 2, 2)
    weights = {"head": head, "trunk": cast_weights(decoder, jax.tree.map(np.asarray, trunk))}
    return np.asarray(score_responses(model, jax.tree.map(jax.numpy.asarray, rollout), {}, weights))


def their_scores(model) -> np.ndarray:
    """All sequences at once, with padding at their right."""
    rows = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        return model(ids, attention_mask=real).logits[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_that_of_transformers(tmp_path, family):
    model = torch_model(first_case(family), labels=1, pad_token_id=PAD)
    scores = our_scores(saved(model, tmp_path / "theirs"))
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(scores, their_scores(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_normalised_head_is_theirs_and_a_bias(tmp_path, family):
    model = torch_model(first_case(family), labels=1, pad_token_id=PAD)
    config, trunk, head = load_classifier(saved(model, tmp_path / "theirs"))
    gain, bias = np.float32(0.37), np.float32([-1.25])
    head = {"kernel": head["kernel"] * gain, "bias": bias}
    save_hf(tmp_path / "ours", config, trunk, None, head=head)
    again = reload(AutoModelForSequenceClassification, tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "config.json").read_text())["ppo_jax_reward_bias"]
    assert again.config.ppo_jax_reward_bias == said == -1.25
    theirs = their_scores(again)
    np.testing.assert_allclose(theirs, gain * their_scores(model), atol=1e-5)
    np.testing.assert_allclose(our_scores(tmp_path / "ours"), theirs + said, atol=1e-4, rtol=0)
