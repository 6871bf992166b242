"""Attention over whole sequences and over a cache: windows, soft caps, grouped heads.

Whole sequences may run on a platform's fused kernel; the single query of a decode step never does.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from ppo_jax import attention_kernels as kernels
from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.kv_cache import Cache
from ppo_jax.types import Array

FUSED = {"cudnn": kernels.cudnn, "splash": kernels.splash}
LIMITS = {"cudnn": kernels.cudnn_limit, "splash": kernels.splash_limit}
OWN = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}  # the kernel made for a platform
# Finite, so that a row that sees nothing (padding) has no NaN, nor in its gradient.
UNSEEN = -0.7 * float(jnp.finfo("float32").max)


def choose(asked: str, config: ModelConfig, dtype: str, platform: str) -> tuple[str, str]:
    """(kernel of whole sequences, why) for `asked` = auto, xla, cudnn or splash on a platform.

    auto: the platform's own kernel where its limits allow, else XLA. Raises ConfigError where a
    kernel is asked for that cannot be had.
    """
    if asked == "auto":
        own = OWN.get(platform, "xla")
        limit = LIMITS[own](config, dtype, platform) if own in LIMITS else None
        return (own, f"auto on {platform}") if limit is None else ("xla", f"{own} {limit}")
    limit = LIMITS[asked](config, dtype, platform) if asked in LIMITS else None
    if limit is not None:
        nearest = choose("auto", config, dtype, platform)[0]
        raise ConfigError(
            f"model.attention={asked} {limit}; nearest valid: model.attention={nearest}"
        )
    return asked, "asked for"


class View(NamedTuple):
    """What each token of whole sequences may attend to."""

    mask_BS: Array  # bool, real tokens
    full_B1SS: Array  # causal, to real tokens
    local_B1SS: Array | None  # of these the ones in the window; None where no layer has one


def view(config: ModelConfig, mask_BS: Array, positions_BS: Array) -> View:
    """Causal visibility among the real tokens of each row; `positions_BS` counts them."""
    S = mask_BS.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    full_B1SS = causal_SS[None, None] & mask_BS[:, None, None, :]
    if config.window is None:
        return View(mask_BS, full_B1SS, None)
    distance_BSS = positions_BS[:, :, None] - positions_BS[:, None, :]
    return View(mask_BS, full_B1SS, full_B1SS & (distance_BSS < config.window)[:, None])


def attend(
    config: ModelConfig,
    kernel: str,
    seen: View,
    q_BSHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    local: bool | Array,
    mesh: Mesh | None = None,
) -> Array:
    """Attention [B, S, H, K] of whole sequences; rows at padding are meaningless but finite.

    `local`: the layer has the window; a traced bool where layers of both kinds run as a scan.
    `mesh`: of the program in global view whose rows are split over it, for the fused kernels;
    these take the real tokens of a row to stand side by side, between padding on either side.
    """
    arrays = q_BSHK, k_BSGK, v_BSGK
    # A prompt of one token has nothing to fuse, and cuDNN refuses it.
    if kernel == "xla" or q_BSHK.shape[1] == 1:
        return _xla(config, *arrays, _visible(seen, local))

    def fused(window: int | None) -> Array:
        run = functools.partial(FUSED[kernel], config, window)
        return kernels.per_device(mesh, run, seen.mask_BS, *arrays)

    if config.window is None:
        return fused(None)
    if isinstance(local, bool):
        return fused(config.window if local else None)
    return lax.cond(local, lambda: fused(config.window), lambda: fused(None))


def _visible(seen: View, local: bool | Array) -> Array:
    if seen.local_B1SS is None:
        return seen.full_B1SS
    if isinstance(local, bool):
        return seen.local_B1SS if local else seen.full_B1SS
    return jnp.where(local, seen.local_B1SS, seen.full_B1SS)


def attend_one(
    config: ModelConfig, q_B1HK, cache: Cache, visible_BS, column_B, reach, local: bool
) -> Array:
    """Attention [B, 1, H, K] of the token at `column_B` to the visible columns of a layer's cache.

    `reach`: how many of the cache's blocks are read beyond the first. The real tokens of a row
    stand side by side, so columns tell their distance.
    """
    if local:
        columns_1S = jnp.arange(visible_BS.shape[1])[None]
        visible_BS = visible_BS & (column_B[:, None] - columns_1S < config.window)
    B, _, H, K = q_B1HK.shape
    q_BGRK = q_B1HK.reshape(B, config.num_kv_heads, -1, K)
    branches = [functools.partial(_over, config, n + 1) for n in range(len(cache))]
    if len(branches) == 1:
        out_BGRK = branches[0](q_BGRK, cache, visible_BS)
    else:
        out_BGRK = lax.switch(reach, branches, q_BGRK, cache, visible_BS)
    return out_BGRK.reshape(B, 1, H, K)


def _over(config: ModelConfig, count: int, q_BGRK, cache: Cache, visible_BS) -> Array:
    """One query a row over the leading `count` blocks."""
    K, dtype = q_BGRK.shape[-1], q_BGRK.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = [product("bgrk,bgsk->bgrs", q_BGRK, k_BGSK) for k_BGSK, _ in cache[:count]]
    scores_BGRS = jnp.concatenate(scores, axis=-1) if count > 1 else scores[0]
    scale, S = config.attention_scale, scores_BGRS.shape[-1]
    scores_BGRS = scores_BGRS * (K**-0.5 if scale is None else scale)
    scores_BGRS = softcap(scores_BGRS, config.attention_softcap)
    scores_BGRS = jnp.where(visible_BS[:, None, None, :S], scores_BGRS, UNSEEN)
    weights_BGRS = jax.nn.softmax(scores_BGRS, axis=-1).astype(dtype)
    out_BGRK, start = 0.0, 0
    for _, v_BGSK in cache[:count]:
        end = start + v_BGSK.shape[2]
        out_BGRK += product("bgrs,bgsk->bgrk", weights_BGRS[..., start:end], v_BGSK)
        start = end
    return out_BGRK.astype(dtype)


def softcap(x: Array, cap: float | None) -> Array:
    """cap * tanh(x / cap): values kept within (-cap, cap). None: as they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def _xla(config: ModelConfig, q_BQHK, k_BSGK, v_BSGK, visible_B1QS) -> Array:
    # Heads beside rows: on the CPU the gradient takes three quarters of the time that it takes with
    # heads inside, and repeated keys cost less than a product over groups.
    group = config.num_heads // config.num_kv_heads
    q_BHQK = q_BQHK.transpose(0, 2, 1, 3)
    k_BHSK, v_BHSK = (jnp.repeat(x.transpose(0, 2, 1, 3), group, 1) for x in (k_BSGK, v_BSGK))
    scores_BHQS = jnp.einsum("bhqk,bhsk->bhqs", q_BHQK, k_BHSK, preferred_element_type=jnp.float32)
    scale = config.attention_scale
    scores_BHQS = scores_BHQS * (q_BQHK.shape[-1] ** -0.5 if scale is None else scale)
    scores_BHQS = softcap(scores_BHQS, config.attention_softcap)
    weights_BHQS = jax.nn.softmax(jnp.where(visible_B1QS, scores_BHQS, UNSEEN), axis=-1)
    out_BHQK = jnp.einsum("bhqs,bhsk->bhqk", weights_BHQS.astype(v_BSGK.dtype), v_BHSK)
    return out_BHQK.transpose(0, 2, 1, 3)
