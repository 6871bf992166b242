"""Scorers and rollouts that no sampler made, for the scoring passes."""

import jax.numpy as jnp
import numpy as np

from builders import random_prompts, tiny_model
from ppo_jax.decoder import Decoder
from ppo_jax.scoring import Scorer
from ppo_jax.types import Rollout

B, P, T, V, D = 6, 4, 10, 83, 16
STOPS = (3, 80)


def make_scorer(decoder=None, *, chunk=100, min_new_tokens=0):
    """`chunk` columns of B padded rows at once."""
    decoder = Decoder(tiny_model()) if decoder is None else decoder
    return Scorer(decoder, decoder, STOPS, min_new_tokens, chunk * B)


def make_rollout(seed, *, vocab=V, T=T, kept=None, min_new_tokens=0):
    """Random responses of 1 to T tokens; `kept` ids recorded a token, some of them empty places."""
    rng = np.random.default_rng(seed)
    prompts = random_prompts(B, P, seed, vocab)
    lengths_B = rng.integers(max(1, min_new_tokens), T + 1, size=B)
    lengths_B[:2] = max(1, min_new_tokens), T
    mask_BT = np.arange(T) < lengths_B[:, None]
    allowed = np.setdiff1d(np.arange(vocab), STOPS)
    ids_BT = np.where(mask_BT, rng.choice(allowed, size=(B, T)), 80)
    kept_BTK = None
    if kept is not None:
        kept_BTK = np.full((B, T, kept), -1)
        for b, t in zip(*np.nonzero(mask_BT), strict=True):
            others = np.setdiff1d(allowed, ids_BT[b, t])
            ids = [ids_BT[b, t], *rng.choice(others, rng.integers(0, kept), replace=False)]
            kept_BTK[b, t, : len(ids)] = rng.permutation(ids)
        kept_BTK = jnp.asarray(kept_BTK, jnp.int32)
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=jnp.asarray(ids_BT, jnp.int32),
        mask_BT=jnp.asarray(mask_BT, jnp.float32),
        lengths_B=jnp.asarray(lengths_B, jnp.int32),
        ended_B=jnp.zeros(B, bool),
        logprobs_BT=jnp.zeros((B, T)),
        values_BT=None,
        kept_ids_BTK=kept_BTK,
        slot_steps_B=jnp.zeros(B),
    )
