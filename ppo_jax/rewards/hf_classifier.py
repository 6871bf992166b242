"""A Hugging Face sequence classifier as a reward on the host: it reads text, with a tokenizer of
its own, and may have any number of outputs. `rewards.learned` is for one that reads the policy's
own tokens, inside the compiled step.
"""

import difflib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.decoder import Decoder
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.hf_config import classifier_labels, padding_id, read_model_config
from ppo_jax.hf_folder import CONFIG, read_json, short
from ppo_jax.hf_keys import FAMILIES
from ppo_jax.model import prefill
from ppo_jax.model_folder import resolve_model
from ppo_jax.rewards.checks import need_choice, need_whole, rows
from ppo_jax.text import visible
from ppo_jax.tokenizer import check_vocabulary, load_tokenizer
from ppo_jax.types import Array, PyTree
from ppo_jax.weights import load_classifier

Score = Literal["logprob", "probability", "logit"]
Read = Literal["both", "response"]
SHORTEST = 64  # tokens of the smallest padded shape; each further one is twice as wide
MULTI_LABEL = "multi_label_classification"  # each label is true or not, whatever the others are


class Files(NamedTuple):
    """What is known of a classifier before its weights are read."""

    folder: Path
    tokenizer: Any
    vocab_size: int
    labels: list[str]  # an output each
    multi_label: bool
    positions: int  # tokens that it can read
    padding: int | None  # not read at the end of a text


def hf_classifier(
    path: str,
    *,
    label: str | None = None,
    score: Score | None = None,
    read: Read = "both",
    name: str = "hf_classifier",
    batch_size: int = 16,
    max_tokens: int = 512,
) -> Callable[..., list[float]]:
    """Reward: what a sequence classifier of transformers says of the text, as transformers does.

    `path` is a folder or a hub id of a `...ForSequenceClassification` of a supported (decoder)
    family; PEFT folders are to be merged first. `label` is one of config.json's `id2label`, and the
    score its log-probability in nats ("logprob"), its probability, from 0 to 1, or its "logit". The
    labels' probabilities sum to 1, or are each a sigmoid where config.json's problem_type is
    multi_label_classification. With one output there is no label, and the score is its logit.

    It reads the prompt and, without anything between, the response; a prompt of messages by the
    classifier's chat template, the response as the assistant's; with `read="response"` the response
    alone, as classifiers of sentiment want. Of a longer text the last `max_tokens` tokens count.

    It computes in float32 on the CPU, `batch_size` texts at once, in shapes of 64, 128, 256, ...
    tokens, each compiled when a text first needs it. Config and tokenizer are read here (and a hub
    id is fetched), the weights at the first call, once a process: that time, and compiling, count
    towards `reward.timeout`.

    Raises ConfigError for unusable options, another kind of model, an unknown label. The reward
    raises DataError at a row of messages where there is no chat template.
    """
    if not path or not name:
        raise ConfigError(f"reward {name!r}: path={path!r}: expected a model's path and a name")
    need_choice(name, "read", read, get_args(Read))
    size = need_whole(name, "batch_size", batch_size, 1)
    longest = need_whole(name, "max_tokens", max_tokens, 8)
    try:
        files = open_files(resolve_model(path).path)
    except ConfigError as error:
        raise ConfigError(f"reward {name}: {error}") from None
    place, kind = _output(name, files, label, score)
    longest = min(longest, files.positions)

    def hf_classifier(prompts: list, responses: list[str]) -> list[float]:
        texts = [
            _ids(files, longest, prompt, response, read)
            for response, prompt in rows(responses, prompts=prompts)
        ]
        logits_BC = _logits(files, texts, size, longest)
        return _scores(logits_BC, place, kind, files.multi_label).tolist()

    hf_classifier.__name__ = name
    return hf_classifier


def open_files(folder: Path) -> Files:
    """Config and tokenizer of a classifier. Raises ConfigError where it is none that can be read,
    with the families that can be."""
    file = folder / CONFIG
    raw = read_json(file)
    if raw.get("model_type") not in FAMILIES:
        raise ConfigError(
            f"{file}: model_type = {short(raw.get('model_type'))} is not supported, encoders such "
            f"as BERT are not: expected a sequence classifier of {', '.join(FAMILIES)}"
        )
    shape, count = read_model_config(folder), classifier_labels(folder)
    if count is None:
        raise ConfigError(
            f"{folder} is a language model: expected a sequence classifier (architectures: "
            "...ForSequenceClassification)"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its config.json a "
            f"vocabulary of {shape.vocab_size}: they are of different models"
        )
    tokenizer.truncation_side = "left"
    return Files(
        folder,
        tokenizer,
        shape.vocab_size,
        _label_names(file, raw.get("id2label"), count),
        raw.get("problem_type") == MULTI_LABEL,
        shape.max_positions,
        padding_id(folder),
    )


def _label_names(file: Path, named: Any, count: int) -> list[str]:
    if named is None:  # as transformers calls them
        return [f"LABEL_{i}" for i in range(count)]
    given = [named.get(str(i)) for i in range(count)] if isinstance(named, Mapping) else []
    found = [label for label in given if isinstance(label, str)]
    if len(set(found)) != count:
        raise ConfigError(
            f'{file}: id2label = {short(named)}, expected a name of its own for each of "0" to '
            f'"{count - 1}"'
        )
    return found


