"""The sampler: prefill and decode loops, run by every device on its own rows."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import dialogue, kv_cache, record, sampling, slots
from ppo_jax.config import RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.model import decode_step, prefill, unembed, value_head
from ppo_jax.rope import positions_from_mask
from ppo_jax.sharding import AT_ONCE, BATCH, REPLICATED, batch_devices, manual_axes
from ppo_jax.slots import State
from ppo_jax.types import Array, Prompts, PyTree, Rollout
from ppo_jax.weight_sharding import whole_logits


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
    tables: PyTree = None,
    *,
    greedy: bool = False,
    environment: DeviceEnv | None = None,
    together: bool = False,
) -> Rollout:
    """Continue each prompt until a stop id or `max_new_tokens`; or hold a dialogue with the
    `environment`, whose `tables` these are, until it is over.

    Runs per device, without collectives: the loops end when this device's rows have, and
    `options.slots` are this device's. `params` is the rollout copy of the trunk, `head` the value
    head on it. Each row draws from keys of its own (sequence id, position) and depends on no other.
    `together`: with other runs, under a `jax.vmap` over AT_ONCE; their loops end as one.
    """
    most = _most_of_all if together else lambda x: x
    (B, P), T = prompts.ids_BP.shape, options.max_new_tokens
    draw = _drawer(decoder, options, params, head, prompts, key, temperature, greedy=greedy)
    emit = _emitter(decoder, options, draw, environment, tables)
    first_column_B, last_position_B = _places(prompts)

    def fill(state: State, count: int) -> State:
        """Prefill rows of the queue, and draw their first tokens."""
        claimed = slots.claim(state, B, count)
        ids_RP, mask_RP = prompts.ids_BP[claimed.row_R], prompts.mask_BP[claimed.row_R]
        hidden_RD, read = prefill(decoder, params, ids_RP, mask_RP)
        caches = kv_cache.write_prompts(state.caches, read, claimed.slot_R)
        t_R = jnp.zeros_like(claimed.row_R)
        written, token_R, live_R = emit(state.record, claimed.row_R, t_R, claimed.live_R, hidden_RD)
        seated = slots.seat(state.slots, claimed, token_R, live_R)
        return State(seated, caches, written, state.queued + count, state.steps)

    def step(state: State) -> State:
        """Read the token each slot drew last, and draw the next one."""
        row_W, t_W, token_W, live_W = state.slots
        column_W = P + t_W - 1  # where the token drawn last goes
        visible_WS = _between(first_column_B[row_W], column_W, P + T)
        last = most(jnp.max(jnp.where(live_W, column_W, 0)))
        reach = kv_cache.blocks_reached(state.caches, last)
        position_W = last_position_B[row_W] + t_W
        read = params, token_W, position_W, visible_WS, state.caches, column_W, reach
        hidden_WD, caches = decode_step(decoder, *read)
        written, token_W, goes_on_W = emit(state.record, row_W, t_W, live_W, hidden_WD)
        moved, W = slots.Slots(row_W, t_W + live_W, token_W, goes_on_W), live_W.shape[0]
        return State(moved, caches, written, state.queued, state.steps + W)

    state = _start(decoder, options, B, P, greedy=greedy, values=head is not None)
    if environment is not None:
        opened = dialogue.opened(environment, options, tables, state.record, prompts, key)
        state = state._replace(record=opened)
    state = slots.run(state, B, options.compactions, fill, step, most)
    rollout = record.as_rollout(prompts, state.record, state.steps)
    return rollout if environment is None else _measured(rollout, environment, tables, state)


def _measured(rollout: Rollout, environment: DeviceEnv, tables: PyTree, state: State) -> Rollout:
    return rollout._replace(measures=dialogue.measures_of(environment, tables, state.record.rows))


def _most_of_all(x: Array) -> Array:
    """The largest of all runs that a device has at once: with one predicate for all a loop works
    on their caches in place; with one each XLA would select between old and new ones at every
    token."""
    return jax.lax.pmax(x, AT_ONCE)


def _places(prompts: Prompts) -> tuple[Array, Array]:
    """(column, position) of each prompt's first and of its last token, [B]."""
    first_column_B = prompts.ids_BP.shape[1] - prompts.mask_BP.sum(axis=1)
    return first_column_B, positions_from_mask(prompts.mask_BP)[:, -1]


def _between(first_W: Array, last_W: Array, columns: int) -> Array:
    """Which of so many columns lie from the first to the last of each slot, [W, S]."""
    columns_1S = jnp.arange(columns)[None]
    return (columns_1S >= first_W[:, None]) & (columns_1S <= last_W[:, None])


