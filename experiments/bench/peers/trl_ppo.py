"""TRL's PPOTrainer (trl 1.12.0, the last that has it) on a workload, on the CPU or a CUDA device.

    .venv-trl/bin/python experiments/bench/peers/trl_ppo.py --workload W1 --memory

Its settings and what they avoid are in README.md beside this file.
"""

import os

# Read when the libraries below are first loaded. A thread of OpenMP that spins while it waits
# takes the processor from whatever else runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# The logits of a rollout of G1 are 40 GB in one piece: no room for holes beside them.
os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import functools
import random
import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers
import trl
import trl.experimental.ppo.ppo_trainer as ppo_trainer
from datasets import Dataset
from shapes import SHAPES, Shape, compared, read_prompts
from stops import real_tokens, truncate
from torch.utils.data import DataLoader
from torch_memory import LiveBytes
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.ppo import PPOTrainer
from trl_setup import Models, make_config, make_models, make_tokenizer
from worker import Session, Stop, iteration_line, make_parser, open_session, start


def clock() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def set_precision(shape: Shape, device: str) -> None:
    """Products in the workload's dtype, wherever the trainer multiplies.

    Its setting `bf16` does not reach the Accelerator that it makes, which asks the environment, as
    `accelerate launch` sets it. Even then generation and the values before the update, which go
    past the prepared model, would be float32. Each call is a context of its own: a weight is
    converted once in it, and anew after the next optimiser step.
    """
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, which XLA takes there, too
    if shape.dtype == "float32":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        return
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    generate, get_reward = ppo_trainer.batch_generation, ppo_trainer.get_reward
    context = functools.partial(torch.autocast, device, torch.bfloat16)

    def score(*arguments):
        with context():
            values, scores, lengths = get_reward(*arguments)
        return values.float(), scores.float(), lengths

    ppo_trainer.batch_generation = context()(generate)
    ppo_trainer.get_reward = score


def set_stops(shape: Shape, trainer: PPOTrainer) -> None:
    """Let every stop id of the workload end a response: the trainer has a setting for one."""
    if shape.stops > 1:
        trainer.policy_model.generation_config.eos_token_id = list(shape.stop_ids)
        ppo_trainer.truncate_response = lambda _, pad_id, responses: truncate(
            responses, shape.stop_ids, pad_id
        )


def watch_phases(shape: Shape, seen: dict[str, Any]) -> None:
    """Note in `seen` when generation and scoring end, and the real tokens of the responses."""
    generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten

    def batch_generation(model, queries, *rest):
        seen["generation_began"] = clock()
        result = generate(model, queries, *rest)
        seen["generation_ended"] = clock()
        responses = result[0][:, queries.shape[1] :]
        seen["tokens"] = int(real_tokens(responses, shape.stop_ids).sum())
        return result

    def masked_whiten(*arguments, **options):
        result = whiten(*arguments, **options)
        seen["scoring_ended"] = clock()  # advantages: the last before the update
        return result

    ppo_trainer.batch_generation = batch_generation
    ppo_trainer.masked_whiten = masked_whiten


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
        now, seen = clock(), self.seen
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
        clock()  # what is still under way belongs to the iteration before
        command = self.session.next_command()
        while command == "memory" and torch.cuda.is_initialized():  # the allocator has counted
            self.session.say(
                {
                    "peak_tensor_bytes": torch.cuda.max_memory_allocated(),
                    "reserved_bytes": torch.cuda.max_memory_reserved(),
                }
            )
            command = self.session.next_command()
        if command is None:
            raise Stop
        self.seen["steps"] = 0
        if command == "memory":
            self.live = LiveBytes()
            self.live.__enter__()
        self.mark = start()


def facts(shape: Shape, nets: Models, accelerator) -> dict[str, Any]:
    weights = str(next(nets.policy.parameters()).dtype).removeprefix("torch.")
    device = accelerator.device.type
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
        "dtype": {"no": weights, "bf16": "bfloat16"}[accelerator.mixed_precision],
        "platform": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    arguments = make_parser("TRL's PPOTrainer on a workload").parse_args()
    session = open_session(arguments)
    shape = SHAPES[arguments.workload]
    device = arguments.device or shape.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("trl: this torch sees no CUDA device")
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    nets = make_models(shape)
    seen: dict[str, Any] = {"steps": 0}
    set_precision(shape, device)
    watch_phases(shape, seen)
    prompts = Dataset.from_dict({"input_ids": read_prompts(arguments.prompts, shape)})
    with tempfile.TemporaryDirectory(prefix="trl_ppo_") as folder:
        trainer = PPOTrainer(
            args=make_config(shape, folder, device),
            processing_class=make_tokenizer(shape),
            model=nets.policy,
            ref_model=nets.ref,
            reward_model=nets.reward,
            value_model=nets.value,
            train_dataset=prompts,
            eval_dataset=prompts.select(range(min(8, len(prompts)))),
            callbacks=[Conductor(session, seen)],
        )
        set_stops(shape, trainer)
        trainer.remove_callback(PrinterCallback)
        # Batches in the file's order, which its own loader would shuffle.
        trainer.dataloader = DataLoader(
            prompts, shape.prompts, collate_fn=trainer.data_collator, drop_last=True
        )
        count_step = lambda *_: seen.__setitem__("steps", seen["steps"] + 1)
        trainer.optimizer.optimizer.register_step_post_hook(count_step)
        session.say(facts(shape, nets, trainer.accelerator))
        try:
            trainer.train()
        except Stop:
            pass
    session.finish()


if __name__ == "__main__":
    main()
