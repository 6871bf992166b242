"""The host classifier's scores are those of transformers' AutoModelForSequenceClassification."""

import json

import numpy as np
import pytest
import torch
from torch_families import saved, torch_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from family_configs import FAMILIES, first_case
from ppo_jax.rewards.hf_classifier import hf_classifier
from ppo_jax.tokenizer import character_tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,!'"  # no policy's vocabulary
PAD = 100
PROMPTS = ["it is ", "", "a film, a book, ", "i say: no "]
RESPONSES = ["good!", "bad.", "that i'd see again and again and again", "n"]
LABELS = {"0": "NEGATIVE", "1": "POSITIVE"}


def their_logits(folder, texts):
    """A text at a time, so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    model = model.eval().float()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in texts]), model


def written(folder, family, labels, **changes):
    model = torch_model(first_case(family), labels=labels, pad_token_id=PAD)
    saved(model, folder)
    character_tokenizer(ALPHABET).save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_labels(tmp_path, family):
    path = written(tmp_path / "m", family, 2, id2label=LABELS)
    texts = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    theirs_BC, model = their_logits(path, texts)
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    logprobs_BC = torch.log_softmax(theirs_BC.double(), dim=1).numpy()
    assert np.ptp(logprobs_BC) > 0.1
    for i, label in enumerate(("NEGATIVE", "POSITIVE")):
        ours = hf_classifier(path, label=label, batch_size=3)(PROMPTS, RESPONSES)
        np.testing.assert_allclose(ours, logprobs_BC[:, i], atol=2e-4)
    ours = hf_classifier(path, label="POSITIVE", score="probability")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(ours, np.exp(logprobs_BC[:, 1]), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_output_and_the_response_alone(tmp_path, family):
    path = written(tmp_path / "m", family, 1)
    theirs_BC, _ = their_logits(path, RESPONSES)
    ours = hf_classifier(path, read="response")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(ours, theirs_BC[:, 0].numpy(), atol=1e-4)


def test_labels_that_exclude_no_other(tmp_path):
    kind = {"problem_type": "multi_label_classification"}
    path = written(tmp_path / "m", "qwen2", 3, **kind)
    theirs_BC, model = their_logits(path, RESPONSES)
    for i, label in model.config.id2label.items():
        ours = hf_classifier(path, label=label, score="probability", read="response")
        expected_B = torch.sigmoid(theirs_BC[:, i]).numpy()
        np.testing.assert_allclose(ours(PROMPTS, RESPONSES), expected_B, atol=1e-4)
