"""Impossible choices of model, critic and adapters; `validate` asks for them all."""

from collections.abc import Iterator

from ppo_jax.config import Config, LoraOptions, ModelConfig

BYTE_VOCAB = 259  # the random model reads bytes: 256 of them, and three special tokens

Mistakes = Iterator[tuple[str, str]]  # dotted key, what is valid


def _critic(config: Config) -> Mistakes:
    ppo, model, advantage = config.ppo, config.model, config.ppo.advantage
    if advantage in ("rloo", "group_mean") and config.rollout.samples_per_prompt < 2:
        near = next((d for d in range(2, 10) if config.rollout.batch_size % d == 0), 2)
        yield (
            "rollout.samples_per_prompt",
            f"ppo.advantage={advantage} compares samples of one prompt; nearest valid: {near}",
        )
    if advantage != "gae":
        for off, key, value in (
            (0, "ppo.critic_warmup", ppo.critic_warmup),
            (None, "ppo.value_epochs", ppo.value_epochs),
            (False, "ppo.bootstrap_truncated", ppo.bootstrap_truncated),
            ("shared", "model.critic", model.critic),
            (None, "hparams.critic_learning_rate", config.hparams.critic_learning_rate),
            (None, "hparams.critic_lam", config.hparams.critic_lam),
        ):
            if value != off:
                yield key, f"ppo.advantage={advantage} has no critic; nearest valid: {off}"
    if ppo.bootstrap_truncated and config.rollout.old_logprobs == "sampler":
        yield (
            "ppo.bootstrap_truncated",
            "the value after the last token needs rollout.old_logprobs=recompute; "
            "nearest valid: False",
        )
    if model.critic != "separate" and model.critic_path is not None:
        yield (
            "model.critic_path",
            f"model.critic={model.critic} starts from the policy; nearest valid: None "
            "(or set model.critic=separate)",
        )


def _lora(config: Config) -> Mistakes:
    lora, usual = config.model.lora, LoraOptions()
    if lora.rank is None:
        for name in ("alpha", "targets"):
            if getattr(lora, name) != getattr(usual, name):
                yield (
                    f"model.lora.{name}",
                    f"read only with a model.lora.rank; nearest valid: {getattr(usual, name)}",
                )
        if config.rollout.weights == "unmerged":
            yield (
                "rollout.weights",
                "there is nothing to merge without a model.lora.rank; nearest valid: compute",
            )
    elif not lora.targets:
        yield "model.lora.targets", "must name a matrix; nearest valid: *"


def _shape(config: Config) -> Mistakes:
    """The random model's shape; a loaded one brings its own."""
    shape, usual = config.model.shape, ModelConfig()
    if config.model.path is not None:
        for name in vars(usual):
            if getattr(shape, name) != getattr(usual, name):
                yield (
                    f"model.shape.{name}",
                    f"read only without a model.path, which is {config.model.path}; "
                    f"nearest valid: {getattr(usual, name)}",
                )
        return
    yield from _heads(shape)
    yield from _rotation(shape)
    yield from _windows(shape)
    yield from _special_ids(shape)


def byte_vocabulary(config: Config) -> Mistakes:
    """Not asked of prompts that are ids."""
    if config.model.path is None and config.model.shape.vocab_size < BYTE_VOCAB:
        yield (
            "model.shape.vocab_size",
            f"the random model reads bytes; nearest valid: {BYTE_VOCAB}",
        )


def _heads(shape: ModelConfig) -> Mistakes:
    heads, groups = shape.num_heads, shape.num_kv_heads
    if heads % groups:
        near = near_divisors(groups, heads)
        yield (
            "model.shape.num_kv_heads",
            f"must divide model.shape.num_heads={heads}; nearest valid: {near}",
        )
    if shape.fused_qkv and heads != groups:
        yield (
            "model.shape.num_kv_heads",
            f"model.shape.fused_qkv=True gives every head its own; nearest valid: {heads}",
        )
    if shape.sandwich_norm and shape.parallel_residual:
        yield (
            "model.shape.sandwich_norm",
            "model.shape.parallel_residual=True has no such norms; nearest valid: False",
        )


def _rotation(shape: ModelConfig) -> Mistakes:
    if shape.position == "learned":
        return
    rotary = shape.head_dim if shape.rotary_dim is None else shape.rotary_dim
    key = "head_dim" if shape.rotary_dim is None else "rotary_dim"
    if rotary % 2:
        near = near_multiples(rotary, 2)
        yield f"model.shape.{key}", f"rotation needs an even number; nearest valid: {near}"
    if rotary > shape.head_dim:
        yield (
            "model.shape.rotary_dim",
            f"must not pass model.shape.head_dim; nearest valid: {shape.head_dim}",
        )
    scaling = shape.rope_scaling
    if scaling is not None and scaling.high_freq_factor <= scaling.low_freq_factor:
        low = scaling.low_freq_factor
        yield (
            "model.shape.rope_scaling.high_freq_factor",
            f"must pass low_freq_factor; nearest valid: above {low}",
        )


def _windows(shape: ModelConfig) -> Mistakes:
    local = shape.local_layers
    if local is not None and shape.window is None:
        yield "model.shape.local_layers", "read only with a model.shape.window; nearest valid: None"
    if local is not None and len(local) != shape.num_layers:
        yield (
            "model.shape.local_layers",
            f"has {len(local)} entries for model.shape.num_layers={shape.num_layers}; nearest "
            "valid: None, all of them",
        )


def _special_ids(shape: ModelConfig) -> Mistakes:
    last = shape.vocab_size - 1
    bos = () if shape.bos_token_id is None else (shape.bos_token_id,)
    for key, ids in (
        ("bos_token_id", bos),
        ("eos_token_ids", shape.eos_token_ids),
        ("pad_token_id", (shape.pad_token_id,)),
    ):
        if any(i > last for i in ids):
            yield f"model.shape.{key}", f"not in the vocabulary; nearest valid: {last}"


MODEL_MISTAKES = (_critic, _lora, _shape)


def near_divisors(number: int, total: int) -> str:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    near = [d for d in divisors if d <= number][-1:] + [d for d in divisors if d > number][:1]
    return " or ".join(map(str, near))


def near_multiples(number: int, step: int) -> str:
    below = number // step * step
    return " or ".join(str(m) for m in (below, below + step) if m > 0)
