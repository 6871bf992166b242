"""Attention along a stream against float64 loops over each row alone, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_oracle import Inputs, expected, make_config
from ppo_jax import attention, attention_band

SWITCHES = {
    "plain": {},
    "window": {"window": 7},
    "softcap": {"attention_softcap": 4.0, "attention_scale": 0.3},
    "one kv head": {"kv_heads": 1},
}
LENGTHS = ((9, 1, 30), (1, 1, 1), (64, 3, 0), (100, 61, 2), (17, 17, 17), (0, 0, 5))


def in_line(lengths, config, columns, seed):
    """(rows [1, R, S, ...] by name, row_ZN, q, k, v of the stream); large numbers at padding."""
    rng = np.random.default_rng(seed)
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    pad = columns - row_N.size
    row_N = np.concatenate([row_N, np.full(pad, len(lengths))])
    arrays = [rng.normal(size=(columns, n, config.head_dim)) for n in heads.values()]
    arrays = [np.where((row_N == len(lengths))[:, None, None], 50 * x, x) for x in arrays]
    return row_N, [x.astype(np.float32) for x in arrays]


@functools.partial(jax.jit, static_argnums=(0, 1))
def jit_band(config, width, longest, row_ZN, q, k, v, local):
    return attention_band.band(config, width, longest, row_ZN, q, k, v, local)


@pytest.mark.parametrize("width", [100, 256])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_equals_loops_over_each_row(switches, width):
    config = make_config(**switches)
    for seed, lengths in enumerate(LENGTHS):
        row_N, qkv = in_line(lengths, config, 170 + seed, seed)
        stream = [jnp.asarray(np.stack([x, x[::-1]])) for x in qkv]
        row_ZN = jnp.asarray(np.stack([row_N, np.full_like(row_N, len(lengths))]))
        for local in {False, "window" in switches}:
            longest = jnp.int32(max(lengths))
            out_ZN = jit_band(config, width, longest, row_ZN, *stream, jnp.asarray(local))
            assert np.isfinite(out_ZN).all()  # where nothing stands too
            for row, length in enumerate(lengths):
                alone = [x[row_N == row][None] for x in qkv]
                want = expected(config, Inputs(*alone, np.ones((1, length), bool)), local)[0]
                np.testing.assert_allclose(out_ZN[0][row_N == row], want, atol=2e-5)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_gradients_equal_those_of_dense_attention(switches):
    config = make_config(**switches)
    lengths, columns = (40, 7, 21, 1), 80
    row_N, qkv = in_line(lengths, config, columns, 4)
    q, k, v = (jnp.asarray(x)[None] for x in qkv)
    weight = jax.random.normal(jax.random.key(0), q.shape) * (row_N < 4)[None, :, None, None]
    row_1N = jnp.asarray(row_N)[None]
    position_N = np.arange(columns) - np.searchsorted(row_N, row_N)
    local = "window" in switches
    real_BS = row_1N == jnp.arange(4)[:, None]
    seen = attention.view(config, real_BS, jnp.broadcast_to(position_N[None], real_BS.shape))

    def dense(q, k, v):  # each row among all columns of the stream, the others hidden
        rows = (jnp.repeat(x, 4, axis=0) for x in (q, k, v))
        out_BS = attention.attend(config, "xla", seen, *rows, local)
        out_N = jnp.take_along_axis(out_BS, jnp.minimum(row_1N, 3)[:, :, None, None], axis=0)
        return jnp.sum(weight * out_N)

    def band(q, k, v):
        return jnp.sum(weight * jit_band(config, 100, jnp.int32(40), row_1N, q, k, v, local))

    got = jax.jit(jax.grad(band, argnums=(0, 1, 2)))(q, k, v)
    want = jax.jit(jax.grad(dense, argnums=(0, 1, 2)))(q, k, v)
    for a, b in zip(got, want, strict=True):
        real = (row_N < 4)[None, :, None, None]
        np.testing.assert_allclose(a, np.where(real, b, 0), atol=2e-5)


def test_the_pairs_are_those_of_the_width_that_is_taken():
    """Queries times the columns their block sees, for the smallest width that holds the longest."""
    for width in (30, 100, 272, 1000):
        sizes = attention_band.widths(width)
        assert sizes[-1] >= width and list(sizes) == sorted(sizes)
        for longest in (1, *sizes, width):
            w = next(w for w in sizes if w >= longest)
            block = attention_band.block_size(w)
            columns = 5 * block - 3
            seen = (-(-(w - 1) // block) + 1) * block
            got = attention_band.pairs(width, columns, jnp.int32(longest))
            assert got == 5 * block * seen and seen >= w
