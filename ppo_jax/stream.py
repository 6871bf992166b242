"""The token stream: sequences side by side, without the padding between them.

The training forward runs on streams. A batch of B = Z x R rows is Z streams of R rows each, in N
columns: one stream a device, whose rows stand one after another; or, as padded rows, one stream a
row (R = 1), N its full width. Dense layers and the head cost what their columns cost, so a stream
of unequal rows costs its real tokens; only attention has to know where a row begins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.types import Array, Rollout


class Layout(NamedTuple):
    """Static shape of a batch's streams."""

    streams: int  # Z
    columns: int  # N
    width: int  # the most tokens a row can hold
    final: bool  # the last response token is there too: the state after it is wanted


class Stream(NamedTuple):
    """Where each token stands. M response tokens a stream stand in a line of their own, for the
    head; index arrays point one past the end where nothing stands."""

    ids_ZN: Array  # int32
    positions_ZN: Array  # int32, of the token in its row
    row_ZN: Array  # int32, the stream's row a token belongs to; R where nothing stands
    lengths_ZR: Array  # int32, tokens of each row in the stream
    state_ZM: Array  # int32, column of the state before response token m
    response_ZN: Array  # int32, the response token that follows column n: the inverse of state_ZM
    cell_ZM: Array  # int32, row x T + t of response token m
    token_ZC: Array  # int32, response token m of cell row x T + t: the inverse of cell_ZM
    final_ZR: Array  # int32, column of the state after the last response token, where it is there
    count_Z: Array  # int32, response tokens of each stream


def row_layout(rollout: Rollout, *, final: bool) -> Layout:
    """Padded rows: every row a stream of its own."""
    width = row_width(rollout, final=final)
    return Layout(rollout.lengths_B.shape[0], width, width, final)


def row_width(rollout: Rollout, *, final: bool) -> int:
    """The most tokens a row can hold. The last response token is only read for what follows it."""
    return rollout.prompt_ids_BP.shape[1] + rollout.response_ids_BT.shape[1] - (not final)


def row_tokens(rollout: Rollout, *, final: bool) -> Array:
    """Tokens [B], int32, that each row has in a stream."""
    return rollout.prompt_mask_BP.sum(axis=1, dtype=jnp.int32) + rollout.lengths_B - (not final)


def pack(rollout: Rollout, present_B: Array, layout: Layout) -> Stream:
    """The rows that are present, as streams. Each stream's tokens must fit into its columns."""
    Z, N = layout.streams, layout.columns
    (_, P), (_, T) = rollout.prompt_ids_BP.shape, rollout.response_ids_BT.shape
    cut = lambda x_B: x_B.reshape(Z, -1, *x_B.shape[1:])
    lengths_ZR = cut(jnp.where(present_B, row_tokens(rollout, final=layout.final), 0))
    prompts_ZR = cut(rollout.prompt_mask_BP.sum(axis=1, dtype=jnp.int32))
    responses_ZR = cut(jnp.where(present_B, rollout.lengths_B, 0))
    R = lengths_ZR.shape[1]

    row_ZN, positions_ZN = _line(lengths_ZR, N)
    # In [prompt | response] a row's tokens stand side by side: its prompt is at the right end.
    ids_ZRS = cut(jnp.concatenate([rollout.prompt_ids_BP, rollout.response_ids_BT], axis=1))
    source_ZN = row_ZN * (P + T) + P - _of_row(prompts_ZR, row_ZN) + positions_ZN
    ids_ZN = gather(ids_ZRS.reshape(Z, -1), jnp.where(row_ZN < R, source_ZN, R * (P + T)))

    M = min(N, R * T)
    row_ZM, t_ZM = _line(responses_ZR, M)
    state_ZM = _of_row(_starts(lengths_ZR) + prompts_ZR, row_ZM) - 1 + t_ZM
    follows_ZN = positions_ZN + 1 - _of_row(prompts_ZR, row_ZN)  # t of the token after this one
    answered_ZN = (row_ZN < R) & (follows_ZN >= 0) & (follows_ZN < _of_row(responses_ZR, row_ZN))
    response_ZN = jnp.where(answered_ZN, _of_row(_starts(responses_ZR), row_ZN) + follows_ZN, M)
    columns_11T = jnp.arange(T)[None, None]
    token_ZRT = jnp.where(
        columns_11T < responses_ZR[..., None], _starts(responses_ZR)[..., None] + columns_11T, M
    )
    final_ZR = jnp.where(lengths_ZR > 0, _starts(lengths_ZR) + lengths_ZR - 1, N)
    return Stream(
        ids_ZN,
        positions_ZN,
        row_ZN,
        lengths_ZR,
        jnp.where(row_ZM < R, state_ZM, N),
        response_ZN,
        jnp.where(row_ZM < R, row_ZM * T + t_ZM, R * T),
        token_ZRT.reshape(Z, -1),
        final_ZR,
        responses_ZR.sum(axis=1),
    )


def columns_of_rows(stream: Stream, layout: Layout) -> tuple[Array, Array]:
    """(column [Z, R x width] of each cell of padded rows, cell [Z, N] of each column)."""
    R, width, N = stream.lengths_ZR.shape[1], layout.width, layout.columns
    position_11S = jnp.arange(width)[None, None]
    there_ZRS = position_11S < stream.lengths_ZR[..., None]
    column_ZRS = jnp.where(there_ZRS, _starts(stream.lengths_ZR)[..., None] + position_11S, N)
    cell_ZN = jnp.where(stream.row_ZN < R, stream.row_ZN * width + stream.positions_ZN, R * width)
    return column_ZRS.reshape(column_ZRS.shape[0], -1), cell_ZN


def _starts(lengths_ZR: Array) -> Array:
    return jnp.cumsum(lengths_ZR, axis=1) - lengths_ZR


def _line(lengths_ZR: Array, columns: int) -> tuple[Array, Array]:
    """(row, position in the row) of every column where rows of these lengths stand in line; row R
    and position 0 past their end."""
    ends_ZR, column_N = jnp.cumsum(lengths_ZR, axis=1), jnp.arange(columns, dtype=jnp.int32)
    row_ZN = jnp.sum(column_N[None, :, None] >= ends_ZR[:, None, :], axis=-1, dtype=jnp.int32)
    position_ZN = column_N[None] - _of_row(_starts(lengths_ZR), row_ZN)
    return row_ZN, jnp.where(row_ZN < lengths_ZR.shape[1], position_ZN, 0)


def _of_row(x_ZR: Array, row_ZN: Array) -> Array:
    """What each column's row has; 0 where no row is."""
    return gather(x_ZR, row_ZN)


def gather(x_ZN: Array, index_ZM: Array) -> Array:
    """Columns of each stream by index; zeros where it points past the end."""
    take = lambda x, index: x.at[index].get(mode="fill", fill_value=0)
    return jax.vmap(take)(x_ZN, index_ZM)


@jax.custom_vjp
def move(x_ZN: Array, index_ZM: Array, inverse_ZN: Array) -> Array:
    """`gather` of columns of which none is taken twice. Its gradient is a gather too, by the
    inverse index, where that of an ordinary one is a scatter."""
    return gather(x_ZN, index_ZM)


def _move_forward(x_ZN, index_ZM, inverse_ZN):
    return gather(x_ZN, index_ZM), inverse_ZN


def _move_backward(inverse_ZN, grad_ZM):
    return gather(grad_ZM, inverse_ZN), None, None


move.defvjp(_move_forward, _move_backward)
