"""Responses with their prompts and scores, as rows for the log and the screen."""

import math

import jax
import numpy as np

from ppo_jax import data
from ppo_jax.evaluate import pad_rows, response_texts
from ppo_jax.evaluation import score_everywhere, total
from ppo_jax.prepare import Run
from ppo_jax.processes import is_writer
from ppo_jax.programs import Finished
from ppo_jax.sharding import fetch_own_rows, own_rows, put_batch, put_replicated
from ppo_jax.types import Prompts, PyTree, TrainState

READ = ("response_ids_BT", "lengths_B", "ended_B", "mask_BT")  # of a rollout, by `sample_rows`
SHOWN_KEY = 2**31 - 1  # folded in for the shown samples: no iteration has this number


def sample_rows(run: Run, done: Finished, count: int) -> list[dict]:
    """Of the first `count` sequences of this process, each a row for samples.jsonl."""
    mesh, rollout = run.setup.mesh, done.rollout
    assert rollout is not None
    own = own_rows(mesh, len(done.prompts.prompt_index_B))[:count]
    prompts = jax.tree.map(lambda x: np.asarray(x)[own], done.prompts)
    arrays = done.scores_B, *(getattr(rollout, name) for name in READ)
    return _rows(run, prompts, *(rows[:count] for rows in fetch_own_rows(mesh, arrays)))


def fetch_logged(done: Finished) -> Finished:
    """All of it that the log says, as NumPy arrays; waits for them."""
    rollout = done.rollout
    if rollout is not None:
        rollout = rollout._replace(**dict.fromkeys({*rollout._fields} - {*READ}))
    metrics, rollout, scores_B = jax.device_get((done.metrics, rollout, done.scores_B))
    return done._replace(metrics=metrics, rollout=rollout, scores_B=scores_B)


def _rows(run: Run, prompts: Prompts, scores_B, ids_BT, lengths_B, ended_B, mask_BT) -> list[dict]:
    texts = data.batch_prompts(run.dataset, prompts)
    responses = response_texts(run.tokenizer, ids_BT, lengths_B)
    written_B = mask_BT.sum(axis=1)
    rows = zip(texts, responses, scores_B, lengths_B, written_B, ended_B, strict=True)
    return [
        {
            "prompt": prompt,
            "response": response,
            "score": float(score) if math.isfinite(score) else str(score),
            "tokens": int(tokens),
            "written": int(written),  # of them by the policy; the others by an environment
            "ended": bool(ended),
        }
        for prompt, response, score, tokens, written, ended in rows
    ]


def shown(run: Run, evaluate, state: TrainState, frozen: PyTree) -> list[dict]:
    """The fixed prompts continued by the policy as it stands, with their scores; all processes
    continue them, the first one has the rows. None where an environment in Python answers."""
    if evaluate is None or run.host_env is not None:
        return []
    count, mesh = run.config.run.show_prompts, run.setup.mesh
    prompts = data.fixed_prompts(run.dataset, count, pad_id=run.pad_id, width=run.width)
    padded = pad_rows(run.setup, prompts)
    key = jax.random.fold_in(jax.random.key(run.config.run.seed), SHOWN_KEY)
    on_devices = put_batch(mesh, padded), put_replicated(mesh, key)
    found = evaluate(state.params, frozen, run.hparams.temperature, *on_devices)
    rollout, raw = jax.device_get(found)
    raw = score_everywhere(run, padded, rollout, raw, SHOWN_KEY)
    if not is_writer():
        return []
    scores_B = np.asarray(total(run, raw, rollout).total_B)
    arrays = (getattr(rollout, name) for name in READ)
    rows = _rows(run, padded, scores_B, *arrays)[: prompts.ids_BP.shape[0]]
    return rows if run.parts else [{**row, "score": None} for row in rows]
