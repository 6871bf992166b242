"""Impossible configurations: each is refused in one line that names the key and what would do."""

import dataclasses
import math
import typing

import pytest

from ppo_jax.config import Config, ModelConfig, RopeScaling, replace
from ppo_jax.errors import ConfigError
from ppo_jax.ranges import RANGES, check_ranges
from ppo_jax.validate import check_config, check_devices, check_model

RANDOM = {"model.path": None}
ADAPTIVE = {"reward.kl_controller": "adaptive", "hparams.kl_target": 6.0}

# changes of the defaults -> key that is blamed, what the line must say beside it
IMPOSSIBLE = [
    ({"rollout.samples_per_prompt": 3}, "rollout.samples_per_prompt", "nearest valid: 2 or 4"),
    ({"ppo.minibatches": 5}, "ppo.minibatches", "rollout.batch_size=32; nearest valid: 4 or 8"),
    ({"ppo.minibatches": 40}, "ppo.minibatches", "nearest valid: 32"),
    ({"ppo.minibatches": 4, "ppo.microbatches": 3}, "ppo.microbatches", "8 rows"),
    ({"hparams.lam": 1.2}, "hparams.lam", "must be in [0, 1]; nearest valid: 1"),
    ({"hparams.lam": -0.1}, "hparams.lam", "nearest valid: 0"),
    ({"hparams.gamma": math.nan}, "hparams.gamma", "must be in [0, 1]"),
    ({"hparams.clip_low": 0.0}, "hparams.clip_low", "nearest valid: above 0 or inf"),
    ({"hparams.clip_low": 1.5}, "hparams.clip_low", "nearest valid: below 1 or inf"),
    ({"hparams.clip_high": 0.0}, "hparams.clip_high", "nearest valid: above 0"),
    ({"hparams.clip_high": math.nan}, "hparams.clip_high", "must be in (0, inf]"),
    ({"hparams.dual_clip": 1.0}, "hparams.dual_clip", "nearest valid: above 1"),
    ({"hparams.value_clip": 0.0}, "hparams.value_clip", "nearest valid: above 0"),
    ({"hparams.temperature": 0.0}, "hparams.temperature", "nearest valid: above 0"),
    ({"hparams.learning_rate": -1e-5}, "hparams.learning_rate", "nearest valid: above 0"),
    ({"hparams.learning_rate": math.inf}, "hparams.learning_rate", "finite"),
    ({"hparams.max_grad_norm": 0.0}, "hparams.max_grad_norm", "above 0"),
    ({"hparams.kl_coef": -0.1}, "hparams.kl_coef", "nearest valid: 0"),
    ({**ADAPTIVE, "hparams.kl_gain": 0.0}, "hparams.kl_gain", "above 0"),
    ({**ADAPTIVE, "hparams.kl_max_step": 0.0}, "hparams.kl_max_step", "above 0"),
    ({**ADAPTIVE, "hparams.kl_coef": 0.0}, "hparams.kl_coef", "would stay 0"),
    ({"reward.kl_controller": "adaptive"}, "hparams.kl_target", "needs a target"),
    ({"hparams.kl_target": 6.0}, "hparams.kl_target", "set reward.kl_controller=adaptive"),
    ({"rollout.top_k": 0}, "rollout.top_k", "nearest valid: 1"),
    ({"rollout.top_k": 257}, "rollout.top_k", "nearest valid: 256"),
    ({"rollout.top_p": 0.0}, "rollout.top_p", "above 0"),
    ({"rollout.top_p": 1.01}, "rollout.top_p", "nearest valid: 1"),
    ({"rollout.slots": 0}, "rollout.slots", "nearest valid: 1"),
    ({"rollout.slots": 33}, "rollout.slots", "rollout.batch_size=32; nearest valid: 32, or None"),
    ({"rollout.compactions": -1}, "rollout.compactions", "nearest valid: 0"),
    ({"rollout.cache_widths": 0}, "rollout.cache_widths", "nearest valid: 1"),
    ({"rollout.max_new_tokens": 0}, "rollout.max_new_tokens", "nearest valid: 1"),
    ({"rollout.min_new_tokens": 25}, "rollout.min_new_tokens", "nearest valid: 24"),
    (
        {"rollout.min_new_tokens": 24, "reward.drop_truncated": True},
        "rollout.min_new_tokens",
        "nearest valid: 23",
    ),
    ({"rollout.stop_token_ids": (5, -1)}, "rollout.stop_token_ids", "nearest valid: 0"),
    ({"reward.reference": "ema"}, "hparams.reference_decay", "must be in [0, 1)"),
    (
        {"reward.reference": "ema", "hparams.reference_decay": 1.0},
        "hparams.reference_decay",
        "below 1",
    ),
    ({"hparams.reference_decay": 0.9}, "hparams.reference_decay", "nearest valid: None"),
    ({"reward.reference": "reset"}, "reward.reference_reset_every", "nearest valid: 1"),
    ({"reward.reference_reset_every": 5}, "reward.reference_reset_every", "nearest valid: None"),
    (
        {"reward.reference": "reset", "reward.reference_reset_every": 0},
        "reward.reference_reset_every",
        "nearest valid: 1",
    ),
    ({"ppo.advantage": "rloo"}, "rollout.samples_per_prompt", "nearest valid: 2"),
    (
        {"ppo.advantage": "group_mean", "rollout.batch_size": 9},
        "rollout.samples_per_prompt",
        "nearest valid: 3",
    ),
    ({"ppo.advantage": "reinforce", "ppo.critic_warmup": 2}, "ppo.critic_warmup", "valid: 0"),
    ({"ppo.advantage": "reinforce", "ppo.value_epochs": 2}, "ppo.value_epochs", "valid: None"),
    (
        {"ppo.advantage": "reinforce", "ppo.bootstrap_truncated": True},
        "ppo.bootstrap_truncated",
        "nearest valid: False",
    ),
    ({"ppo.advantage": "reinforce", "model.critic": "separate"}, "model.critic", "shared"),
    (
        {"ppo.advantage": "reinforce", "hparams.critic_learning_rate": 1e-4},
        "hparams.critic_learning_rate",
        "nearest valid: None",
    ),
    ({"model.critic_path": "critic"}, "model.critic_path", "set model.critic=separate"),
    ({"ppo.epochs": 0}, "ppo.epochs", "nearest valid: 1"),
    ({"ppo.value_epochs": 0}, "ppo.value_epochs", "nearest valid: 1"),
    ({"hparams.overlong_penalty": 1.0}, "reward.overlong_buffer", "nearest valid: 1 to 24"),
    ({"reward.overlong_buffer": 4}, "hparams.overlong_penalty", "set the buffer to None"),
    (
        {"reward.overlong_buffer": 25, "hparams.overlong_penalty": 1.0},
        "reward.overlong_buffer",
        "nearest valid: 24",
    ),
    (
        {"ppo.bootstrap_truncated": True, "reward.drop_truncated": True},
        "ppo.bootstrap_truncated",
        "nearest valid: False",
    ),
    ({"optim.b1": 1.0}, "optim.b1", "below 1"),
    ({"optim.eps": 0.0}, "optim.eps", "above 0"),
    ({"run.iterations": 0}, "run.iterations", "nearest valid: 1"),
    ({"run.keep": 0}, "run.keep", "nearest valid: 1"),
    ({"run.seed": -1}, "run.seed", "nearest valid: 0"),
    ({"run.cell": "a/b"}, "run.cell", "one folder"),
    ({"run.tensorboard": True, "run.dir": "gs://b/r"}, "run.tensorboard", "nearest valid: False"),
    ({"data.path": ""}, "data.path", "must not be empty"),
    ({"parallel.data": 0}, "parallel.data", "nearest valid: 1 or -1"),
    ({"model.shape.num_layers": 4}, "model.shape.num_layers", "nearest valid: 2"),
    ({**RANDOM, "model.shape.num_kv_heads": 3}, "model.shape.num_kv_heads", "2 or 4"),
    ({**RANDOM, "model.shape.head_dim": 15}, "model.shape.head_dim", "14 or 16"),
    ({**RANDOM, "model.shape.vocab_size": 100}, "model.shape.vocab_size", "259"),
    ({**RANDOM, "model.shape.eos_token_ids": (257, 259)}, "model.shape.eos_token_ids", "258"),
    ({**RANDOM, "model.shape.bos_token_id": 300}, "model.shape.bos_token_id", "258"),
    ({**RANDOM, "model.shape.pad_token_id": 259}, "model.shape.pad_token_id", "258"),
    (
        {**RANDOM, "model.shape.rope_scaling": RopeScaling(low_freq_factor=4.0)},
        "model.shape.rope_scaling.high_freq_factor",
        "above 4.0",
    ),
    (
        {**RANDOM, "data.max_prompt_tokens": 500},
        "rollout.max_new_tokens",
        "data.max_prompt_tokens=500",
    ),
    ({"model.lora.alpha": 8.0}, "model.lora.alpha", "nearest valid: None"),
    ({"model.lora.targets": ("q_proj",)}, "model.lora.targets", "model.lora.rank"),
    ({"model.lora.rank": 4, "model.lora.targets": ()}, "model.lora.targets", "nearest valid: *"),
    ({"model.lora.rank": 0}, "model.lora.rank", "nearest valid: 1"),
    ({"rollout.weights": "unmerged"}, "rollout.weights", "nearest valid: compute"),
    ({"rollout.old_logprobs": "sampler", "hparams.tis_cap": 2.0}, "hparams.tis_cap", "None"),
    ({"rollout.old_logprobs": "sampler", "rollout.weights": "int8"}, "rollout.weights", "compute"),
    ({"hparams.tis_cap": 0.5}, "hparams.tis_cap", "nearest valid: 1"),
    ({"model.attention": "flash"}, "model.attention", "nearest valid: splash"),
    ({**RANDOM, "model.shape.local_layers": (True, False)}, "model.shape.local_layers", "window"),
    (
        {**RANDOM, "model.shape.window": 4, "model.shape.local_layers": (True,)},
        "model.shape.local_layers",
        "1 entries for model.shape.num_layers=2",
    ),
    ({**RANDOM, "model.shape.rotary_dim": 7}, "model.shape.rotary_dim", "6 or 8"),
    ({**RANDOM, "model.shape.rotary_dim": 18}, "model.shape.rotary_dim", "nearest valid: 16"),
    ({**RANDOM, "model.shape.fused_qkv": True}, "model.shape.num_kv_heads", "nearest valid: 4"),
    (
        {**RANDOM, "model.shape.sandwich_norm": True, "model.shape.parallel_residual": True},
        "model.shape.sandwich_norm",
        "nearest valid: False",
    ),
    # wrong types, as a Python experiment may have them
    ({"reward.kl_controller": "adaptve"}, "reward.kl_controller", "nearest valid: adaptive"),
    ({"ppo.epochs": 1.5}, "ppo.epochs", "of type int"),
    ({"ppo.epochs": True}, "ppo.epochs", "of type int"),
    ({"hparams.kl_coef": "0.1"}, "hparams.kl_coef", "of type float"),
    ({"hparams.kl_target": "6"}, "hparams.kl_target", "float | None"),
    ({"rollout.stop_token_ids": [1]}, "rollout.stop_token_ids", "tuple"),
    ({"data.shuffle": 1}, "data.shuffle", "of type bool"),
]