def _output(name: str, files: Files, label: str | None, score: Score | None) -> tuple[int, Score]:
    """(the output that is read, what is made of it)."""
    where, labels = f"reward {name}: {files.folder}", [visible(label) for label in files.labels]
    if score is not None:
        need_choice(name, "score", score, get_args(Score))
    if len(labels) == 1:
        if label is not None or score not in (None, "logit"):
            given = f"score={score!r}" if label is None else f"label={label!r}"
            raise ConfigError(
                f"{where} has one output, whose score is its logit: expected no {given}"
            )
        return 0, "logit"
    if label not in files.labels:
        folded = {shown.casefold(): shown for shown in labels}
        near = difflib.get_close_matches(str(label).casefold(), folded, n=1, cutoff=0.0)[0]
        hint = "" if label is None else f"; nearest valid: {folded[near]!r}"
        raise ConfigError(
            f"{where} has {len(labels)} outputs, none of them label={label!r}: expected one of "
            f"{', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}{hint}"
        )
    return files.labels.index(label), score or "logprob"


def _ids(files: Files, longest: int, prompt: Any, response: str, read: Read) -> list[int]:
    """The tokens of a text that count: one at least, `longest` at most."""
    tokenizer, chat = files.tokenizer, read == "both" and not isinstance(prompt, str)
    text = response if read == "response" or chat else prompt + response
    if chat:
        text = _conversation(files, prompt, response)
    # A chat template writes out the special tokens.
    options = {"truncation": True, "max_length": longest, "add_special_tokens": not chat}
    ids = list(tokenizer(text, **options)["input_ids"])
    check_vocabulary(ids, files.vocab_size, str(files.folder))
    end = len(ids)
    while end > 1 and ids[end - 1] == files.padding:
        end -= 1
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return ids[:end] or [next(i for i in starts if i is not None)]  # an empty text has no state


def _conversation(files: Files, prompt: Any, response: str) -> str:
    if not files.tokenizer.chat_template:
        raise DataError(
            f"{files.folder}: prompt is a list of messages but the classifier's tokenizer has no "
            "chat template: expected a string, or read='response'"
        )
    messages = [*prompt, {"role": "assistant", "content": response}]
    return files.tokenizer.apply_chat_template(messages, tokenize=False)


def _logits(files: Files, texts: list[list[int]], size: int, longest: int) -> np.ndarray:
    """Logits [B, labels] of the state after each text's last token, float32."""
    logits_BC = np.zeros((len(texts), len(files.labels)), np.float32)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(texts), size):
        some = by_length[first : first + size]
        width = SHORTEST
        while width < len(texts[some[-1]]):
            width *= 2
        width = min(width, longest)
        ids_BP, mask_BP = np.zeros((size, width), np.int32), np.zeros((size, width), bool)
        mask_BP[:, -1] = True  # rows that are not there have a token too
        for row, i in enumerate(some):
            ids_BP[row, width - len(texts[i]) :] = texts[i]
            mask_BP[row, width - len(texts[i]) :] = True
        found_BC = _loaded(files.folder)(ids_BP, mask_BP)
        logits_BC[some] = np.asarray(found_BC)[: len(some)]
    return logits_BC


@functools.cache
def _loaded(folder: Path) -> Callable[[np.ndarray, np.ndarray], Array]:
    """`fn(ids [B, P], mask [B, P]) -> logits [B, labels]` of left-padded texts: once a process,
    however many rewards read the same classifier."""
    config, trunk, head = load_classifier(folder)
    # Not where the policy is: a run's accelerator has no room for it, and a worker has none.
    weights = jax.device_put({"trunk": trunk, "head": head}, _cpu())
    return functools.partial(jax.jit(functools.partial(_forward, Decoder(config))), weights)


def _forward(decoder: Decoder, weights: PyTree, ids_BP: Array, mask_BP: Array) -> Array:
    hidden_BD, _ = prefill(decoder, weights["trunk"], ids_BP, mask_BP)
    logits_BC = hidden_BD.astype(jnp.float32) @ weights["head"]["kernel"]
    return logits_BC + weights["head"].get("bias", jnp.zeros(1))[None]


def _cpu() -> Any:
    """The CPU, where JAX may use it: JAX_PLATFORMS may name accelerators alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def _scores(logits_BC: np.ndarray, place: int, kind: Score, multi_label: bool) -> np.ndarray:
    wide_BC = logits_BC.astype(np.float64)
    if kind == "logit":
        return wide_BC[:, place]
    others_BC = np.zeros_like(wide_BC[:, :1]) if multi_label else np.delete(wide_BC, place, 1)
    # log p = -log(1 + sum of exp(other - own)); a sigmoid has one other, 0.
    gaps_BC = np.concatenate([np.zeros_like(wide_BC[:, :1]), others_BC - wide_BC[:, [place]]], 1)
    logprobs_B = -np.logaddexp.reduce(gaps_BC, axis=1)
    return logprobs_B if kind == "logprob" else np.exp(logprobs_B)
