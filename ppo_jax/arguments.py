"""Arguments of the commands that read and write files; every field is a flag."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GenerateArgs:
    """Continue prompts: one line a prompt with prompt, response, response_ids, logprobs."""

    model: str  # Hugging Face, PEFT or run folder, hub id, or the name smollm2-135m
    prompts: str  # .jsonl or .jsonl.gz with a `prompt` column: a string, or chat messages
    out: str  # .jsonl to write
    max_new_tokens: int = 64
    temperature: float = 1.0  # 0: greedy, with the logprobs of temperature 1
    top_k: int | None = None  # at most 256
    top_p: float | None = None
    seed: int = 0
    batch_size: int = 8  # prompts at once, over all devices
    trust_remote_code: bool = False  # run a tokenizer's own Python from the model's folder


@dataclass(frozen=True)
class ScoreArgs:
    """Log-probabilities of given responses: one line a row with logprobs and ids."""

    model: str  # Hugging Face, PEFT or run folder, hub id, or the name smollm2-135m
    data: str  # .jsonl or .jsonl.gz with the columns `prompt` and `response`
    out: str  # .jsonl to write
    batch_size: int = 8  # rows at once, over all devices
    trust_remote_code: bool = False  # run a tokenizer's own Python from the model's folder


@dataclass(frozen=True)
class ExportArgs:
    """Write a model as a Hugging Face folder, or its adapters as a PEFT folder."""

    model: str  # run folder, Hugging Face or PEFT folder, hub id, or the name smollm2-135m
    out: str  # folder to write
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    part: Literal["policy", "adapter", "critic"] = "policy"  # policy: adapters merged
    trust_remote_code: bool = False  # run a tokenizer's own Python from the model's folder


RANGES = {
    "max_new_tokens": "[1, inf)",
    "temperature": "[0, inf)",
    "top_k": "[1, 256]",
    "top_p": "(0, 1]",
    "seed": "[0, 4294967295]",
    "batch_size": "[1, inf)",
}
