"""Responses with their prompts and scores, as rows for the log and the screen."""

import math

import jax

from ppo_jax import data
from ppo_jax.evaluate import pad_rows, response_texts
from ppo_jax.prepare import Run
from ppo_jax.programs import Finished, host_scores
from ppo_jax.reward import combine_scores
from ppo_jax.types import PyTree, TrainState

SHOWN_KEY = 2**31 - 1  # folded in for the shown samples: no iteration has this number


def sample_rows(run: Run, done: Finished) -> list[dict]:
    """One row a sequence for samples.jsonl."""
    prompts = data.batch_prompts(run.dataset, done.prompts)
    lengths_B, ended_B, scores_B = jax.device_get(
        (done.rollout.lengths_B, done.rollout.ended_B, done.scores_B)
    )
    responses = response_texts(run.tokenizer, done.rollout)
    rows = zip(prompts, responses, scores_B, lengths_B, ended_B, strict=True)
    return [
        {
            "prompt": prompt,
            "response": response,
            "score": float(score) if math.isfinite(score) else str(score),
            "tokens": int(tokens),
            "ended": bool(ended),
        }
        for prompt, response, score, tokens, ended in rows
    ]


def shown(run: Run, evaluate, state: TrainState, frozen: PyTree) -> list[dict]:
    """The fixed prompts continued by the policy as it stands, with their scores."""
    if evaluate is None:
        return []
    count = run.config.run.show_prompts
    prompts = data.fixed_prompts(run.dataset, count, pad_id=run.pad_id, width=run.width)
    padded = pad_rows(run.setup, prompts)
    key = jax.random.fold_in(jax.random.key(run.config.run.seed), SHOWN_KEY)
    rollout, raw = evaluate(state.params, frozen, run.hparams.temperature, padded, key)
    if run.has_host_reward:
        scores, _ = host_scores(run, jax.device_get(padded), rollout, SHOWN_KEY)
        raw = raw | jax.device_put(scores)
    scores = combine_scores(raw, run.setup.weights, rollout, on_error=run.config.reward.on_error)
    done = Finished(0, jax.device_get(padded), {}, rollout, scores.total_B, {})
    return sample_rows(run, done)[: prompts.ids_BP.shape[0]]
