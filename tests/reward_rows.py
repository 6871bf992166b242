"""Rollouts made by hand, for the rewards on the device."""

import numpy as np

from ppo_jax.types import Rollout

STOP = 257  # the byte tokenizer's


def make_rollout(rows, length: int, *, ended=None, pad: int = STOP, junk=None) -> Rollout:
    """Responses as they are given; those that have `ended` (all, by default) get a stop token more.

    What is padding holds `pad`, equal to the stop token unless told otherwise, or `junk` [B, T].
    """
    ended_B = np.ones(len(rows), bool) if ended is None else np.asarray(ended, bool)
    rows = [[*row, STOP] if stop else list(row) for row, stop in zip(rows, ended_B, strict=True)]
    ids_BT = np.full((len(rows), length), pad, np.int32) if junk is None else junk.astype(np.int32)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: len(row)] = row
    lengths_B = np.array([len(row) for row in rows], np.int32)
    mask_BT = (np.arange(length) < lengths_B[:, None]).astype(np.float32)
    prompt_BP = np.full((len(rows), 4), ord("a"), np.int32)
    return Rollout(
        prompt_ids_BP=prompt_BP,
        prompt_mask_BP=prompt_BP > 0,
        response_ids_BT=ids_BT,
        mask_BT=mask_BT,
        lengths_B=lengths_B,
        ended_B=ended_B,
        logprobs_BT=np.zeros_like(mask_BT),
        values_BT=None,
        kept_ids_BTK=None,
        slot_steps_B=np.zeros(len(rows), np.float32),
    )
