"""What TRL's PPOTrainer is given for a workload: tokenizer, four models, settings."""

import os
from typing import Any, NamedTuple

import torch
from shapes import Shape
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from trl.experimental.ppo import PPOConfig

ENDLESS = 10**6  # iterations that the trainer is told of: the session ends it


class Models(NamedTuple):
    policy: Any
    ref: Any
    value: Any
    reward: Any


def make_tokenizer(shape: Shape):
    """A tokenizer whose pad id lies outside of the vocabulary: the trainer cuts a response at its
    first pad, so one that can be sampled would shorten it. Pads become id 0 before every pass."""
    if shape.folder is not None:
        tokenizer = AutoTokenizer.from_pretrained(
            os.path.expanduser(shape.folder), padding_side="left"
        )
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id >= shape.vocab
        return tokenizer
    words = {f"t{i}": i for i in range(shape.vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="t0",
        eos_token=f"t{1 if shape.eos is None else shape.eos}",
        pad_token="[PAD]",
        padding_side="left",
    )
    assert tokenizer.pad_token_id == shape.vocab
    return tokenizer


def make_models(shape: Shape) -> Models:
    """Policy, reference (the same weights), critic, and a reward model that always says 0.

    What trains is float32, as the moments of its Adam then are; what does not, of the workload's
    dtype.
    """
    policy, ref, value, reward = _random(shape) if shape.folder is None else _loaded(shape)
    ref.load_state_dict(policy.state_dict())
    torch.nn.init.zeros_(reward.score.weight)
    if shape.checkpointing:  # the trainer's own setting of that name reaches no model
        policy.gradient_checkpointing_enable()
        value.gradient_checkpointing_enable()
    if shape.eos is not None:
        policy.generation_config.pad_token_id = shape.eos  # fills a batch behind early ends
    return Models(policy, ref, value, reward)


def _random(shape: Shape):
    options = dict(
        vocab_size=shape.vocab,
        hidden_size=shape.embed,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(256, shape.longest),
        tie_word_embeddings=shape.tied,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    )
    config = lambda **more: AutoConfig.for_model(shape.family, **options, **more)
    language, scalar = AutoModelForCausalLM, AutoModelForSequenceClassification
    frozen = getattr(torch, shape.dtype)
    return (
        language.from_config(config(), dtype=torch.float32),
        language.from_config(config(), dtype=frozen),
        scalar.from_config(config(num_labels=1), dtype=torch.float32),
        scalar.from_config(config(num_labels=1), dtype=frozen),
    )


def _loaded(shape: Shape):
    folder = os.path.expanduser(shape.folder)
    load = lambda kind, **options: kind.from_pretrained(folder, dtype=torch.float32, **options)
    policy, ref = (load(AutoModelForCausalLM) for _ in range(2))
    value, reward = (load(AutoModelForSequenceClassification, num_labels=1) for _ in range(2))
    return policy, ref, value, reward


def make_config(shape: Shape, folder: str, device: str) -> PPOConfig:
    """One rollout of all prompts, then epochs x minibatches optimiser steps.

    Gradient accumulation would merge the minibatches again, hence 1. bf16 and gradient
    checkpointing are the trainer's defaults, off where the workload does not ask for them.
    """
    return PPOConfig(
        output_dir=folder,
        use_cpu=device == "cpu",
        bf16=shape.dtype == "bfloat16",
        gradient_checkpointing=shape.checkpointing,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=shape.prompts,
        gradient_accumulation_steps=1,
        num_mini_batches=shape.minibatches,
        num_ppo_epochs=shape.epochs,
        local_rollout_forward_batch_size=shape.prompts,
        total_episodes=shape.prompts * ENDLESS,
        num_sample_generations=0,
        response_length=shape.new_tokens,
        stop_token_id=shape.eos,
        missing_eos_penalty=None,
        temperature=1.0,
        learning_rate=shape.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch" if device == "cpu" else "adamw_torch_fused",
        gamma=1.0,
        lam=0.95,
        cliprange=0.2,
        cliprange_value=0.2,
        kl_coef=0.05,
        kl_estimator="k1",
        whiten_rewards=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
