"""Attention of token streams: by padded rows where each is its own stream or a fused kernel runs
on rows, else along the stream."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ppo_jax import attention, attention_band
from ppo_jax.decoder import Decoder
from ppo_jax.stream import Layout, Stream, columns_of_rows, move
from ppo_jax.types import Array


class Counts(NamedTuple):
    """What a trunk's forward computes and what of that is real: tokens, and query-key pairs (the
    full square of a row). float32 scalars that add up over parts of a batch."""

    tokens: Array
    pairs: Array
    real_tokens: Array
    real_pairs: Array


def over_stream(decoder: Decoder, stream: Stream, layout: Layout) -> Callable[..., Array]:
    """`attend(local, q, k, v) -> [Z, N, H, K]` within the rows of the streams."""
    config, kernel, mesh = decoder.config, decoder.attention, decoder.mesh
    if _single_rows(stream):
        real_ZN = stream.row_ZN == 0
        seen = attention.view(config, real_ZN, stream.positions_ZN)
        return lambda local, q, k, v: attention.attend(config, kernel, seen, q, k, v, local, mesh)
    if kernel == "xla":
        longest = stream.lengths_ZR.max()
        return lambda local, q, k, v: attention_band.band(
            config, layout.width, longest, stream.row_ZN, q, k, v, local
        )
    return _by_rows(decoder, stream, layout)


def _by_rows(decoder: Decoder, stream: Stream, layout: Layout):
    """Tokens go to padded rows and back: a fused kernel skips what is padding there."""
    (Z, R), width = stream.lengths_ZR.shape, layout.width
    columns_ZC, cells_ZN = columns_of_rows(stream, layout)
    real_BS = jnp.arange(width)[None] < stream.lengths_ZR.reshape(-1)[:, None]
    positions_BS = jnp.broadcast_to(jnp.arange(width)[None], real_BS.shape)
    seen = attention.view(decoder.config, real_BS, positions_BS)

    def attend(local, *qkv):
        rows = (
            move(x.reshape(*x.shape[:2], -1), columns_ZC, cells_ZN).reshape(
                Z * R, width, *x.shape[2:]
            )
            for x in qkv
        )
        out_BSHK = attention.attend(
            decoder.config, decoder.attention, seen, *rows, local, decoder.mesh
        )
        out_ZN = move(out_BSHK.reshape(Z, R * width, -1), cells_ZN, columns_ZC)
        return out_ZN.reshape(qkv[0].shape)

    return attend


def counts(decoder: Decoder, stream: Stream, layout: Layout) -> Counts:
    """Of one forward pass over these streams."""
    Z, N = layout.streams, layout.columns
    if _single_rows(stream):
        pairs = jnp.float32(Z * N**2)
    elif decoder.attention == "xla":
        pairs = Z * attention_band.pairs(layout.width, N, stream.lengths_ZR.max())
    else:
        pairs = jnp.float32(stream.lengths_ZR.size * layout.width**2)
    lengths_ZR = stream.lengths_ZR.astype(jnp.float32)
    return Counts(jnp.float32(Z * N), pairs, lengths_ZR.sum(), (lengths_ZR**2).sum())


def _single_rows(stream: Stream) -> bool:
    return stream.lengths_ZR.shape[1] == 1
