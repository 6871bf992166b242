"""Supervised fine-tuning on given responses: the loss is of their tokens alone, prompts and
responses packed into streams without padding. `ppo-jax sft EXPERIMENT` trains the file's SFT.

A config is read as PPO reads it: `rollout.batch_size` sequences a step, `rollout.max_new_tokens`
the longest response with its EOS, `ppo.microbatches` and `ppo.token_sizes` the parts of a batch,
`run.iterations` optimiser steps; `data.eval_path` has held-out responses.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np

from ppo_jax import data
from ppo_jax.baseline import Beginning
from ppo_jax.config import Config
from ppo_jax.experiment import Experiment
from ppo_jax.kind import Judge, Kind
from ppo_jax.loading import Source
from ppo_jax.passes import parts_by_tokens, read_part
from ppo_jax.prepare import Opened, Run, open_run_of, prepare
from ppo_jax.programs import Past, Stepper
from ppo_jax.responses import as_rollout, end_token, ended, response_ids
from ppo_jax.scoring import forward
from ppo_jax.setup import Setup
from ppo_jax.stream import row_tokens
from ppo_jax.tuning import Objective, Sums
from ppo_jax.tuning_run import check_tuned, held_out_sums, make_tuner
from ppo_jax.types import Array, PyTree, Rollout, TrainState


def _sums(setup: Setup, params: PyTree, rows: Rollout, present_B, size: int | None) -> Sums:
    """Negative log-likelihood and entropy of the response tokens, nats."""
    reading = read_part(setup, rows, present_B, size)
    out = forward(setup.scorer, params["policy"], reading, jnp.float32(1.0))
    mask_BT = rows.mask_BT if present_B is None else rows.mask_BT * present_B[:, None]
    total = lambda x_BT: jnp.sum(jnp.where(mask_BT > 0, x_BT, 0.0))
    return {"loss": -total(out.logprobs_BT), "entropy": total(out.entropy_BT)}


def _tokens(rows: Rollout) -> Array:
    there_B = jnp.any(rows.mask_BT > 0, axis=1)
    return jnp.where(there_B, row_tokens(rows, final=False), 0)


OBJECTIVE = Objective(
    groups=("policy",),
    recipe=parts_by_tokens,
    tokens=_tokens,
    count=lambda rows: rows.mask_BT.sum(),
    sums=_sums,
)


def read_responses(config: Config, source: Source, texts: tuple[str, ...]) -> data.Dataset:
    """The prompts of `data.path` with the tokens of their responses. Raises DataError."""
    vocab_size = source.config.vocab_size
    dataset = data.load_dataset(config.data, source.tokenizer, vocab_size=vocab_size, texts=texts)
    bad_rows = config.data.bad_rows
    ids = response_ids(dataset, source.tokenizer, vocab_size, bad_rows=bad_rows)
    eos = end_token(source.tokenizer, source.config.eos_token_ids)
    return ended(dataset, ids, config.data, eos=eos, room=config.rollout.max_new_tokens)


def _open(config: Config, experiment: Experiment) -> Opened:
    check_tuned(config, "sft")
    return open_run_of(config, None, read_responses)


def given_batch(run: Run, dataset: data.Dataset, rows_B: np.ndarray) -> Rollout:
    """Rows of a data set as a rollout, numpy arrays; those numbered -1 are empty."""
    assert dataset.response_ids is not None
    index_B = np.maximum(rows_B, 0)
    prompts = data.prompt_rows(dataset, index_B, pad_id=run.pad_id, width=run.width)
    responses = [dataset.response_ids[row] if row >= 0 else [] for row in rows_B]
    return as_rollout(prompts, responses, _longest(run))


def _longest(run: Run) -> int:
    """Tokens of the longest response: T of the compiled programs."""
    given = (d.response_ids or [] for d in (run.dataset, run.held_out) if d is not None)
    return max(len(ids) for rows in given for ids in rows)


def _batch(run: Run, step: int) -> Rollout:
    options = run.config
    rows_B, _ = data.batch_rows(
        len(run.dataset.prompts),
        options.rollout.batch_size,
        seed=options.run.seed,
        step=step,
        shuffle=options.data.shuffle,
    )
    return given_batch(run, run.dataset, rows_B)


def _stepper(run: Run, past: Past) -> Stepper:
    return make_tuner(run, OBJECTIVE, "sft_step")


def _judge(run: Run, at: Beginning) -> Judge:
    sums_of = held_out_sums(run, OBJECTIVE)

    def judge(state: TrainState, frozen: PyTree) -> dict[str, float]:
        """Loss (nats a response token) and perplexity of the held-out responses."""
        assert run.held_out is not None
        batch = functools.partial(given_batch, run, run.held_out)
        sums = sums_of(state, frozen, len(run.held_out.prompts), batch)
        loss = sums["loss"] / sums["count"]
        return {
            "eval/loss": loss,
            "eval/perplexity": math.exp(min(loss, 700.0)),
            "eval/entropy": sums["entropy"] / sums["count"],
        }

    return judge


SFT = Kind(
    "sft",
    _open,
    functools.partial(prepare, reference=False),
    _batch,
    _stepper,
    _judge,
    generates=True,
)
