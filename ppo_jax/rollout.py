"""The sampler: prefill and decode loops, run by every device on its own rows."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import kv_cache, sampling, slots
from ppo_jax.config import RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.model import decode_step, prefill, unembed, value_head
from ppo_jax.rope import positions_from_mask
from ppo_jax.sharding import BATCH, REPLICATED, batch_devices, manual_axes
from ppo_jax.slots import State
from ppo_jax.types import Array, Prompts, PyTree, Rollout
from ppo_jax.weight_sharding import whole_logits


class _Record(NamedTuple):
    """What a device writes down while it decodes, one column a token."""

    ids_BT: Array
    logprobs_BT: Array
    values_BT: Array | None
    kept_ids_BTK: Array | None
    lengths_B: Array
    ended_B: Array


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

    Runs per device, without collectives: the loops end when this device's rows have, and
    `options.slots` are this device's. `params` is the rollout copy of the trunk, `head` the value
    head where it sits on that trunk. Each row draws from a key of its own, folded from `key`, its
    sequence id and the position, so that its tokens depend on no other row.
    """
    B, P = prompts.ids_BP.shape
    T = options.max_new_tokens
    emit = _emitter(decoder, options, params, head, prompts, key, temperature, greedy=greedy)
    first_column_B = P - prompts.mask_BP.sum(axis=1)
    last_position_B = positions_from_mask(prompts.mask_BP)[:, -1]

    def fill(state: State, count: int) -> State:
        """Prefill rows of the queue, and draw their first tokens."""
        claimed = slots.claim(state, B, count)
        ids_RP, mask_RP = prompts.ids_BP[claimed.row_R], prompts.mask_BP[claimed.row_R]
        hidden_RD, written = prefill(decoder, params, ids_RP, mask_RP)
        caches = kv_cache.write_prompts(state.caches, written, claimed.slot_R)
        t_R = jnp.zeros_like(claimed.row_R)
        record, token_R, live_R = emit(state.record, claimed.row_R, t_R, claimed.live_R, hidden_RD)
        seated = slots.seat(state.slots, claimed, token_R, live_R)
        return State(seated, caches, record, state.queued + count, state.steps)

    def step(state: State) -> State:
        """Read the token each slot drew last, and draw the next one."""
        row_W, t_W, token_W, live_W = state.slots
        column_W = P + t_W - 1  # where the token drawn last goes
        columns_1S = jnp.arange(P + T)[None]
        visible_WS = columns_1S >= first_column_B[row_W][:, None]
        visible_WS &= columns_1S <= column_W[:, None]
        reach = kv_cache.blocks_reached(state.caches, jnp.max(jnp.where(live_W, column_W, 0)))
        position_W = last_position_B[row_W] + t_W
        hidden_WD, caches = decode_step(
            decoder, params, token_W, position_W, visible_WS, state.caches, column_W, reach
        )
        record, token_W, goes_on_W = emit(state.record, row_W, t_W, live_W, hidden_WD)
        moved = slots.Slots(row_W, t_W + live_W, token_W, goes_on_W)
        return State(moved, caches, record, state.queued, state.steps + live_W.shape[0])

    state = _start(decoder, options, B, P, greedy=greedy, values=head is not None)
    state = slots.run(state, B, options.compactions, fill, step)
    return _as_rollout(prompts, state.record, state.steps)


def _start(decoder: Decoder, options: RolloutOptions, B: int, P: int, *, greedy, values) -> State:
    """Nothing read, nothing drawn, every row in the queue."""
    config, W = decoder.config, B if options.slots is None else min(options.slots, B)
    widths = kv_cache.block_widths(P, options.max_new_tokens, options.cache_widths)
    return State(
        slots.empty(W),
        kv_cache.empty(config, decoder.compute, W, widths, decoder.mesh),
        _empty_record(B, options, config.pad_token_id, greedy=greedy, values=values),
        queued=jnp.int32(0),
        steps=jnp.int32(0),
    )


def _emitter(decoder, options, params, head, prompts: Prompts, key, temperature, *, greedy):
    """`emit(record, row_N, t_N, live_N, hidden_ND) -> (record, token_N, goes_on_N)`: draw token t
    of some rows from the states before it; rows that are not live are not written down."""
    T, stops = options.max_new_tokens, stop_ids(decoder, options)
    top_k, top_p = _truncation(options, greedy)
    row_keys_B = jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(key, i), k))(
        prompts.prompt_index_B, prompts.sample_index_B
    )

    def emit(record: _Record, row_N, t_N, live_N, hidden_ND):
        logits_NV = whole_logits(decoder.mesh, unembed(decoder, params, hidden_ND))
        logits_NV /= 1.0 if greedy else temperature
        if options.min_new_tokens > 0:
            logits_NV = sampling.suppress(logits_NV, stops, t_N < options.min_new_tokens)
        if greedy:
            drawn = sampling.greedy(logits_NV)
        else:
            u_N = sampling.uniforms(row_keys_B[row_N], t_N)
            drawn = sampling.draw(logits_NV, u_N, top_k=top_k, top_p=top_p)
        values_N = None if head is None else value_head(head, hidden_ND)
        stopped_N = jnp.isin(drawn.ids_B, jnp.asarray(stops, jnp.int32))
        record = _write(record, drawn, values_N, stopped_N, row_N, t_N, live_N)
        return record, drawn.ids_B, live_N & ~stopped_N & (t_N + 1 < T)

    return emit


