"""`generate`, `score` and `export`: a model from files to files."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import data
from ppo_jax.arguments import ExportArgs, GenerateArgs, ScoreArgs
from ppo_jax.config import DataOptions, ModelConfig, ModelOptions, ParallelOptions, RolloutOptions
from ppo_jax.critics import REWARD_MODEL, check_writes, is_reward_model, load_critic
from ppo_jax.decoder import make_decoder
from ppo_jax.errors import ConfigError, DataError, StorageError
from ppo_jax.hf_export import REWARD_BIAS
from ppo_jax.hf_folder import CONFIG
from ppo_jax.loading import Source, load_adapters, load_trunk, open_source
from ppo_jax.peft_folder import write_adapters
from ppo_jax.responses import as_rollout, response_ids
from ppo_jax.rollout import sharded_sample
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.scoring import Scorer, forward, read
from ppo_jax.sharding import batch_devices, make_mesh, put_batch, put_replicated
from ppo_jax.tokenizer import decode
from ppo_jax.types import Prompts, Rollout
from ppo_jax.weights import save_hf

ANY_LENGTH = 2**30  # prompts are held against the model's context instead


def generate(args: GenerateArgs) -> None:
    """Continue each prompt of a file; one line a prompt, in the file's order.

    `logprobs` are of the distribution sampled from; at temperature 0 of the model at temperature 1.
    """
    source = open_source(args.model, trust_remote_code=args.trust_remote_code)
    check_writes(source, "model")
    dataset = _read_prompts(args.prompts, source)
    width = data.prompt_width(dataset)
    _check_context(source.config, width, args.max_new_tokens, args.prompts)
    if args.top_k is not None and args.top_k > source.config.vocab_size:
        raise ConfigError(
            f"top_k={args.top_k}: the vocabulary has {source.config.vocab_size} tokens"
        )
    options = RolloutOptions(max_new_tokens=args.max_new_tokens, top_k=args.top_k, top_p=args.top_p)
    mesh = make_mesh(ParallelOptions())
    decoder = make_decoder(source.config, ModelOptions(), mesh)
    params = put_replicated(mesh, rollout_copy(decoder, load_trunk(source)))
    sample = jax.jit(sharded_sample(mesh, decoder, options, greedy=args.temperature == 0))
    temperature = jnp.float32(args.temperature)
    key = jax.random.key(args.seed)

    def lines() -> Iterator[dict]:
        for rows in _batches(len(dataset.prompts), args.batch_size, batch_devices(mesh)):
            prompts = _prompts(dataset, rows, source.config.pad_token_id, width)
            rollout = jax.device_get(
                sample(params, None, put_batch(mesh, prompts), key, temperature)
            )
            for i, row in enumerate(_unpadded(rows)):
                ids = rollout.response_ids_BT[i, : rollout.lengths_B[i]].tolist()
                yield {
                    "prompt": dataset.prompts[row],
                    "response": decode(source.tokenizer, ids),
                    "response_ids": ids,
                    "logprobs": rollout.logprobs_BT[i, : len(ids)].tolist(),
                }

    _write_lines(args.out, lines())


def score(args: ScoreArgs) -> None:
    """Log-probabilities (temperature 1) of given responses; `ids` are the response's tokens.

    A row's own `response_ids`, as `generate` writes them, are scored as they are.
    """
    source = open_source(args.model, trust_remote_code=args.trust_remote_code)
    check_writes(source, "model")
    dataset = _read_prompts(args.data, source)
    responses = response_ids(dataset, source.tokenizer, source.config.vocab_size)
    width, longest = data.prompt_width(dataset), max(map(len, responses))
    whole = max(len(p) + len(r) for p, r in zip(dataset.prompt_ids, responses, strict=True))
    _check_context(source.config, whole, 0, args.data)
    mesh = make_mesh(ParallelOptions())
    decoder = make_decoder(source.config, ModelOptions(), mesh)
    params = put_replicated(mesh, load_trunk(source))
    chunk = ModelOptions().logit_chunk * batch_devices(mesh)
    program = jax.jit(functools.partial(_logprobs, Scorer(decoder, decoder, (), 0, chunk)))

    def lines() -> Iterator[dict]:
        for rows in _batches(len(dataset.prompts), args.batch_size, batch_devices(mesh)):
            prompts = _prompts(dataset, rows, source.config.pad_token_id, width)
            rollout = as_rollout(prompts, [responses[row] for row in rows], longest)
            logprobs_BT = jax.device_get(program(params, put_batch(mesh, rollout)))
            for i, row in enumerate(_unpadded(rows)):
                ids = responses[row]
                yield {
                    "prompt": dataset.prompts[row],
                    "response": dataset.columns["response"][row],
                    "ids": ids,
                    "logprobs": logprobs_BT[i, : len(ids)].tolist(),
                }

    _write_lines(args.out, lines())


def export(args: ExportArgs) -> None:
    """Write a model as a Hugging Face folder, or its adapters as a PEFT folder."""
    source = open_source(args.model, trust_remote_code=args.trust_remote_code)
    if is_reward_model(source) != (args.part == REWARD_MODEL):
        a_reward_model = is_reward_model(source)
        raise ConfigError(
            f"part={args.part}: {args.model} is {'a' if a_reward_model else 'no'} reward model; "
            f"nearest valid: {REWARD_MODEL if a_reward_model else 'critic'}"
        )
    if args.part == "adapter":
        _export_adapters(args, source)
    else:
        critic = None if args.part == "policy" else load_critic(source)
        if critic is not None and critic.head is None:
            raise ConfigError(f"part={args.part}: {args.model} has none: expected a run folder")
        save_hf(
            args.out,
            source.config if critic is None else critic.config,
            load_trunk(source) if critic is None else critic.trunk,
            source.tokenizer,
            head=None if critic is None else critic.head,
            origin=source.files,
            dtype=args.dtype,
        )
        if critic is not None and "bias" in (critic.head or {}):
            print(
                f"scores are score.weight's and {REWARD_BIAS} in {CONFIG}, which transformers does "
                "not add"
            )
    print(f"{args.out}: the {args.part} of {args.model}, {args.dtype}")


def _export_adapters(args: ExportArgs, source: Source) -> None:
    if source.adapters is None:
        raise ConfigError(
            f"part=adapter: {args.model} has none, every weight was trained; nearest valid: policy"
        )
    name, revision = _base_for_peft(source.adapters.base)
    write_adapters(
        args.out,
        source.config,
        source.adapters.lora,
        load_adapters(source),
        base=name,
        revision=revision,
        origin=source.files,
        dtype=args.dtype,
    )


def _base_for_peft(base: Source) -> tuple[str | None, str | None]:
    """(name, revision) by which PEFT finds a base; (None, None) for one that it cannot load."""
    if base.folder is None:
        print("the base of these adapters is no Hugging Face folder: PEFT needs it exported first")
        return None, None
    hub_id, _, commit = str(base.name).partition("@")
    if commit and not Path(str(base.name)).expanduser().exists():
        return hub_id, commit
    return str(base.folder.resolve()), None


def _logprobs(scorer: Scorer, params, rollout: Rollout):
    return forward(scorer, params, read(rollout), jnp.float32(1.0)).logprobs_BT


def _read_prompts(path: str, source) -> data.Dataset:
    options = DataOptions(path=path, max_prompt_tokens=ANY_LENGTH)
    return data.load_dataset(options, source.tokenizer, vocab_size=source.config.vocab_size)


def _check_context(config: ModelConfig, prompt: int, response: int, path: str) -> None:
    if prompt + response > config.max_positions:
        raise DataError(
            f"{path}: at most {config.max_positions} tokens fit the model, the longest row has "
            f"{prompt}" + (f" and {response} new ones" if response else "")
        )


def _batches(count: int, size: int, devices: int) -> Iterator[np.ndarray]:
    """Row numbers of each batch, all of one size; the last batch is filled up with -1."""
    size = -(-min(size, count) // devices) * devices
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.where(rows < count, rows, -1)


def _unpadded(rows: np.ndarray) -> list[int]:
    return [int(row) for row in rows if row >= 0]


def _prompts(dataset: data.Dataset, rows: np.ndarray, pad_id: int, width: int) -> Prompts:
    index = np.maximum(rows, 0)  # a filling row repeats row 0 and is not written
    return data.prompt_rows(dataset, index, pad_id=pad_id, width=width)


def _write_lines(path: str, lines: Iterator[dict[str, Any]]) -> None:
    """Each line as soon as it is there, to a file that takes its name when it is whole."""
    out = Path(path)
    partial = out.with_name(out.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror})") from None
