"""Attention by loops over rows, heads and positions in float64, and inputs to try it on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ppo_jax import attention
from ppo_jax.config import ModelConfig

# Columns before, of, and after the real tokens of each row, eleven in all; the last is all padding.
ROWS = ((0, 11, 0), (4, 5, 2), (10, 1, 0), (0, 1, 10), (3, 8, 0), (0, 6, 5), (11, 0, 0), (1, 9, 1))


class Inputs(NamedTuple):
    q_BSHK: np.ndarray
    k_BSGK: np.ndarray
    v_BSGK: np.ndarray
    mask_BS: np.ndarray


def make_config(heads=4, kv_heads=2, head_dim=8, **switches) -> ModelConfig:
    return ModelConfig(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, **switches)


def make_inputs(config: ModelConfig, rows=ROWS, seed=0) -> Inputs:
    """Random float32 q, k, v; large ones at padding, which would show wherever they leaked."""
    rng = np.random.default_rng(seed)
    mask_BS = np.array([[False] * a + [True] * n + [False] * z for a, n, z in rows])
    heads = config.num_heads, config.num_kv_heads, config.num_kv_heads
    arrays = [rng.normal(size=(*mask_BS.shape, n, config.head_dim)) for n in heads]
    arrays = [np.where(mask_BS[:, :, None, None], x, 50 * x).astype(np.float32) for x in arrays]
    return Inputs(*arrays, mask_BS)


def expected(config: ModelConfig, inputs: Inputs, local: bool) -> np.ndarray:
    """[B, S, H, K] in float64, zeros at padding."""
    q_BSHK, k_BSGK, v_BSGK = (np.asarray(x, np.float64) for x in inputs[:3])
    B, S, H, K = q_BSHK.shape
    scale = 1 / np.sqrt(K) if config.attention_scale is None else config.attention_scale
    out_BSHK = np.zeros((B, S, H, K))
    for b in range(B):
        real = [s for s in range(S) if inputs.mask_BS[b, s]]
        for position, s in enumerate(real):
            first = max(0, position - config.window + 1) if local else 0
            seen = real[first : position + 1]
            for h in range(H):
                g = h * config.num_kv_heads // H
                scores = k_BSGK[b, seen, g] @ q_BSHK[b, s, h] * scale
                if config.attention_softcap is not None:
                    scores = config.attention_softcap * np.tanh(scores / config.attention_softcap)
                weights = np.exp(scores - scores.max())
                out_BSHK[b, s, h] = weights / weights.sum() @ v_BSGK[b, seen, g]
    return out_BSHK


def run(config: ModelConfig, kernel: str, inputs: Inputs, local, mesh=None):
    """`attention.attend` as the model calls it; its output, padding included."""
    mask_BS = jnp.asarray(inputs.mask_BS)
    positions_BS = jnp.maximum(jnp.cumsum(mask_BS, axis=1) - 1, 0)
    seen = attention.view(config, mask_BS, positions_BS)
    q, k, v = map(jnp.asarray, inputs[:3])
    return attention.attend(config, kernel, seen, q, k, v, local, mesh)


def at_real(inputs: Inputs, x_BS: np.ndarray) -> np.ndarray:
    return np.asarray(x_BS, np.float64)[inputs.mask_BS]
