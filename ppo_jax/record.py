"""What the sampler writes down while it decodes, and the rollout that comes of it."""

from typing import NamedTuple

import jax.numpy as jnp

from ppo_jax import sampling
from ppo_jax.config import RolloutOptions
from ppo_jax.types import Array, Prompts, PyTree, Rollout


class Record(NamedTuple):
    """Rows of a device, one column a token."""

    ids_BT: Array
    logprobs_BT: Array
    values_BT: Array | None
    kept_ids_BTK: Array | None
    lengths_B: Array
    ended_B: Array
    # Of dialogues alone, see `dialogue`:
    generated_BT: Array | None = None  # float32
    rewards_BT: Array | None = None
    rows: PyTree = None


def truncation(options: RolloutOptions, greedy: bool) -> tuple[int | None, float | None]:
    """(top_k, top_p). A nucleus of 1 is everything; the likeliest id is always kept, and its
    logprob is of all ids."""
    if greedy:
        return None, None
    return options.top_k, None if options.top_p == 1.0 else options.top_p


def empty(B: int, options: RolloutOptions, pad_id: int, *, greedy: bool, values: bool) -> Record:
    T, (top_k, top_p) = options.max_new_tokens, truncation(options, greedy)
    K = sampling.MAX_KEPT if top_k is None else top_k
    truncated = top_k is not None or top_p is not None
    return Record(
        ids_BT=jnp.full((B, T), pad_id, jnp.int32),
        logprobs_BT=jnp.zeros((B, T), jnp.float32),
        values_BT=jnp.zeros((B, T), jnp.float32) if values else None,
        kept_ids_BTK=jnp.full((B, T, K), -1, jnp.int32) if truncated else None,
        lengths_B=jnp.zeros((B,), jnp.int32),
        ended_B=jnp.zeros((B,), bool),
    )


def write(record: Record, drawn: sampling.Draw, values_N, ended_N, row_N, t_N, live_N) -> Record:
    """The record with token t of the live rows."""
    at_N = live_rows(record, row_N, live_N)

    def put(columns, new_N):
        if columns is None:
            return None
        return columns.at[at_N, t_N].set(_pad_last(new_N, columns.shape[2:]), mode="drop")

    return record._replace(
        ids_BT=put(record.ids_BT, drawn.ids_B),
        logprobs_BT=put(record.logprobs_BT, drawn.logprobs_B),
        values_BT=put(record.values_BT, values_N),
        kept_ids_BTK=put(record.kept_ids_BTK, drawn.kept_BK),
        lengths_B=record.lengths_B.at[at_N].set(t_N + 1, mode="drop"),
        ended_B=record.ended_B.at[at_N].set(ended_N, mode="drop"),
    )


def live_rows(record: Record, row_N: Array, live_N: Array) -> Array:
    """Where rows are written: past the end, which is dropped, unless they are live."""
    return jnp.where(live_N, row_N, record.lengths_B.shape[0])


def _pad_last(x_N, room: tuple[int, ...]):
    """Kept ids of a vocabulary smaller than their room are filled up with -1."""
    if x_N.shape[1:] == room:
        return x_N
    return jnp.pad(x_N, ((0, 0), (0, room[0] - x_N.shape[1])), constant_values=-1)


def as_rollout(prompts: Prompts, record: Record, steps: Array) -> Rollout:
    B, T = record.ids_BT.shape
    mask_BT = record.generated_BT
    if mask_BT is None:
        mask_BT = (jnp.arange(T)[None] < record.lengths_B[:, None]).astype(jnp.float32)
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=record.ids_BT,
        mask_BT=mask_BT,
        lengths_B=record.lengths_B,
        ended_B=record.ended_B,
        logprobs_BT=record.logprobs_BT,
        values_BT=record.values_BT,
        kept_ids_BTK=record.kept_ids_BTK,
        slot_steps_B=jnp.full((B,), steps.astype(jnp.float32) / B),
        env_rewards_BT=record.rewards_BT,
    )
