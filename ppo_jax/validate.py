"""Impossible configurations, found before anything is loaded.

Each mistake is one line: the dotted key with its value, what is valid, the nearest valid value.
Types and intervals of single fields stand in `ranges`; here are the combinations.
"""

import functools
import importlib.util

from ppo_jax.config import Config, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.ranges import RANGES, check_ranges, check_types
from ppo_jax.text import install_hint
from ppo_jax.validate_mesh import mesh_devices, mesh_options, shared_model
from ppo_jax.validate_model import MODEL_MISTAKES, Mistakes, byte_vocabulary, near_divisors


def check_config(config: Config, *, reads_text: bool = True) -> None:
    """Raise ConfigError on the first value or combination that no run can have.

    Without `reads_text` prompts are ids, and a random model's vocabulary need not hold the bytes.
    """
    check_types(config)
    check_ranges(config, RANGES)
    if reads_text:
        _raise_first(config, byte_vocabulary(config))
    for mistakes in (
        _batch,
        _sampling,
        _kl,
        _reference,
        _reward,
        _run,
        mesh_options,
        *MODEL_MISTAKES,
    ):
        _raise_first(config, mistakes(config))
    if config.model.path is None:
        check_model(config, config.model.shape, config.data.max_prompt_tokens)


def check_devices(config: Config, device_count: int, processes: int = 1) -> None:
    """Raise ConfigError if these devices cannot be the mesh, or cannot share the batch."""
    _raise_first(config, mesh_devices(config, device_count, processes))


def check_shared(config: Config, model: ModelConfig, device_count: int) -> None:
    """Raise ConfigError if the mesh of so many devices cannot share the model."""
    _raise_first(config, shared_model(config, model, device_count))


def check_model(config: Config, model: ModelConfig, prompt_width: int) -> None:
    """Raise ConfigError if the model cannot hold a prompt of `prompt_width` tokens and its
    response, or lacks an id that the options name."""
    _raise_first(config, _model(config, model, prompt_width))


def lowest_is_best(metric: str) -> str:
    """What is wrong where run.keep_best names a metric without the minus that it needs."""
    return f"the lowest is its best; nearest valid: -{metric} (--run.keep_best=-{metric})"


def _raise_first(config: Config, mistakes: Mistakes) -> None:
    for key, valid in mistakes:
        value = functools.reduce(getattr, key.split("."), config)
        raise ConfigError(f"{key}={value}: {valid}")


def _batch(config: Config) -> Mistakes:
    batch, per_prompt = config.rollout.batch_size, config.rollout.samples_per_prompt
    minibatches, microbatches = config.ppo.minibatches, config.ppo.microbatches
    rows, slots = batch // minibatches, config.rollout.slots
    if batch % per_prompt:
        near = near_divisors(per_prompt, batch)
        yield (
            "rollout.samples_per_prompt",
            f"must divide rollout.batch_size={batch}; nearest valid: {near}",
        )
    if slots is not None and slots > batch:
        yield (
            "rollout.slots",
            f"must not pass rollout.batch_size={batch}; nearest valid: {batch}, or None",
        )
    if batch % minibatches:
        near = near_divisors(minibatches, batch)
        yield "ppo.minibatches", f"must divide rollout.batch_size={batch}; nearest valid: {near}"
    if rows % microbatches:
        near = near_divisors(microbatches, rows)
        yield (
            "ppo.microbatches",
            f"must divide a minibatch of {rows} rows (rollout.batch_size={batch} over "
            f"ppo.minibatches={minibatches}); nearest valid: {near}",
        )


def _model(config: Config, model: ModelConfig, prompt_width: int) -> Mistakes:
    rollout, room = config.rollout, model.max_positions
    new, top_k = rollout.max_new_tokens, rollout.top_k
    if prompt_width >= room:
        yield (
            "data.max_prompt_tokens",
            f"prompts of {prompt_width} tokens fill the model's {room} positions; nearest valid: "
            f"{max(room - new, 1)}",
        )
    if prompt_width + new > room:
        yield (
            "rollout.max_new_tokens",
            f"{new} new tokens after a prompt of {prompt_width} (data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}) pass the model's {room} positions; nearest valid: "
            f"{room - prompt_width}",
        )
    unknown = [i for i in rollout.stop_token_ids if i >= model.vocab_size]
    if unknown:
        yield (
            "rollout.stop_token_ids",
            f"{unknown} not in the vocabulary; nearest valid: {model.vocab_size - 1}",
        )
    if top_k is not None and top_k > model.vocab_size:
        yield (
            "rollout.top_k",
            f"must not pass the vocabulary; nearest valid: {model.vocab_size}, or None",
        )
    needs_stop = config.reward.drop_truncated or config.hparams.missing_eos_penalty is not None
    if needs_stop and not (model.eos_token_ids or rollout.stop_token_ids):
        yield (
            "rollout.stop_token_ids",
            "the model has no EOS id, so every response is truncated: name a stop id, or turn off "
            "reward.drop_truncated and hparams.missing_eos_penalty",
        )


