"""Dialogues with an environment, in the sampler's own loop.

Each turn of the loop a row takes one token: the one drawn, or, while its environment speaks, the
next one of the observation. A stop id ends an action, not the row; then the environment steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import sampling
from ppo_jax.config import RolloutOptions
from ppo_jax.envs.base import DeviceEnv, Observation, observation_width
from ppo_jax.record import Record, live_rows, write
from ppo_jax.types import Array, Prompts, PyTree

OPENING = 2**31 - 1  # folded into a row's key for its environment: no token has this position


class Row(NamedTuple):
    """Where the dialogue of a row stands."""

    state: PyTree  # of the environment
    spoken_O: Array  # int32, the newest observation
    length: Array  # int32, its tokens
    read: Array  # int32, those of them that the row has taken
    action_A: Array  # int32, the action under way
    said: Array  # int32, its tokens so far
    turns: Array  # int32, actions so far


class Taken(NamedTuple):
    """What one token of a row came to."""

    id: Array  # int32
    generated: Array  # bool, drawn by the policy
    reward: Array  # float32, of the action it ended
    done: Array  # bool, the episode is over
    goes_on: Array  # bool, the row takes another one


Take = Callable[[Row, Array, Array], tuple[Row, Taken]]


def opened(
    environment: DeviceEnv,
    options: RolloutOptions,
    tables: PyTree,
    record: Record,
    prompts: Prompts,
    key: Array,
) -> Record:
    """An empty record with all dialogues before their first token. The samples of a prompt meet the
    same opening."""
    columns, group_B = prompts.columns, prompts.sample_index_B // options.samples_per_prompt
    width = observation_width(environment, tables, jax.tree.map(lambda x: x[0], columns))

    def open_row(prompt, group, row) -> Row:
        row_key = jax.random.fold_in(jax.random.fold_in(key, prompt), group)
        state, seen = environment.reset(tables, jax.random.fold_in(row_key, OPENING), row)
        action_A = jnp.zeros((environment.max_action_tokens,), jnp.int32)
        zero = jnp.int32(0)
        return Row(state, _padded(seen, width), seen.length, zero, action_A, zero, zero)

    rows = jax.vmap(open_row)(prompts.prompt_index_B, group_B, columns)
    zeros_BT = jnp.zeros(record.ids_BT.shape, jnp.float32)
    return record._replace(generated_BT=zeros_BT, rewards_BT=zeros_BT, rows=rows)


def emitter(
    environment: DeviceEnv,
    options: RolloutOptions,
    tables: PyTree,
    draw: Callable,
    stops: tuple[int, ...],
):
    """`emit` of `rollout.sample` in dialogues: the token drawn, or the next one of an observation,
    of which no more than its id is written down."""
    take = taker(environment, options, tables, stops)

    def emit(record: Record, row_N, t_N, live_N, hidden_ND):
        drawn, values_N = draw(row_N, t_N, hidden_ND)
        rows_N = jax.tree.map(lambda x_B: x_B[row_N], record.rows)
        rows_N, taken = jax.vmap(take)(rows_N, drawn.ids_B, t_N)
        own = lambda x_N, other: jnp.where(taken.generated, x_N, other)
        kept_NK = drawn.kept_BK
        if kept_NK is not None:
            kept_NK = jnp.where(taken.generated[:, None], kept_NK, -1)
        drawn = sampling.Draw(taken.id, own(drawn.logprobs_B, 0.0), kept_NK)
        values_N = None if values_N is None else own(values_N, 0.0)
        record = write(record, drawn, values_N, taken.done, row_N, t_N, live_N)
        at_N = live_rows(record, row_N, live_N)
        put = lambda old_B, new_N: old_B.at[at_N].set(new_N, mode="drop")
        note = lambda old_BT, new_N: old_BT.at[at_N, t_N].set(new_N, mode="drop")
        generated_BT, rewards_BT = record.generated_BT, record.rewards_BT
        record = record._replace(
            generated_BT=note(generated_BT, taken.generated.astype(jnp.float32)),
            rewards_BT=note(rewards_BT, taken.reward),
            rows=jax.tree.map(put, record.rows, rows_N),
        )
        return record, taken.id, live_N & taken.goes_on

    return emit


def taker(
    environment: DeviceEnv, options: RolloutOptions, tables: PyTree, stops: tuple[int, ...]
) -> Take:
    """`take(row, drawn, t) -> (row, taken)`: token t of one row, `drawn` unless it reads.

    An observation is read whole or not at all: where it does not fit into the tokens left, the row
    ends with the action before it. It is read after the last turn too, so that the state after
    a dialogue that was cut is one like those before actions.
    """
    A, T = environment.max_action_tokens, options.max_new_tokens

    def take(row: Row, drawn: Array, t: Array) -> tuple[Row, Taken]:
        reads = row.read < row.length
        width = row.spoken_O.shape[0]
        id = jnp.where(reads, row.spoken_O[jnp.minimum(row.read, width - 1)], drawn)
        said = row.said + ~reads
        place = jnp.where(reads, A, row.said)  # past the end: dropped
        action_A = row.action_A.at[place].set(id, mode="drop")
        acts = ~reads & ((said == A) | jnp.isin(id, jnp.asarray(stops, jnp.int32)))

        state, seen, reward, done = environment.step(tables, row.state, action_A, said)
        done &= acts
        fits = t + 1 + seen.length <= T
        kept = lambda new, old: jax.tree.map(lambda x, y: jnp.where(acts, x, y), new, old)
        speaks = jnp.where(done | ~fits, 0, seen.length)
        row = Row(
            state=kept(state, row.state),
            spoken_O=kept(_padded(seen, width), row.spoken_O),
            length=kept(speaks, row.length),
            read=kept(jnp.int32(0), row.read + reads),
            action_A=kept(jnp.zeros_like(action_A), action_A),
            said=kept(jnp.int32(0), said),
            turns=row.turns + acts,
        )
        may_follow = (row.read < row.length) | (row.turns < environment.max_turns)
        goes_on = may_follow & ~done & ~(acts & ~fits) & (t + 1 < T)
        return row, Taken(id, ~reads, kept(reward, jnp.float32(0)), done, goes_on)

    return take


def measures_of(environment: DeviceEnv, tables: PyTree, rows: Row) -> dict[str, Array]:
    """The environment's measures of all rows, float32 [B] by name, and `turns`."""
    found = jax.vmap(lambda state: environment.measures(tables, state))(rows.state)
    measures = {name: x_B.astype(jnp.float32) for name, x_B in found.items()}
    return {"turns": rows.turns.astype(jnp.float32)} | measures


def _padded(seen: Observation, width: int) -> Array:
    return jnp.pad(seen.ids_O, (0, width - seen.ids_O.shape[0]))