@pytest.mark.parametrize("changes, key, says", IMPOSSIBLE, ids=lambda x: str(x)[:60])
def test_an_impossible_config_is_refused_in_one_line(changes, key, says):
    config = replace(Config(), **changes)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    line = str(caught.value)
    assert line.startswith(f"{key}=") and says in line and "\n" not in line
    assert caught.value.exit_code == 2


POSSIBLE = [
    {},
    RANDOM,
    ADAPTIVE,
    {"hparams.clip_low": math.inf, "hparams.clip_high": math.inf, "hparams.value_clip": math.inf},
    {"hparams.clip_high": 3.0, "hparams.dual_clip": 3.0, "hparams.value_clip": None},
    {"hparams.kl_coef": 0},  # an int where a float is meant
    {"hparams.lam": 1, "hparams.gamma": 0.0},
    {"ppo.advantage": "rloo", "rollout.samples_per_prompt": 32},
    {"ppo.advantage": "reinforce"},
    {"model.critic": "separate", "model.critic_path": "critic", "ppo.critic_warmup": 99},
    {"reward.reference": "ema", "hparams.reference_decay": 0.0},
    {"reward.reference": "reset", "reward.reference_reset_every": 1},
    {"reward.kl_in": "loss", "reward.kl_estimator": "full"},
    {"rollout.top_k": 256, "rollout.top_p": 1.0, "rollout.min_new_tokens": 24},
    {"reward.overlong_buffer": 24, "hparams.overlong_penalty": 0.0},
    {"run.iterations": 1},
    {"hparams.length_penalty": -0.1},
    {**RANDOM, "model.shape.eos_token_ids": (), "model.shape.rope_scaling": RopeScaling()},
    {**RANDOM, "data.max_prompt_tokens": 488},
]


