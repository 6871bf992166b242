"""Reward models: `ppo-jax reward-model EXPERIMENT` trains the file's REWARD_MODEL on preferences.

A trunk, and a head that reads its state after the last token of a response. A config is read as PPO
reads it: `rollout.batch_size` responses a step, so half as many pairs, `rollout.max_new_tokens` the
longest with its EOS, `ppo.microbatches` and `ppo.token_sizes` the parts of a batch,
`run.iterations` optimiser steps.

`data.eval_path` has held-out rows of the same kind. Their responses, both of a pair, are also the
reference of the scores: each evaluation measures mean and deviation of what the head says of them,
which the checkpoint keeps beside the weights, and whoever loads it (`critics.load_critic`) has the
head whose scores of them have mean 0 and deviation 1. Training itself is not touched by it.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppo_jax import data
from ppo_jax.baseline import Beginning
from ppo_jax.compiled import Built, program
from ppo_jax.config import Config
from ppo_jax.critics import REWARD_MODEL, is_reward_model, load_critic
from ppo_jax.decoder import Decoder
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.first_weights import initial_weights
from ppo_jax.kind import Judge, Kind
from ppo_jax.loading import Source
from ppo_jax.microbatch import by_microbatch
from ppo_jax.model import init_reward_head, without_lm_head
from ppo_jax.parts import ByTokens, by_tokens, map_over_tokens
from ppo_jax.preferences import (
    Rated,
    load_preferences,
    rated_batch,
    rated_rows,
    response_width,
    responses_each,
)
from ppo_jax.prepare import Opened, Run, open_run_of, prepare
from ppo_jax.programs import Past, Stepper
from ppo_jax.responses import end_token
from ppo_jax.reward_losses import judge_pairs, judge_scores, pairwise_sums, scored_sums
from ppo_jax.scoring import final_scores, read_to_the_end
from ppo_jax.setup import Setup
from ppo_jax.sharding import batch_devices, put_batch, put_replicated, replicated
from ppo_jax.stream import row_tokens, row_width
from ppo_jax.trunks import assemble
from ppo_jax.tuning import Objective, Sums
from ppo_jax.tuning_run import check_tuned, make_tuner
from ppo_jax.types import Array, PyTree, Rollout, ScoreMoments, TrainState

HEAD_KEY = 2**31 - 5  # folded in for the head: no iteration of a run has this number


def score_rows(
    setup: Setup, params: PyTree, rows: Rated, present_N: Array | None, size: int | None
) -> Array:
    """Raw scores [N, 2] or [N, 1], 0 of rows that are not present; `params` as `assemble` gives
    them. As padded rows where `size` is None, else in streams of so many tokens a device."""
    each = rows.rollout.lengths_B.shape[1]
    present_B = None if present_N is None else present_N.repeat(each)
    reading = read_to_the_end(setup.mesh, _flat(rows), present_B, size)
    model = {"head": params["value"]["head"], "trunk": params["policy"]}
    return final_scores(setup.decoder, model, reading).reshape(-1, each)


def _flat(rows: Rated) -> Rollout:
    """The responses of all rows as B rows of their own."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows.rollout)


def _sums(setup: Setup, params: PyTree, rows: Rated, present_N, size: int | None) -> Sums:
    scores_NE = score_rows(setup, params, rows, present_N, size)
    counts_N = rows.counts_N if present_N is None else rows.counts_N * present_N
    sums = pairwise_sums if scores_NE.shape[1] == 2 else scored_sums
    return sums(scores_NE.reshape(-1), rows.targets_N, counts_N)


def _tokens(rows: Rated) -> Array:
    tokens_B = row_tokens(_flat(rows), final=True)
    tokens_N = tokens_B.reshape(rows.counts_N.shape[0], -1).sum(axis=1)
    return (tokens_N * (rows.counts_N > 0)).astype(tokens_B.dtype)


