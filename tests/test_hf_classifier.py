"""A sequence classifier as a reward on the host: its score is its logits' of the whole text, by a
slow forward, wherever it runs and whatever lies beside it in a batch."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from builders import trunk_params
from decoder_oracle import slow_hidden
from family_configs import FAMILIES, first_case, model_config
from family_models import family_model
from ppo_jax.config import RewardOptions
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.hf_classifier import hf_classifier
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool
from ppo_jax.tokenizer import byte_tokenizer, character_tokenizer
from ppo_jax.weights import save_hf

EOS, PAD = 257, 258
SHAPE = dataclasses.replace(
    model_config(first_case("gpt2")), vocab_size=259, eos_token_ids=(EOS,), pad_token_id=PAD
)
LABELS = ["NEGATIVE", "neutral", "POSITIVE"]
PROMPTS = ["", "It is ", "Wörter: ", "a" * 30]
RESPONSES = ["good", "ünd\nmore", "", "b" * 20]


def write(folder, outputs, *, labels=None, tokenizer=None, shape=SHAPE, **keys):
    """(folder, trunk, head [D, outputs])."""
    trunk = trunk_params(shape, 3)
    kernel_DC = 0.3 * np.random.default_rng(0).normal(size=(shape.embed_dim, outputs))
    head = {"kernel": kernel_DC.astype(np.float32)}
    save_hf(folder, shape, trunk, tokenizer or byte_tokenizer(), head=head)
    file = folder / "config.json"
    said = json.loads(file.read_text()) | keys
    if labels is not None:
        said["id2label"] = {str(i): label for i, label in enumerate(labels)}
    file.write_text(json.dumps(said))
    return folder, trunk, head["kernel"]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return write(tmp_path_factory.mktemp("three") / "hf", 3, labels=LABELS)


def slow_logits(trunk, kernel_DC, ids, shape=SHAPE):
    return slow_hidden(shape, trunk, np.array(ids))[-1] @ np.float64(kernel_DC)


def logits_of(model, texts):
    """Of texts as bytes; an empty one is its tokenizer's first special token."""
    _, trunk, kernel_DC = model
    ids = [list(text.encode()) or [256] for text in texts]
    return np.array([slow_logits(trunk, kernel_DC, row[-64:]) for row in ids])


def test_probabilities_of_a_label(three):
    logits_BC = logits_of(three, [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    shares_BC = np.exp(logits_BC) / np.exp(logits_BC).sum(axis=1, keepdims=True)
    assert np.ptp(shares_BC, axis=0).min() > 0.1
    for i, label in enumerate(LABELS):
        expected = {"logprob": np.log(shares_BC), "probability": shares_BC, "logit": logits_BC}
        for score, wanted_BC in expected.items():
            found = hf_classifier(str(three[0]), label=label, score=score)(PROMPTS, RESPONSES)
            np.testing.assert_allclose(found, wanted_BC[:, i], atol=2e-4)
    default = hf_classifier(str(three[0]), label="neutral")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(default, np.log(shares_BC[:, 1]), atol=2e-4)


def test_the_response_alone(three):
    wanted_BC = logits_of(three, RESPONSES)
    options = {"label": "POSITIVE", "score": "logit"}
    found = hf_classifier(str(three[0]), read="response", **options)(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, wanted_BC[:, 2], atol=2e-4)


def test_labels_that_are_each_true_or_not(tmp_path):
    model = write(tmp_path / "m", 3, labels=LABELS, problem_type="multi_label_classification")
    chances_BC = 1 / (1 + np.exp(-logits_of(model, RESPONSES)))
    for i, label in enumerate(LABELS):
        reward = hf_classifier(str(model[0]), label=label, score="probability", read="response")
        np.testing.assert_allclose(reward(PROMPTS, RESPONSES), chances_BC[:, i], atol=2e-4)


def test_one_output_is_its_logit(tmp_path):
    model = write(tmp_path / "m", 1)
    found = hf_classifier(str(model[0]), read="response")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, logits_of(model, RESPONSES)[:, 0], atol=2e-4)
    for given in ({"label": "LABEL_0"}, {"score": "probability"}):
        with pytest.raises(ConfigError, match="has one output, whose score is its logit"):
            hf_classifier(str(model[0]), **given)


def test_rows_do_not_depend_on_their_neighbours(three):
    """More rows than a batch, of lengths of several padded shapes."""
    draw = np.random.default_rng(1)
    texts = ["x" * n + "yz" for n in draw.integers(0, 62, size=23)]
    alone = hf_classifier(str(three[0]), label="POSITIVE", batch_size=1, max_tokens=40)
    together = hf_classifier(str(three[0]), label="POSITIVE", batch_size=5, max_tokens=40)
    found = together([""] * 23, texts)
    assert len(set(np.round(found, 4))) > 10
    np.testing.assert_allclose(found, alone([""] * 23, texts), atol=1e-5)
    assert together([], []) == []


def test_the_end_of_a_long_text_counts(three):
    text = "".join(chr(97 + i % 26) for i in range(500))
    wanted_BC = logits_of(three, [text[-64:], text[-9:]])
    for longest, row in ((512, 0), (64, 0), (9, 1)):
        options = {"label": "NEGATIVE", "score": "logit", "max_tokens": longest}
        found = hf_classifier(str(three[0]), **options)([text[:100]], [text[100:]])
        np.testing.assert_allclose(found, wanted_BC[row, :1], atol=2e-4)


def test_padding_at_the_end_is_not_read(three):
    """As transformers takes it; in the middle it is a token as any other."""
    folder, trunk, kernel_DC = three
    reward = hf_classifier(str(folder), label="NEGATIVE", score="logit")
    pad, ids = "<|pad|>", [97, PAD, 98]
    found = reward([""] * 2, [f"a{pad}b{pad}{pad}", pad])
    wanted = [slow_logits(trunk, kernel_DC, row)[0] for row in (ids, [PAD])]
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_messages_are_read_by_the_chat_template(three):
    reward = hf_classifier(str(three[0]), label="POSITIVE", score="logit")
    wanted_BC = logits_of(three, ["user: hi\nassistant: yes\n"])
    found = reward([[{"role": "user", "content": "hi"}]], ["yes"])
    np.testing.assert_allclose(found, wanted_BC[:, 2], atol=2e-4)


def test_messages_without_a_chat_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    model = write(tmp_path / "m", 1, tokenizer=tokenizer)
    messages = [[{"role": "user", "content": "hi"}]]
    with pytest.raises(DataError, match="has no chat template: expected a string, or read="):
        hf_classifier(str(model[0]))(messages, ["yes"])
    assert np.isfinite(hf_classifier(str(model[0]), read="response")(messages, ["yes"])).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path, family):
    """With a tokenizer of another kind than the policy's: a character an id, without specials."""
    shape, trunk = family_model(first_case(family))
    trunk = {k: v for k, v in jax.tree.map(np.asarray, trunk).items() if k != "lm_head"}
    kernel_DC = np.random.default_rng(0).normal(size=(shape.embed_dim, 2)).astype(np.float32)
    alphabet = "abcdefghijklmnopqrstuvwxyz ."
    save_hf(tmp_path, shape, trunk, character_tokenizer(alphabet), head={"kernel": kernel_DC})
    texts = ["a good film.", "no", "x" * 50]
    ids = [[alphabet.index(c) for c in text] for text in texts]
    wanted = [slow_logits(trunk, kernel_DC, row, shape)[1] for row in ids]
    reward = hf_classifier(str(tmp_path), label="LABEL_1", score="logit", read="response")
    np.testing.assert_allclose(reward([""] * 3, texts), wanted, atol=1e-3)


