"""The training forward: log-probabilities, entropies, values and exact KLs of sampled tokens.

The scoring passes before the update and the loss inside it call the same `forward`, which is why
the first minibatch's ratios are 1 to rounding. Logits exist for a chunk of tokens at a time and
are recomputed in the backward pass: [B, T, V] never exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax import sampling
from ppo_jax.decoder import Decoder
from ppo_jax.model import trunk, unembed, value_head
from ppo_jax.types import Array, PyTree, Rollout


class Scorer(NamedTuple):
    """Static facts of the scoring passes."""

    decoder: Decoder
    critic: Decoder  # of a critic with a trunk of its own
    stops: tuple[int, ...]
    min_new_tokens: int
    chunk: int  # response columns whose logits exist at once


class Forward(NamedTuple):
    logprobs_BT: Array
    entropy_BT: Array
    kl_BT: Array | None
    hidden_BUD: Array  # states before each token and after the last column, U = T + 1


def response_hidden(decoder: Decoder, params: PyTree, rollout: Rollout) -> Array:
    """Hidden states [B, T + 1, D]: the one before each response token, and after the last."""
    ids_BS = jnp.concatenate([rollout.prompt_ids_BP, rollout.response_ids_BT], axis=1)
    mask_BS = jnp.concatenate([rollout.prompt_mask_BP, rollout.mask_BT > 0], axis=1)
    hidden_BSD = trunk(decoder, params, ids_BS, mask_BS)
    return hidden_BSD[:, rollout.prompt_ids_BP.shape[1] - 1 :]


def forward(
    scorer: Scorer,
    params: PyTree,
    rollout: Rollout,
    temperature: Array,
    *,
    reference: tuple[PyTree, Array] | None = None,
) -> Forward:
    """Score the sampled tokens under the trunk `params`.

    `reference` = (reference trunk, its hidden states [B, T, D]) asks for the exact KL of this
    policy to the reference at every position, over the ids that could be sampled, in nats.
    """
    hidden_BUD = response_hidden(scorer.decoder, params, rollout)
    logprobs_BT, entropy_BT, kl_BT = token_statistics(
        scorer, params, hidden_BUD[:, :-1], rollout, temperature, reference
    )
    return Forward(logprobs_BT, entropy_BT, kl_BT, hidden_BUD)


def token_statistics(scorer, params, hidden_BTD, rollout: Rollout, temperature, reference=None):
    """(logprobs_BT, entropy_BT, kl_BT or None) by chunks of response columns."""
    T = hidden_BTD.shape[1]
    columns = {"hidden": hidden_BTD, "ids": rollout.response_ids_BT, "t": _columns(rollout)}
    if rollout.kept_ids_BTK is not None:
        columns["kept"] = rollout.kept_ids_BTK
    if reference is not None:
        columns["ref_hidden"] = reference[1]
    ref_params = None if reference is None else reference[0]

    def statistics(head_params, ref_head_params, temperature, chunk):
        over, chosen = _logits(scorer, head_params, chunk["hidden"], chunk, temperature)
        norm = jax.nn.logsumexp(over, axis=-1)
        probs = jnp.exp(over - norm[..., None])
        entropy = norm - jnp.sum(probs * over, axis=-1)
        if ref_head_params is None:
            return chosen - norm, entropy, None
        ref_over, _ = _logits(scorer, ref_head_params, chunk["ref_hidden"], chunk, temperature)
        gap = jax.nn.logsumexp(ref_over, axis=-1) - norm
        return chosen - norm, entropy, jnp.sum(probs * (over - ref_over), axis=-1) + gap

    whole = scorer.chunk >= T
    statistics = jax.checkpoint(statistics, prevent_cse=whole)  # a scan needs no barrier
    one = lambda chunk: statistics(_head(params), _head(ref_params), temperature, chunk)
    if whole:
        return one(columns)
    stats = lax.map(one, jax.tree.map(lambda x: _split_columns(x, scorer.chunk), columns))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)[:, :T], stats)


def _head(params: PyTree | None) -> PyTree | None:
    """The part of a trunk that makes logits, so that nothing else is saved for the backward."""
    return None if params is None else {k: params[k] for k in ("embed", "lm_head") if k in params}


def _columns(rollout: Rollout) -> Array:
    B, T = rollout.response_ids_BT.shape
    return jnp.broadcast_to(jnp.arange(T), (B, T))


def _split_columns(x_BT, chunk: int):
    """[B, T, ...] -> [ceil(T / chunk), B, chunk, ...], zero-filled at the end: the rows stay whole,
    so a batch split over devices stays split."""
    B, T = x_BT.shape[:2]
    x = jnp.pad(x_BT, ((0, 0), (0, -T % chunk), *((0, 0),) * (x_BT.ndim - 2)))
    return jnp.swapaxes(x.reshape(B, -1, chunk, *x.shape[2:]), 0, 1)


def _logits(scorer, head_params, hidden, chunk, temperature) -> tuple[Array, Array]:
    """Tempered logits: of the ids a token could have been, and of the token it was."""
    logits = unembed(scorer.decoder, head_params, hidden) / temperature
    if scorer.min_new_tokens > 0:
        logits = sampling.suppress(logits, scorer.stops, chunk["t"] < scorer.min_new_tokens)
    chosen = jnp.take_along_axis(logits, chunk["ids"][..., None], axis=-1)[..., 0]
    if "kept" not in chunk:
        return logits, chosen
    kept = chunk["kept"]
    over = jnp.take_along_axis(logits, jnp.maximum(kept, 0), axis=-1)
    # Columns past the end of a response kept nothing: give them the whole row, it is masked later.
    empty = jnp.all(kept < 0, axis=-1, keepdims=True)
    return jnp.where((kept >= 0) | empty, over, sampling.NEVER), chosen


def values_from(
    params: PyTree, scorer: Scorer, rollout: Rollout, hidden_BUD: Array | None
) -> Array:
    """Values [B, T + 1] of the states before each token and after the last column.

    `params` is the value tree: a head on the policy's hidden states, or one with a trunk of its
    own, which then reads the sequences itself.
    """
    if "trunk" in params:
        hidden_BUD = response_hidden(scorer.critic, params["trunk"], rollout)
    return value_head(params["head"], hidden_BUD)