def _sampling(config: Config) -> Mistakes:
    shortest, longest = config.rollout.min_new_tokens, config.rollout.max_new_tokens
    if shortest > longest:
        yield (
            "rollout.min_new_tokens",
            f"must not pass rollout.max_new_tokens; nearest valid: {longest}",
        )
    if config.rollout.old_logprobs == "sampler":
        if config.hparams.tis_cap is not None:
            yield (
                "hparams.tis_cap",
                "rollout.old_logprobs=sampler leaves no gap to weight for; nearest valid: None",
            )
        if config.rollout.weights == "int8":
            yield (
                "rollout.weights",
                "the ratio would start from 8-bit weights with rollout.old_logprobs=sampler; "
                "nearest valid: compute (or set rollout.old_logprobs=recompute)",
            )
    if config.reward.drop_truncated and shortest == longest:
        yield (
            "rollout.min_new_tokens",
            "no response ends before rollout.max_new_tokens, so reward.drop_truncated=True drops "
            f"them all; nearest valid: {longest - 1}",
        )


def _kl(config: Config) -> Mistakes:
    adaptive, h = config.reward.kl_controller == "adaptive", config.hparams
    if adaptive and h.kl_target is None:
        yield (
            "hparams.kl_target",
            "reward.kl_controller=adaptive needs a target in nats a sequence; nearest valid: "
            "above 0",
        )
    if not adaptive and h.kl_target is not None:
        yield (
            "hparams.kl_target",
            "reward.kl_controller=fixed has no target; nearest valid: None "
            "(or set reward.kl_controller=adaptive)",
        )
    if adaptive and h.kl_coef == 0:
        yield (
            "hparams.kl_coef",
            "reward.kl_controller=adaptive multiplies the coefficient, so it would stay 0; "
            "nearest valid: above 0",
        )


def _reference(config: Config) -> Mistakes:
    kind, every = config.reward.reference, config.reward.reference_reset_every
    decay = config.hparams.reference_decay
    if (kind == "ema") != (decay is not None):
        valid = "must be in [0, 1), say 0.99" if kind == "ema" else "nearest valid: None"
        yield "hparams.reference_decay", f"with reward.reference={kind}, {valid}"
    if (kind == "reset") != (every is not None):
        valid = "nearest valid: 1 iteration" if kind == "reset" else "nearest valid: None"
        yield "reward.reference_reset_every", f"with reward.reference={kind}, {valid}"


def _reward(config: Config) -> Mistakes:
    buffer, penalty = config.reward.overlong_buffer, config.hparams.overlong_penalty
    longest = config.rollout.max_new_tokens
    if penalty is not None and buffer is None:
        yield (
            "reward.overlong_buffer",
            f"hparams.overlong_penalty={penalty} needs the number of last tokens over which it "
            f"rises; nearest valid: 1 to {longest}",
        )
    if penalty is None and buffer is not None:
        yield (
            "hparams.overlong_penalty",
            f"reward.overlong_buffer={buffer} needs a penalty; nearest valid: 0 "
            "(or set the buffer to None)",
        )
    if buffer is not None and buffer > longest:
        yield (
            "reward.overlong_buffer",
            f"must not pass rollout.max_new_tokens; nearest valid: {longest}",
        )
    if config.reward.row_timeout is not None and config.reward.workers == 0:
        yield (
            "reward.row_timeout",
            "reward.workers=0 runs rewards in this process, without a limit; nearest valid: None",
        )
    if config.ppo.bootstrap_truncated and config.reward.drop_truncated:
        yield (
            "ppo.bootstrap_truncated",
            "reward.drop_truncated=True drops what it would bootstrap; nearest valid: False",
        )


def _run(config: Config) -> Mistakes:
    run = config.run
    texts = {"model.path": config.model.path, "data.path": config.data.path, "run.dir": run.dir}
    for key, text in (texts | {"data.eval_path": config.data.eval_path}).items():
        if text == "":
            yield key, "must not be empty"
    if run.eval_every is not None and config.data.eval_path is None:
        yield "run.eval_every", "needs held-out rows in data.eval_path; nearest valid: None"
    best = run.keep_best or ""
    if run.eval_every is None and best.removeprefix("-").startswith("eval/"):
        yield "run.keep_best", "needs run.eval_every; nearest valid: objective/scores, or None"
    if best.startswith("loss/"):
        yield "run.keep_best", lowest_is_best(best)
    if run.tensorboard and "://" in run.dir:
        yield "run.tensorboard", f"writes no files to run.dir={run.dir}; nearest valid: False"
    if run.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        yield (
            "run.tensorboard",
            f"needs tensorboardX: {install_hint('tensorboardX', 'tensorboard')}",
        )
    if run.cell in ("", ".", "..") or "/" in run.cell:
        yield "run.cell", "must be the name of one folder; nearest valid: base"