EXPERIMENT = """
from ppo_jax.config import Config
from ppo_jax.rewards.hf_classifier import hf_classifier
BASE, REWARD = Config(), hf_classifier({path!r}, label="POSITIVE", name="judge")
"""


def test_in_the_process_of_a_run(three, tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(path=str(three[0])))
    reward = hf_classifier(str(three[0]), label="POSITIVE", name="judge")
    (part,) = parse_rewards(reward)
    rows = Rows(list(range(4)), PROMPTS, RESPONSES, {})
    with open_pool(path, tmp_path / "log", RewardOptions(workers=2)) as pool:
        first, again = (pool.call(part, rows, seed=0).scores["judge"] for _ in range(2))
    np.testing.assert_allclose(first, reward(PROMPTS, RESPONSES), atol=1e-5)
    np.testing.assert_array_equal(first, again)


# What is refused


def refused(folder, **options):
    with pytest.raises(ConfigError) as error:
        hf_classifier(str(folder), **{"name": "judge"} | options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_labels(three):
    said = refused(three[0], label="postive")
    assert said.startswith(f"reward judge: {three[0]} has 3 outputs, none of them label='postive'")
    assert said.endswith("expected one of NEGATIVE, neutral, POSITIVE; nearest valid: 'POSITIVE'")
    assert refused(three[0]).endswith("expected one of NEGATIVE, neutral, POSITIVE")


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", None])
def test_encoders(tmp_path, kind):
    keys = {"architectures": ["BertForSequenceClassification"], "model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    said = refused(tmp_path, label="POSITIVE")
    assert (
        f"model_type = {json.dumps(kind)} is not supported, encoders such as BERT are not" in said
    )
    assert said.endswith(f"expected a sequence classifier of {', '.join(FAMILIES)}")


def test_other_unusable_models(three, tmp_path):
    _, trunk, _ = three
    save_hf(tmp_path / "lm", SHAPE, trunk, byte_tokenizer())
    assert "is a language model: expected a sequence classifier" in refused(tmp_path / "lm")
    assert "is no folder and no hub id" in refused(tmp_path / "nowhere")
    for named in ({"0": "a", "2": "b"}, {"0": "a", "1": "a"}, {"0": 1, "1": 2}):
        folder, *_ = write(tmp_path / "labels", 2, id2label=named)
        assert 'expected a name of its own for each of "0" to "1"' in refused(folder, label="a")
    other = byte_tokenizer()
    small = dataclasses.replace(SHAPE, vocab_size=100, eos_token_ids=(1,), pad_token_id=2)
    folder, *_ = write(tmp_path / "small", 1, tokenizer=other, shape=small)
    assert "they are of different models" in refused(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 2}, "max_tokens is 2"),
        ({"read": "prompt"}, "read is 'prompt'; expected one of both, response"),
        ({"score": "p"}, "score is 'p'; expected one of logprob, probability, logit"),
        ({"name": ""}, "expected a model's path and a name"),
    ],
)
def test_unusable_options(three, options, said):
    assert said in refused(three[0], label="neutral", **options)