def _start(decoder: Decoder, options: RolloutOptions, B: int, P: int, *, greedy, values) -> State:
    """Nothing read, nothing drawn, every row in the queue."""
    config, W = decoder.config, B if options.slots is None else min(options.slots, B)
    widths = kv_cache.block_widths(P, options.max_new_tokens, options.cache_widths)
    return State(
        slots.empty(W),
        kv_cache.empty(config, decoder.compute, W, widths, decoder.mesh),
        record.empty(B, options, config.pad_token_id, greedy=greedy, values=values),
        queued=jnp.int32(0),
        steps=jnp.int32(0),
    )


def _drawer(decoder, options, params, head, prompts: Prompts, key, temperature, *, greedy):
    """`draw(row_N, t_N, hidden_ND) -> (Draw, values_N)`: token t of some rows, from the states
    before it."""
    stops, (top_k, top_p) = stop_ids(decoder, options), record.truncation(options, greedy)
    row_keys_B = jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(key, i), k))(
        prompts.prompt_index_B, prompts.sample_index_B
    )

    def draw(row_N, t_N, hidden_ND):
        logits_NV = whole_logits(decoder.mesh, unembed(decoder, params, hidden_ND))
        logits_NV /= 1.0 if greedy else temperature
        if options.min_new_tokens > 0:
            logits_NV = sampling.suppress(logits_NV, stops, t_N < options.min_new_tokens)
        if greedy:
            drawn = sampling.greedy(logits_NV)
        else:
            u_N = sampling.uniforms(row_keys_B[row_N], t_N)
            drawn = sampling.draw(logits_NV, u_N, top_k=top_k, top_p=top_p)
        return drawn, None if head is None else value_head(head, hidden_ND)

    return draw


def _emitter(decoder, options, draw, environment: DeviceEnv | None, tables):
    """`emit(record, row_N, t_N, live_N, hidden_ND) -> (record, token_N, goes_on_N)`: draw token t
    of some rows, or take it from what the environment says; rows that are not live are not written
    down."""
    T, stops = options.max_new_tokens, stop_ids(decoder, options)
    if environment is not None:
        return dialogue.emitter(environment, options, tables, draw, stops)

    def emit(written: record.Record, row_N, t_N, live_N, hidden_ND):
        drawn, values_N = draw(row_N, t_N, hidden_ND)
        stopped_N = jnp.isin(drawn.ids_B, jnp.asarray(stops, jnp.int32))
        written = record.write(written, drawn, values_N, stopped_N, row_N, t_N, live_N)
        return written, drawn.ids_B, live_N & ~stopped_N & (t_N + 1 < T)

    return emit


def sharded_sample(
    mesh: Mesh,
    decoder: Decoder,
    options: RolloutOptions,
    *,
    greedy: bool = False,
    under: Literal["shard_map", "pmap"] = "shard_map",
    environment: DeviceEnv | None = None,
    together: bool = False,
):
    """`sample` on every device's rows: the same signature less the static arguments, global arrays;
    `tables` with an environment alone; `together` as for `sample`.

    Under `shard_map` the devices of `data` and `fsdp` each run a program of their own, among whose
    `tensor` devices the compiler splits heads and matrices. Under `pmap` there is `data` alone.
    """
    if options.slots is not None:
        options = dataclasses.replace(options, slots=options.slots // batch_devices(mesh))
    per_device = functools.partial(
        sample, decoder, options, greedy=greedy, environment=environment, together=together
    )
    tables = 0 if environment is None else 1  # arguments more
    if under == "pmap":
        return _under_pmap(mesh, per_device, tables)
    if mesh.size == 1:  # which may be any one, of many that each have runs of their own
        return per_device
    return jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, BATCH, REPLICATED, REPLICATED, *[REPLICATED] * tables),
        out_specs=BATCH,
        axis_names=manual_axes(mesh),
        check_vma=False,  # the loops' carries start as constants, the same on every device
    )


def _under_pmap(mesh: Mesh, per_device, tables: int):
    """Rows as [devices, rows of one, ...], which is how `jax.pmap` deals them."""
    devices = list(mesh.devices.flat)
    axes = (None, None, 0, None, None, *[None] * tables)
    mapped = jax.pmap(per_device, in_axes=axes, devices=devices)
    deal = lambda x: x.reshape(len(devices), -1, *x.shape[1:])
    gather = lambda x: x.reshape(-1, *x.shape[2:])

    def sample_all(params, head, prompts: Prompts, key: Array, temperature, *tables) -> Rollout:
        temperature = jnp.float32(temperature)
        rollout = mapped(params, head, jax.tree.map(deal, prompts), key, temperature, *tables)
        return jax.tree.map(gather, rollout)

    return sample_all
