"""Arguments of the commands that read and write files; every field is a flag."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from ppo_jax.errors import ConfigError

Switches = TypeVar("Switches", bound=Any)
Values = TypeVar("Values", bound=Any)


@dataclass(frozen=True)
class TrainArgs:
    """How a run that stopped may go on; every field of its configuration is a flag too."""

    strict_resume: bool = False  # end with code 4 instead of going back to an older checkpoint
    allow_config_change: bool = False  # go on with other options than the checkpoint was made with


@dataclass(frozen=True)
class ProcessArgs:
    """Which of a run's processes this one is; each of them runs the same command."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None  # how many there are
    process: int | None = None  # which one this is, from 0
    distributed: Literal["auto", "off"] = "auto"  # auto: one of those that a cluster has started
    join_seconds: float = 300.0  # that they wait for each other at the start


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
    # policy: adapters merged; reward-model: a run of that command, as a sequence classifier
    part: Literal["policy", "adapter", "critic", "reward-model"] = "policy"
    trust_remote_code: bool = False  # run a tokenizer's own Python from the model's folder


@dataclass(frozen=True)
class EvalArgs:
    """What a model answers to held-out prompts (data.eval_path), by reward and judge."""

    model: str = "@train"  # RUN[@best|@STEP], @sft, @train: the experiment's own, @reference, any
    against: str | None = None  # another model, for the share of prompts won
    samples: int = 1  # responses a prompt
    temperature: float | None = None  # 0, or greedy; None: hparams.temperature
    pass_threshold: float | None = None  # score that passes, for pass@k; None: 1, if all are 0 or 1
    out: str | None = None  # folder of eval.json and eval.jsonl; None: the model's run folder


@dataclass(frozen=True)
class PlanArgs:
    """What an experiment is planned for: floors of its time, memory, and whether it fits."""

    device: str = "cpu"  # b200, h200, h100, a100, v4, v5e, v5p, v6e; cpu: this one, measured
    devices: int = 1  # that share the batch
    mean_response: float | None = None  # tokens, geometric; None: all of rollout.max_new_tokens
    out: str | None = None  # .json to write
    compile: bool = False  # compile the step for devices that need not be here; needs one of:
    accelerator: str | None = None  # TPU slice, as Cloud TPU names it: v5litepod-8, v6e-8, v5p-8
    gpu: str | None = None  # a100, h100, h200, b200; as many as `devices`
    hlo: str | None = None  # file for the compiled program's text


@dataclass(frozen=True)
class BenchArgs:
    """How often a workload is run, and where its result goes."""

    iterations: int = 5  # timed; one more is profiled
    warmup: int = 2  # iterations before them, the first with the compilation
    out: str = "experiments/bench/results"  # folder of the results
    compare: str | None = None  # an earlier result, .json


@dataclass(frozen=True)
class RunRoot:
    """Where run folders lie."""

    dir: str = "runs"  # their root, a folder or gs://bucket/folder


@dataclass(frozen=True)
class ReportArgs:
    """Tables and plots of an experiment's runs (name, file or folder), or a run folder's page."""

    out: str | None = None  # folder; None: experiments/results/NAME, or the run folder itself
    metrics: tuple[str, ...] = ()  # names in metrics.jsonl; none: the sweep's own
    base: str | None = None  # the variant that others are held against; None: the unchanged one
    window: float = 0.1  # last part of a run whose mean counts, of metrics other than eval/...
    tokens: int = 0  # of a run folder: so many sampled responses, token by token, by its model
    run: RunRoot = RunRoot()


@dataclass(frozen=True)
class IndexArgs:
    """One table of all results, between two comment lines of a Markdown file."""

    readme: str = "experiments/README.md"
    results: str = "experiments/results"  # folder of folders with a summary.csv


@dataclass(frozen=True)
class SweepArgs:
    """Which cells of a sweep are run, and how many at a time."""

    list: bool = False  # show the cells, and run none
    only: tuple[str, ...] = ()  # cells by name, also lam=* or lam=0/seed3; none: all
    index: int | None = None  # the one at this place of the list, from 0
    jobs: int = 1  # processes at a time
    vmap: bool = False  # cells of one shape as one compiled program, whatever their seeds


SWITCHES = (
    "--compile",
    "--list",
    "--vmap",
)  # flags of these commands that mean True where they stand alone


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """(words of the command's own arguments, words of the experiment's Config): only the latter's
    flags have dots."""
    own: list[str] = []
    rest: list[str] = []
    target = rest
    for word, after in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--"):
            target = rest if "." in word.split("=")[0] or word == "--help" else own
        target.append(word)
        if word in SWITCHES and after not in ("True", "False"):
            target.append("True")
    return own, rest


def take_switches(cls: type[Switches], words: list[str]) -> tuple[Switches, list[str]]:
    """(`cls`, all of whose fields are switches, those on that the words name; other words)."""
    names = {f"--{field.name}": field.name for field in fields(cls)}
    spelt = lambda word: word.replace("-", "_").replace("__", "--", 1)
    on = {names[spelt(word)]: True for word in words if spelt(word) in names}
    return cls(**on), [word for word in words if spelt(word) not in names]


def take_values(cls: type[Values], words: list[str]) -> tuple[Values, list[str]]:
    """(`cls` with the values that the words `--name value` or `--name=value` give, other words).

    Raises ConfigError naming the flag that has none, or one of another type.
    """
    kinds = {field.name: field.type for field in fields(cls)}
    found: dict[str, Any] = {}
    rest, left = [], list(words)
    while left:
        word = left.pop(0)
        flag, has_value, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in kinds:
            rest.append(word)
            continue
        if not has_value and (not left or left[0].startswith("--")):
            raise ConfigError(f"{flag}: a value is missing")
        found[name] = _value(flag, kinds[name], value if has_value else left.pop(0))
    return cls(**found), rest


def _value(flag: str, kind: Any, text: str) -> Any:
    """The text as a value of the annotation `kind`."""
    if get_origin(kind) is Literal and text not in get_args(kind):
        raise ConfigError(f"{flag}={text}: must be one of {', '.join(get_args(kind))}")
    convert = next((k for k in (int, float) if k in (kind, *get_args(kind))), str)
    try:
        return convert(text)
    except ValueError:
        raise ConfigError(f"{flag}={text}: must be a number") from None


RANGES = {
    "max_new_tokens": "[1, inf)",
    "temperature": "[0, inf)",
    "top_k": "[1, 256]",
    "top_p": "(0, 1]",
    "seed": "[0, 4294967295]",
    "batch_size": "[1, inf)",
    "iterations": "[1, inf)",
    "warmup": "[1, inf)",
    "samples": "[1, inf)",
    "devices": "[1, inf)",
    "mean_response": "[1, inf)",
    "join_seconds": "[1, inf)",
    "index": "[0, inf)",
    "jobs": "[1, inf)",
    "window": "(0, 1]",
    "tokens": "[0, inf)",
}
