"""TRL's PPOTrainer (trl 1.12.0, the last that has it) on a workload, on the CPU, in float32.

    .venv-trl/bin/python experiments/bench/peers/trl_ppo.py --workload W1 --memory

Its settings and what they avoid are in README.md beside this file.
"""

import os

# Read when the libraries below are first loaded. A thread of OpenMP that spins while it waits
# takes the processor from whatever else runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import random
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
import trl
import trl.experimental.ppo.ppo_trainer as ppo_trainer
from datasets import Dataset
from shapes import SHAPES, Shape, compared, read_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from torch_memory import LiveBytes
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from worker import Session, Stop, iteration_line, make_parser, open_session, start

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
    """Policy, reference (the same weights), critic, and a reward model that always says 0."""
    if shape.folder is None:
        config = LlamaConfig(
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
        scalar = LlamaConfig(**config.to_dict() | {"num_labels": 1})
        make = lambda kind, config: kind.from_config(config, dtype=torch.float32)
        policy, ref = (make(AutoModelForCausalLM, config) for _ in range(2))
        value, reward = (make(AutoModelForSequenceClassification, scalar) for _ in range(2))
    else:
        folder = os.path.expanduser(shape.folder)
        load = lambda kind, **options: kind.from_pretrained(folder, dtype=torch.float32, **options)
        policy, ref = (load(AutoModelForCausalLM) for _ in range(2))
        value, reward = (load(AutoModelForSequenceClassification, num_labels=1) for _ in range(2))
    ref.load_state_dict(policy.state_dict())
    torch.nn.init.zeros_(reward.score.weight)
    if shape.eos is not None:
        policy.generation_config.pad_token_id = shape.eos  # fills a batch behind early ends
    return Models(policy, ref, value, reward)


def make_config(shape: Shape, folder: str) -> PPOConfig:
    """One rollout of all prompts, then epochs x minibatches optimiser steps.

    Gradient accumulation would merge the minibatches again, hence 1. bf16 and gradient
    checkpointing are the trainer's defaults, off here.
    """
    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
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
        optim="adamw_torch",
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


def watch_phases(shape: Shape, seen: dict[str, Any]) -> None:
    """Note in `seen` when generation and scoring end, and the real tokens of the responses."""
    generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten

    def batch_generation(model, queries, *rest):
        seen["generation_began"] = time.perf_counter()
        result = generate(model, queries, *rest)
        seen["generation_ended"] = time.perf_counter()
        seen["tokens"] = count_tokens(result[0][:, queries.shape[1] :], shape.eos)
        return result

    def masked_whiten(*arguments, **options):
        result = whiten(*arguments, **options)
        seen["scoring_ended"] = time.perf_counter()  # advantages: the last before the update
        return result

    ppo_trainer.batch_generation = batch_generation
    ppo_trainer.masked_whiten = masked_whiten


def count_tokens(responses: torch.Tensor, eos: int | None) -> int:
    """Tokens up to the first EOS of each row, that one included."""
    if eos is None:
        return responses.numel()
    before = (responses == eos).cumsum(dim=1) - (responses == eos).long()
    return int((before == 0).sum())


class Conductor(TrainerCallback):
    """Between two iterations of the trainer's loop: answer the last command, wait for the next."""

    def __init__(self, session: Session, seen: dict[str, Any]) -> None:
        self.session, self.seen = session, seen
        self.mark = self.live = None

    def on_train_begin(self, args, state, control, **rest):
        self._wait()

    def on_step_end(self, args, state, control, **rest):
        if self.live is not None:
            self.live.__exit__(None, None, None)
            self.session.say(
                {
                    "peak_tensor_bytes": self.live.peak,
                    "standing_tensor_bytes": self.live.start,  # between two iterations
                    "counted_operations": self.live.operations,
                }
            )
            self.live = None
        else:
            self.session.say(self._line())
        self._wait()

    def _line(self) -> dict[str, Any]:
        now, seen = time.perf_counter(), self.seen
        phases = {
            "generation": seen["generation_ended"] - seen["generation_began"],
            "scoring": seen["scoring_ended"] - seen["generation_ended"],
            "update": now - seen["scoring_ended"],
        }
        steps = seen["steps"]
        return iteration_line(
            self.mark, tokens=seen["tokens"], optimizer_steps=steps, phases=phases
        )

    def _wait(self) -> None:
        command = self.session.next_command()
        if command is None:
            raise Stop
        self.seen["steps"] = 0
        if command == "memory":
            self.live = LiveBytes()
            self.live.__enter__()
        self.mark = start()


def facts(shape: Shape, nets: Models) -> dict[str, Any]:
    return {
        "peer": "trl",
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "shape": compared(shape),
        "critic": "separate",
        "parameters": {
            name: sum(p.numel() for p in net.parameters()) for name, net in nets._asdict().items()
        },
        "dtype": str(next(nets.policy.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    arguments = make_parser("TRL's PPOTrainer on a workload").parse_args()
    session = open_session(arguments)
    shape = SHAPES[arguments.workload]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    nets = make_models(shape)
    seen: dict[str, Any] = {"steps": 0}
    watch_phases(shape, seen)
    prompts = Dataset.from_dict({"input_ids": read_prompts(arguments.prompts, shape)})
    with tempfile.TemporaryDirectory(prefix="trl_ppo_") as folder:
        trainer = PPOTrainer(
            args=make_config(shape, folder),
            processing_class=make_tokenizer(shape),
            model=nets.policy,
            ref_model=nets.ref,
            reward_model=nets.reward,
            value_model=nets.value,
            train_dataset=prompts,
            eval_dataset=prompts.select(range(min(8, len(prompts)))),
            callbacks=[Conductor(session, seen)],
        )
        trainer.remove_callback(PrinterCallback)
        # Batches in the file's order, which its own loader would shuffle.
        trainer.dataloader = DataLoader(
            prompts, shape.prompts, collate_fn=trainer.data_collator, drop_last=True
        )
        count_step = lambda *_: seen.__setitem__("steps", seen["steps"] + 1)
        trainer.optimizer.optimizer.register_step_post_hook(count_step)
        session.say(facts(shape, nets))
        try:
            trainer.train()
        except Stop:
            pass
    session.finish()


if __name__ == "__main__":
    main()