def _truncation(options: RolloutOptions, greedy: bool) -> tuple[int | None, float | None]:
    """(top_k, top_p). A nucleus of 1 is everything; the likeliest id is always kept, and its
    logprob is of all ids."""
    if greedy:
        return None, None
    return options.top_k, None if options.top_p == 1.0 else options.top_p


def _as_rollout(prompts: Prompts, record: _Record, steps: Array) -> Rollout:
    B, T = record.ids_BT.shape
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=record.ids_BT,
        mask_BT=(jnp.arange(T)[None] < record.lengths_B[:, None]).astype(jnp.float32),
        lengths_B=record.lengths_B,
        ended_B=record.ended_B,
        logprobs_BT=record.logprobs_BT,
        values_BT=record.values_BT,
        kept_ids_BTK=record.kept_ids_BTK,
        slot_steps_B=jnp.full((B,), steps.astype(jnp.float32) / B),
    )


def _empty_record(B, options, pad_id, *, greedy, values) -> _Record:
    T, (top_k, top_p) = options.max_new_tokens, _truncation(options, greedy)
    K = sampling.MAX_KEPT if top_k is None else top_k
    truncated = top_k is not None or top_p is not None
    return _Record(
        ids_BT=jnp.full((B, T), pad_id, jnp.int32),
        logprobs_BT=jnp.zeros((B, T), jnp.float32),
        values_BT=jnp.zeros((B, T), jnp.float32) if values else None,
        kept_ids_BTK=jnp.full((B, T, K), -1, jnp.int32) if truncated else None,
        lengths_B=jnp.zeros((B,), jnp.int32),
        ended_B=jnp.zeros((B,), bool),
    )


def _write(record: _Record, drawn: sampling.Draw, values_N, stopped_N, row_N, t_N, live_N):
    """The record with token t of the live rows."""
    at_N = jnp.where(live_N, row_N, record.lengths_B.shape[0])  # no such row: not written

    def put(columns, new_N):
        if columns is None:
            return None
        return columns.at[at_N, t_N].set(_pad_last(new_N, columns.shape[2:]), mode="drop")

    return _Record(
        ids_BT=put(record.ids_BT, drawn.ids_B),
        logprobs_BT=put(record.logprobs_BT, drawn.logprobs_B),
        values_BT=put(record.values_BT, values_N),
        kept_ids_BTK=put(record.kept_ids_BTK, drawn.kept_BK),
        lengths_B=record.lengths_B.at[at_N].set(t_N + 1, mode="drop"),
        ended_B=record.ended_B.at[at_N].set(stopped_N, mode="drop"),
    )


def _pad_last(x_N, room: tuple[int, ...]):
    """Kept ids of a vocabulary smaller than their room are filled up with -1."""
    if x_N.shape[1:] == room:
        return x_N
    return jnp.pad(x_N, ((0, 0), (0, room[0] - x_N.shape[1])), constant_values=-1)


def sharded_sample(
    mesh: Mesh,
    decoder: Decoder,
    options: RolloutOptions,
    *,
    greedy: bool = False,
    under: Literal["shard_map", "pmap"] = "shard_map",
):
    """`sample` on every device's rows: the same signature less the static arguments, global arrays.

    Under `shard_map` the devices of `data` and `fsdp` each run a program of their own, among whose
    `tensor` devices the compiler splits heads and matrices. Under `pmap` there is `data` alone.
    """
    if options.slots is not None:
        options = dataclasses.replace(options, slots=options.slots // batch_devices(mesh))
    per_device = functools.partial(sample, decoder, options, greedy=greedy)
    if under == "pmap":
        return _under_pmap(mesh, per_device)
    return jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, BATCH, REPLICATED, REPLICATED),
        out_specs=BATCH,
        axis_names=manual_axes(mesh),
        check_vma=False,  # the loops' carries start as constants, the same on every device
    )


def _under_pmap(mesh: Mesh, per_device):
    """Rows as [devices, rows of one, ...], which is how `jax.pmap` deals them."""
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(per_device, in_axes=(None, None, 0, None, None), devices=devices)
    deal = lambda x: x.reshape(len(devices), -1, *x.shape[1:])
    gather = lambda x: x.reshape(-1, *x.shape[2:])

    def sample_all(params, head, prompts: Prompts, key: Array, temperature) -> Rollout:
        temperature = jnp.float32(temperature)
        rollout = mapped(params, head, jax.tree.map(deal, prompts), key, temperature)
        return jax.tree.map(gather, rollout)

    return sample_all