@pytest.mark.parametrize("changes", POSSIBLE, ids=lambda x: str(x)[:60])
def test_a_possible_config_passes(changes):
    check_config(replace(Config(), **changes))


@pytest.mark.parametrize("devices", range(1, 9))
@pytest.mark.parametrize("asked", [-1, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_rows_must_be_dealt_evenly_to_the_devices(devices, asked, microbatches):
    config = replace(
        Config(), **{"parallel.data": asked, "ppo.minibatches": 2, "ppo.microbatches": microbatches}
    )
    used = devices if asked == -1 else asked
    rows = 32 // 2 // microbatches
    if used <= devices and devices % used == 0 and rows % used == 0:
        check_devices(config, devices)
        return
    with pytest.raises(ConfigError) as caught:
        check_devices(config, devices)
    line = str(caught.value)
    assert "nearest valid: " in line
    if line.startswith("rollout.batch_size=32"):  # what it proposes works
        for batch in line.rpartition(": ")[2].split(" or "):
            check_devices(replace(config, **{"rollout.batch_size": int(batch)}), devices)
    else:
        assert line.startswith(f"parallel.data={asked}")


MODEL = ModelConfig(vocab_size=300, max_positions=64)


@pytest.mark.parametrize(
    "changes, model, width, key, says",
    [
        ({}, MODEL, 41, "rollout.max_new_tokens", "nearest valid: 23"),
        ({}, MODEL, 64, "data.max_prompt_tokens", "nearest valid: 40"),
        ({"rollout.stop_token_ids": (299, 300)}, MODEL, 8, "rollout.stop_token_ids", "[300]"),
        (
            {"rollout.top_k": 11},
            dataclasses.replace(MODEL, vocab_size=10),
            8,
            "rollout.top_k",
            "nearest valid: 10",
        ),
        (
            {"reward.drop_truncated": True},
            dataclasses.replace(MODEL, eos_token_ids=()),
            8,
            "rollout.stop_token_ids",
            "no EOS id",
        ),
    ],
)
def test_a_model_that_cannot_serve_is_refused(changes, model, width, key, says):
    with pytest.raises(ConfigError) as caught:
        check_model(replace(Config(), **changes), model, width)
    assert str(caught.value).startswith(f"{key}=") and says in str(caught.value)


def test_prompt_and_response_may_fill_the_context():
    check_model(Config(), MODEL, 40)


def _numbers(cls, prefix=""):
    """Dotted keys of all fields that hold numbers."""
    for name, hint in typing.get_type_hints(cls).items():
        for part in typing.get_args(hint) or (hint,):
            if dataclasses.is_dataclass(part):
                yield from _numbers(part, f"{prefix}{name}.")
            elif part in (int, float):
                yield prefix + name


def test_every_number_has_an_interval():
    assert sorted(_numbers(Config)) == sorted(RANGES)


@pytest.mark.parametrize("interval", sorted(set(RANGES.values())))
@pytest.mark.parametrize("number", [-math.inf, -2, -1, -0.5, 0, 0.3, 1, 1.5, 2, 300, math.inf])
def test_the_nearest_valid_number_is_valid_and_nearest(interval, number):
    @dataclasses.dataclass
    class Box:
        x: float

    def valid(value):
        try:
            check_ranges(Box(value), {"x": interval})
        except ConfigError as error:
            return str(error).rpartition("nearest valid: ")[2].split(" or ")
        return None

    for proposal in valid(number) or []:
        if proposal == "any finite number":
            assert math.isinf(number)
            continue
        side, _, bound = proposal.rpartition(" ")
        value = float(bound) + {"above": 1e-6, "below": -1e-6, "": 0.0}[side]
        assert valid(value) is None
        if " or " not in interval:  # nothing between the number and the proposal is valid
            assert valid(number + 0.999 * (float(bound) - number)) or math.isinf(number)
