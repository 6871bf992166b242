"""The sampler: prefill and a decode loop, run by every device on its own rows."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from ppo_jax import sampling
from ppo_jax.config import RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.model import decode_step, prefill, unembed, value_head
from ppo_jax.rope import positions_from_mask
from ppo_jax.sharding import BATCH, REPLICATED
from ppo_jax.types import Array, Prompts, PyTree, Rollout


class _Record(NamedTuple):
    """What a device writes down while it decodes, one column a token."""

    ids_BT: Array
    logprobs_BT: Array
    values_BT: Array | None
    kept_ids_BTK: Array | None
    lengths_B: Array
    done_B: Array


def stop_ids(decoder: Decoder, options: RolloutOptions) -> tuple[int, ...]:
    """The model's EOS ids and the extra ones: each ends a response and counts as its last token."""
    return tuple(dict.fromkeys((*decoder.config.eos_token_ids, *options.stop_token_ids)))


def sample(
    decoder: Decoder,
    options: RolloutOptions,
    params: PyTree,
    head: PyTree | None,
    prompts: Prompts,
    key: Array,
    temperature: Array,
    *,
    greedy: bool = False,
) -> Rollout:
    """Continue each prompt until a stop id or `max_new_tokens`.

    Runs per device, without collectives: the loop ends when this device's rows have. `params` is
    the rollout copy of the trunk, `head` the value head where it sits on that trunk. Each row draws
    from a key of its own, folded from `key`, its sequence id and the position, so that its tokens
    depend on no other row.
    """
    B, P = prompts.ids_BP.shape
    T = options.max_new_tokens
    options = _without_idle_truncation(options, greedy)
    stops = stop_ids(decoder, options)
    row_keys_B = jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(key, i), k))(
        prompts.prompt_index_B, prompts.sample_index_B
    )
    last_position_B = positions_from_mask(prompts.mask_BP)[:, -1]
    prompt_columns_BS = jnp.pad(prompts.mask_BP, ((0, 0), (0, T)), constant_values=True)

    def emit(record: _Record, hidden_BD, t) -> _Record:
        """Draw token t from the state before it."""
        logits_BV = unembed(decoder, params, hidden_BD) / (1.0 if greedy else temperature)
        if options.min_new_tokens > 0:
            early_B = jnp.broadcast_to(t < options.min_new_tokens, (B,))
            logits_BV = sampling.suppress(logits_BV, stops, early_B)
        if greedy:
            drawn = sampling.greedy(logits_BV)
        else:
            u_B = sampling.uniforms(row_keys_B, t)
            drawn = sampling.draw(logits_BV, u_B, top_k=options.top_k, top_p=options.top_p)
        values_B = None if head is None else value_head(head, hidden_BD)
        return _write(record, drawn, values_B, t, stops)

    def body(carry):
        t, record, caches = carry
        column = P + t - 1  # where the token drawn last goes
        visible_BS = prompt_columns_BS & (jnp.arange(P + T)[None] <= column)
        token_B = lax.dynamic_index_in_dim(record.ids_BT, t - 1, axis=1, keepdims=False)
        hidden_BD, caches = decode_step(
            decoder, params, token_B, last_position_B + t, visible_BS, caches, column
        )
        return t + 1, emit(record, hidden_BD, t), caches

    hidden_BD, caches = prefill(decoder, params, prompts.ids_BP, prompts.mask_BP, P + T)
    record = _empty_record(B, T, options, decoder.config.pad_token_id, with_values=head is not None)
    record = emit(record, hidden_BD, jnp.int32(0))
    unfinished = lambda carry: (carry[0] < T) & ~jnp.all(carry[1].done_B)
    _, record, _ = lax.while_loop(unfinished, body, (jnp.int32(1), record, caches))
    return _as_rollout(prompts, record)


def _without_idle_truncation(options: RolloutOptions, greedy: bool) -> RolloutOptions:
    """A nucleus of 1 is everything; the likeliest id is always kept, its logprob is of all ids."""
    if greedy:
        return dataclasses.replace(options, top_k=None, top_p=None)
    return dataclasses.replace(options, top_p=None) if options.top_p == 1.0 else options


def _as_rollout(prompts: Prompts, record: _Record) -> Rollout:
    columns_1T = jnp.arange(record.ids_BT.shape[1])[None]
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=record.ids_BT,
        mask_BT=(columns_1T < record.lengths_B[:, None]).astype(jnp.float32),
        lengths_B=record.lengths_B,
        ended_B=record.done_B,
        logprobs_BT=record.logprobs_BT,
        values_BT=record.values_BT,
        kept_ids_BTK=record.kept_ids_BTK,
    )


def _empty_record(B, T, options, pad_id, *, with_values) -> _Record:
    truncated = options.top_k is not None or options.top_p is not None
    K = sampling.MAX_KEPT if options.top_k is None else options.top_k
    return _Record(
        ids_BT=jnp.full((B, T), pad_id, jnp.int32),
        logprobs_BT=jnp.zeros((B, T), jnp.float32),
        values_BT=jnp.zeros((B, T), jnp.float32) if with_values else None,
        kept_ids_BTK=jnp.full((B, T, K), -1, jnp.int32) if truncated else None,
        lengths_B=jnp.zeros((B,), jnp.int32),
        done_B=jnp.zeros((B,), bool),
    )


def _write(record: _Record, drawn: sampling.Draw, values_B, t, stops) -> _Record:
    """Column t of the record; rows that are done keep what the empty record holds."""
    live_B = ~record.done_B

    def put(columns, new):
        if columns is None:
            return None
        old = lax.dynamic_index_in_dim(columns, t, axis=1, keepdims=False)
        live = live_B.reshape(-1, *(1,) * (old.ndim - 1))
        new = jnp.where(live, _pad_last(new, old.shape), old)
        return lax.dynamic_update_index_in_dim(columns, new, t, axis=1)

    stopped_B = jnp.isin(drawn.ids_B, jnp.asarray(stops, jnp.int32))
    return _Record(
        ids_BT=put(record.ids_BT, drawn.ids_B),
        logprobs_BT=put(record.logprobs_BT, drawn.logprobs_B),
        values_BT=put(record.values_BT, values_B),
        kept_ids_BTK=put(record.kept_ids_BTK, drawn.kept_BK),
        lengths_B=record.lengths_B + live_B,
        done_B=record.done_B | stopped_B,
    )


def _pad_last(x, shape):
    """Kept ids of a vocabulary smaller than their room are filled up with -1."""
    if x.shape == shape:
        return x
    return jnp.pad(x, ((0, 0), (0, shape[-1] - x.shape[-1])), constant_values=-1)


def sharded_sample(mesh: Mesh, decoder: Decoder, options: RolloutOptions, *, greedy: bool = False):
    """`sample` under `shard_map`: the same signature less the static arguments, global arrays."""
    per_device = functools.partial(sample, decoder, options, greedy=greedy)
    return jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, BATCH, REPLICATED, REPLICATED),
        out_specs=BATCH,
        check_vma=False,  # the loops' carries start as constants, the same on every device
    )
