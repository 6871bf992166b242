"""What each field of a configuration may hold: its type, and the interval of every number."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ppo_jax.errors import ConfigError

MAX_KEPT = 256  # ids a token that the sampler records

COUNT, NATURAL, POSITIVE, ABOVE_0 = "[1, inf)", "[0, inf)", "(0, inf)", "(0, inf]"
RANGES = {
    "model.logit_chunk": COUNT,
    "model.shape.vocab_size": COUNT,
    "model.shape.embed_dim": COUNT,
    "model.shape.num_layers": COUNT,
    "model.shape.num_heads": COUNT,
    "model.shape.num_kv_heads": COUNT,
    "model.shape.head_dim": "[2, inf)",
    "model.shape.mlp_dim": COUNT,
    "model.shape.max_positions": "[2, inf)",
    "model.lora.rank": COUNT,
    "model.lora.alpha": POSITIVE,
    "model.shape.rope_theta": "(1, inf)",
    "model.shape.rotary_dim": "[2, inf)",
    "model.shape.local_rope_theta": "(1, inf)",
    "model.shape.window": COUNT,
    "model.shape.attention_scale": POSITIVE,
    "model.shape.attention_softcap": POSITIVE,
    "model.shape.logit_softcap": POSITIVE,
    "model.shape.rope_scaling.factor": "[1, inf)",
    "model.shape.rope_scaling.low_freq_factor": POSITIVE,
    "model.shape.rope_scaling.high_freq_factor": POSITIVE,
    "model.shape.rope_scaling.original_max_positions": COUNT,
    "model.shape.norm_eps": POSITIVE,
    "model.shape.init_std": POSITIVE,
    "model.shape.bos_token_id": NATURAL,
    "model.shape.eos_token_ids": NATURAL,
    "model.shape.pad_token_id": NATURAL,
    "data.max_prompt_tokens": COUNT,
    "data.eval_rows": COUNT,
    "rollout.batch_size": COUNT,
    "rollout.samples_per_prompt": COUNT,
    "rollout.max_new_tokens": COUNT,
    "rollout.min_new_tokens": NATURAL,
    "rollout.slots": COUNT,
    "rollout.compactions": NATURAL,
    "rollout.cache_widths": COUNT,
    "rollout.stop_token_ids": NATURAL,
    "rollout.top_k": f"[1, {MAX_KEPT}]",
    "rollout.top_p": "(0, 1]",
    "reward.reference_reset_every": COUNT,
    "reward.overlong_buffer": COUNT,
    "reward.workers": NATURAL,
    "reward.timeout": POSITIVE,
    "reward.row_timeout": POSITIVE,
    "ppo.epochs": COUNT,
    "ppo.value_epochs": COUNT,
    "ppo.minibatches": COUNT,
    "ppo.microbatches": COUNT,
    "ppo.token_sizes": "[1, 32]",
    "ppo.critic_warmup": NATURAL,
    "optim.b1": "[0, 1)",
    "optim.b2": "[0, 1)",
    "optim.eps": POSITIVE,
    "optim.weight_decay": NATURAL,
    "optim.warmup": NATURAL,
    "optim.final_ratio": "[0, 1]",
    "optim.max_nonfinite": COUNT,
    "parallel.data": "[1, inf) or -1",
    "parallel.fsdp": "[1, inf) or -1",
    "parallel.tensor": "[1, inf) or -1",
    "run.iterations": COUNT,
    "run.seed": "[0, 4294967295]",
    "run.checkpoint_every": COUNT,
    "run.checkpoint_minutes": POSITIVE,
    "run.eval_every": COUNT,
    "run.keep": COUNT,
    "run.grace": POSITIVE,
    "run.profile_after": NATURAL,
    "run.samples": NATURAL,
    "run.show_prompts": NATURAL,
    "hparams.learning_rate": POSITIVE,
    "hparams.critic_learning_rate": POSITIVE,
    "hparams.temperature": POSITIVE,
    "hparams.gamma": "[0, 1]",
    "hparams.lam": "[0, 1]",
    "hparams.critic_lam": "[0, 1]",
    "hparams.clip_low": "(0, 1) or inf",  # a ratio is never negative: 1 and above clip nothing
    "hparams.clip_high": ABOVE_0,
    "hparams.dual_clip": "(1, inf]",
    "hparams.log_ratio_clamp": ABOVE_0,
    "hparams.tis_cap": "[1, inf]",
    "hparams.value_clip": ABOVE_0,
    "hparams.vf_coef": NATURAL,
    "hparams.entropy_coef": NATURAL,
    "hparams.target_kl": ABOVE_0,
    "hparams.max_grad_norm": POSITIVE,
    "hparams.kl_coef": NATURAL,
    "hparams.kl_target": POSITIVE,
    "hparams.kl_gain": POSITIVE,
    "hparams.kl_max_step": POSITIVE,
    "hparams.kl_damping": NATURAL,
    "hparams.score_clip": POSITIVE,
    "hparams.missing_eos_penalty": NATURAL,
    "hparams.length_penalty": "(-inf, inf)",  # negative: a bonus
    "hparams.overlong_penalty": NATURAL,
    "hparams.reference_decay": "[0, 1)",
}


def check_ranges(node: Any, ranges: Mapping[str, str]) -> None:
    """Raise ConfigError on the first number of `node` (dotted keys) outside its interval.

    Intervals read as in mathematics, `(` and `)` without the bound; `or` adds alternatives.
    None (a feature that is off) passes; NaN never does.
    """
    for key, interval in ranges.items():
        value = _lookup(node, key)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not _inside(number, interval):
                nearest = " or ".join(_nearest(number, part) for part in interval.split(" or "))
                raise ConfigError(f"{key}={value}: must be in {interval}; nearest valid: {nearest}")


def check_types(node: Any, prefix: str = "") -> None:
    """Raise ConfigError on the first field of a dataclass whose value is not of its type."""
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, hint = getattr(node, field.name), hints[field.name]
        check_type(f"{prefix}{field.name}", value, hint)
        if dataclasses.is_dataclass(value):
            check_types(value, f"{prefix}{field.name}.")


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raise ConfigError, naming `key`, if a value is not of its field's annotated type."""
    if not _has_type(value, hint):
        raise ConfigError(f"{key}={value!r}: must be {_describe(hint, value)}")


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(item, arguments[0]) for item in value)
    if hint in (int, float):  # a bool is an int to Python, but never meant as a number
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any, value: Any) -> str:
    """What a value of this type looks like; for choices the one nearest in spelling."""
    if typing.get_origin(hint) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
        return f"one of {', '.join(choices)}; nearest valid: {near[0]}"
    return f"of type {getattr(hint, '__name__', None) if isinstance(hint, type) else hint}"


def _lookup(node: Any, key: str) -> Any:
    """The value at a dotted key, or None where a part on the way is None."""
    for part in key.split("."):
        node = None if node is None else getattr(node, part)
    return node


def _bounds(part: str) -> tuple[bool, float, float, bool]:
    """(low is closed, low, high, high is closed) of an interval or of a single number."""
    if part[0] not in "[(":
        return True, float(part), float(part), True
    low, high = part[1:-1].split(",")
    return part[0] == "[", float(low), float(high), part[-1] == "]"


def _inside(number: int | float, interval: str) -> bool:
    def within(part: str) -> bool:
        low_closed, low, high, high_closed = _bounds(part)
        above = number >= low if low_closed else number > low
        return above and (number <= high if high_closed else number < high)

    return any(within(part) for part in interval.split(" or "))


def _nearest(number: int | float, part: str) -> str:
    low_closed, low, high, high_closed = _bounds(part)
    if math.isinf(number) and math.isinf(high) and not high_closed:
        return "any finite number"
    if number > low:
        return _digits(high) if high_closed else f"below {_digits(high)}"
    return _digits(low) if low_closed else f"above {_digits(low)}"


def _digits(bound: float) -> str:
    return str(int(bound)) if bound.is_integer() else str(bound)