def _recipe(setup: Setup, rows: Rated) -> ByTokens:
    options, shards = setup.config.ppo, batch_devices(setup.mesh)
    N, each = rows.rollout.lengths_B.shape
    width, padded = each * row_width(_flat(rows), final=True), setup.decoder.attention != "xla"
    parts, sizes = options.microbatches, options.token_sizes
    assert sizes is not None
    return by_tokens(shards, N // shards, width, parts, sizes, padded=padded)


OBJECTIVE = Objective(
    groups=("policy", "value"),
    recipe=_recipe,
    tokens=_tokens,
    count=lambda rows: rows.counts_N.sum(),
    sums=_sums,
)


def score_batch(setup: Setup, params: PyTree, frozen: PyTree, batch: Rated) -> Array:
    """Raw scores [N, 2] or [N, 1] of a batch, in parts as a step's; 0 of rows that fill it."""
    params = assemble(frozen, params)
    score = lambda rows, present_N=None, size=None: score_rows(setup, params, rows, present_N, size)
    if setup.config.ppo.token_sizes is None:
        return by_microbatch(score, batch, setup.config.ppo.microbatches)
    return map_over_tokens(_recipe(setup, batch), _tokens(batch), batch, score)


def read_preferences(config: Config, source: Source, texts: tuple[str, ...]) -> data.Dataset:
    """The pairs or scored responses of `data.path`. Raises DataError."""
    return load_preferences(
        config.data,
        source.tokenizer,
        vocab_size=source.config.vocab_size,
        eos=end_token(source.tokenizer, source.config.eos_token_ids),
        room=config.rollout.max_new_tokens,
    )


def _open(config: Config, experiment: Experiment) -> Opened:
    run = config.run
    if config.data.eval_path is None or run.eval_every is None:
        key = "data.eval_path" if config.data.eval_path is None else "run.eval_every"
        raise ConfigError(
            f"{key}=None: a reward model is judged, and its scores are normalised, on held-out rows"
        )
    if run.checkpoint_every % run.eval_every:
        raise ConfigError(
            f"run.checkpoint_every={run.checkpoint_every}: must be a multiple of run.eval_every="
            f"{run.eval_every}, for only the scores of evaluated steps are normalised; nearest "
            f"valid: {max(1, round(run.checkpoint_every / run.eval_every)) * run.eval_every}"
        )
    check_tuned(config, REWARD_MODEL)
    opened = open_run_of(config, None, read_preferences)
    assert opened.held_out is not None
    each, theirs = map(responses_each, (opened.dataset, opened.held_out))
    if each != theirs:
        raise ConfigError(
            f"data.eval_path={config.data.eval_path}: has {_rows(theirs)}, data.path {_rows(each)}"
        )
    _check_batch(opened.config, each)
    return opened


def _rows(each: int) -> str:
    return "pairs" if each == 2 else "scored responses"


def _check_batch(config: Config, each: int) -> None:
    sizes = config.parallel.sizes(jax.device_count())
    parts = config.ppo.microbatches if config.ppo.token_sizes is None else 1
    unit, size = each * sizes[0] * sizes[1] * parts, config.rollout.batch_size
    if size % unit:
        raise ConfigError(
            f"rollout.batch_size={size}: must be a multiple of {unit} responses, as {_rows(each)} "
            f"on {sizes[0] * sizes[1]} devices; nearest valid: {max(1, size // unit) * unit}"
        )


def reward_weights(
    config: Config, source: Source, critic_source: Source | None, decoder: Decoder, critic: Decoder
) -> tuple[PyTree, PyTree]:
    """As `initial_weights`, without a language-model head, and with a reward model's own: what the
    model has, if it is a reward model, or random."""
    trained, still = initial_weights(config, source, critic_source, decoder, critic)
    key = jax.random.fold_in(jax.random.key(config.run.seed), HEAD_KEY)
    known = load_critic(source).head if is_reward_model(source) else None
    head = init_reward_head(source.config, key) if known is None else known
    base = None if still["base"] is None else without_lm_head(still["base"])
    trained = {"policy": without_lm_head(trained["policy"]), "value": {"head": head}}
    return trained, {"base": base, "critic": None, "ref": None}


def _widths(run: Run) -> tuple[int, int]:
    """(P, T) of the compiled programs."""
    assert run.held_out is not None
    return run.width, max(map(response_width, (run.dataset, run.held_out)))


def _batch(run: Run, step: int) -> Rated:
    return rated_batch(run.dataset, run.config, step, pad_id=run.pad_id, widths=_widths(run))


def _stepper(run: Run, past: Past) -> Stepper:
    return make_tuner(run, OBJECTIVE, "reward_model_step", each=responses_each(run.dataset))


def _judge(run: Run, at: Beginning) -> Judge:
    mesh, held_out = run.setup.mesh, run.held_out
    assert held_out is not None
    scored = functools.partial(score_batch, run.setup)
    scores_of = program(Built({}, {}), "held_out", scored, replicated(mesh))
    count, each, widths = len(held_out.lines), responses_each(held_out), _widths(run)
    size = run.config.rollout.batch_size // each
    targets_N = held_out.targets_N
    assert targets_N is not None

    def judge(state: TrainState, frozen: PyTree) -> dict[str, float]:
        """What the scores of the held-out rows are worth, and their mean and deviation."""
        found = []
        for start in range(0, count, size):
            rows_N = np.arange(start, start + size)
            rows_N = np.where(rows_N < count, rows_N, -1)
            batch = rated_rows(held_out, rows_N, pad_id=run.pad_id, widths=widths)
            scores_NE = jax.device_get(scores_of(state.params, frozen, put_batch(mesh, batch)))
            found.append(np.asarray(scores_NE)[rows_N >= 0])
        scores_B = np.concatenate(found).reshape(-1).astype(np.float64)
        worth = (judge_pairs if each == 2 else judge_scores)(scores_B, targets_N)
        worth |= {"score_mean": float(scores_B.mean()), "score_std": float(scores_B.std())}
        return {f"eval/{name}": x for name, x in worth.items()}

    return judge


def _note(run: Run, state: TrainState, said: Mapping[str, float]) -> TrainState:
    """The state with the moments of the held-out scores: `score_mean` and `score_std` of as many
    responses as there are."""
    assert run.held_out is not None
    mean, std = said["eval/score_mean"], said["eval/score_std"]
    if not (math.isfinite(mean) and math.isfinite(std)):
        return state  # which the run is about to end on
    count = len(run.held_out.lines) * responses_each(run.held_out)
    moments: Any = map(np.float32, (count, mean, count * std**2))
    return state._replace(moments=put_replicated(run.setup.mesh, ScoreMoments(*moments)))


TRAINED = Kind(
    REWARD_MODEL,
    _open,
    functools.partial(prepare, reference=False, weights=reward_weights),
    _batch,
    _stepper,
    _judge,
    generates=False,
    note=_note,
)
