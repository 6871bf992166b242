"""Fused attention of whole sequences: cuDNN's on NVIDIA GPUs, splash attention on TPUs.

Each runs on one device's rows; `per_device` puts it on all of them. Neither is exact to the bit
with XLA's attention, which is why the scoring passes and the update use one and the same kernel.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ppo_jax.config import ModelConfig
from ppo_jax.sharding import BATCH
from ppo_jax.types import Array

LANES = 128  # columns of a TPU register: splash attention's blocks are multiples of it
LONGEST_BLOCK = 512


def cudnn_limit(config: ModelConfig, dtype: str, platform: str) -> str | None:
    """What keeps cuDNN's kernel from being used, its backward pass included; None if nothing.

    Sources: jax/_src/cudnn/fused_attention_stablehlo.py and cudnn-frontend's
    sdpa_support_surface.h: heads above 128 train on Hopper alone.
    """
    if platform not in ("gpu", "cuda"):
        return f"needs an NVIDIA GPU, not the platform {platform}"
    capability = _capability()
    if not re.fullmatch(r"(\d+\.\d+)?", capability):
        return f"needs an NVIDIA GPU, not {capability}"
    generation = int(capability.split(".")[0]) if capability else None
    if generation is not None and generation < 8:
        return f"needs a GPU of compute capability 8.0 (Ampere) or later, not {capability}"
    if capability and (missing := _missing_cudnn()):
        return missing
    if dtype not in ("bfloat16", "float16"):
        return f"needs model.compute_dtype=bfloat16, not {dtype}"
    if config.attention_softcap is not None:
        return f"has no soft cap of the scores (the model's is {config.attention_softcap:g})"
    if config.head_dim % 8:
        return f"needs a head_dim that is a multiple of 8, not the model's {config.head_dim}"
    most = 256 if generation == 9 else 128
    if config.head_dim > most:
        return f"needs a head_dim of at most {most} on this GPU, not the model's {config.head_dim}"
    return None


def splash_limit(config: ModelConfig, dtype: str, platform: str) -> str | None:
    """What keeps splash attention from being used; None if nothing does."""
    if platform != "tpu":
        return f"needs a TPU, not the platform {platform}"
    try:
        _splash()
    except (ImportError, AttributeError) as error:
        return f"is not in this version of jax ({error})"
    return None


def _capability() -> str:
    """`9.0` of the NVIDIA GPU here, `gfx…` of an AMD one, empty where there is no GPU to ask."""
    return str(getattr(jax.local_devices()[0], "compute_capability", ""))


def _missing_cudnn() -> str | None:
    """Why the cuDNN of this machine does not serve, as jax itself would find while tracing."""
    try:
        from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

        check_cudnn_version()
    except (ImportError, AttributeError):  # private names: another jax finds it while tracing
        return None
    except RuntimeError as error:
        return f"needs cuDNN: {error}"
    return None


def per_device(mesh: Mesh | None, kernel: Callable[..., Array], *arrays: Array) -> Array:
    """`kernel(*arrays)` with the rows of every array split over the devices of the mesh, and where
    it has a third axis, of heads, these over `tensor`.

    XLA partitions no custom kernel by itself. Inside a `shard_map` (the rollout) rows are split
    already; `mesh` may be None where there is one device only.
    """
    inside = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.size == 1 or (inside.manual_axes and mesh.shape["tensor"] == 1):
        return kernel(*arrays)
    axes = {"tensor"} if inside.manual_axes else set(mesh.axis_names)
    rows = (None,) if inside.manual_axes else BATCH
    spec = lambda x: P(*rows, None, "tensor") if x.ndim > 2 else P(*rows)
    # check_vma: Pallas does not say along which axes its outputs vary.
    split = jax.shard_map(
        kernel,
        mesh=inside if inside.manual_axes else mesh,
        in_specs=tuple(map(spec, arrays)),
        out_specs=spec(arrays[-1]),
        axis_names=axes,
        check_vma=False,
    )
    return split(*arrays)


def cudnn(config: ModelConfig, window: int | None, real_BS, q_BSHK, k_BSGK, v_BSGK) -> Array:
    """Causal flash attention of cuDNN, among real tokens of at most `window` - 1 columns' distance.

    cuDNN knows causal sequences that start at column 0 by their lengths; so rows are turned to
    start there and back. A mask would do without, but costs [B, 1, S, S], a gradient of that size,
    and the skipping of what lies above the diagonal. Padding is cut off on both sides, because
    what cuDNN leaves there, in the gradients too, is its own business.
    """
    S = real_BS.shape[1]
    odd = S % 2  # jax takes an even number of columns only where there is a gradient
    real_BS = jnp.pad(real_BS, ((0, 0), (0, odd)))
    B, columns = real_BS.shape
    real_BS11, start_B1 = real_BS[:, :, None, None], jnp.argmax(real_BS, axis=1, keepdims=True)
    lengths_B = jnp.maximum(jnp.sum(real_BS, axis=1, dtype=jnp.int32), 1)
    rows_B1, columns_1S = jnp.arange(B)[:, None], jnp.arange(columns)[None]

    def turn(x_BSHK: Array, by_B1: Array) -> Array:
        column_BS = (columns_1S + by_B1) % columns
        return x_BSHK.at[rows_B1, column_BS].get(unique_indices=True, mode="promise_in_bounds")

    from_start = lambda x_BSHK: turn(jnp.where(real_BS11, _more_columns(x_BSHK, odd), 0), start_B1)
    out_BSHK = jax.nn.dot_product_attention(
        *map(from_start, (q_BSHK, k_BSGK, v_BSGK)),
        scale=config.attention_scale,
        is_causal=True,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return jnp.where(real_BS11, turn(out_BSHK, -start_B1), 0)[:, :S]


def splash(config: ModelConfig, window: int | None, real_BS, q_BSHK, k_BSGK, v_BSGK) -> Array:
    """Causal splash attention, among real tokens of at most a distance of `window` - 1 columns.

    Real tokens are one segment and padding is another, so every token sees itself at least and no
    row of the softmax is empty. Sums and softmax are float32; so are the products on paper, but at
    the compiler's default precision, which on a TPU is less, as it is for any product of XLA.
    """
    S, H, K = q_BSHK.shape[1:]
    width, block = _blocks(S)
    scale = K**-0.5 if config.attention_scale is None else config.attention_scale
    # In float32 first: the scale itself rounded to bfloat16 would be another temperature.
    q_BSHK = (q_BSHK.astype(jnp.float32) * scale).astype(q_BSHK.dtype)
    heads_first = lambda x: _more_columns(x, width - S).transpose(0, 2, 1, 3)
    ids_BS = jnp.pad(real_BS.astype(jnp.int32), ((0, 0), (0, width - S)))
    segments = _splash()[0].SegmentIds(ids_BS, ids_BS)
    kernel = _splash_kernel(H, width, block, window, config.attention_softcap)
    out_BHSK = jax.vmap(kernel)(*map(heads_first, (q_BSHK, k_BSGK, v_BSGK)), segments)
    return out_BHSK.transpose(0, 2, 1, 3)[:, :S]


def _blocks(S: int) -> tuple[int, int]:
    """(columns with padding, columns of a block), both multiples of `LANES`."""
    if S <= LONGEST_BLOCK:
        width = -(-S // LANES) * LANES
        return width, width
    width = -(-S // (2 * LANES)) * 2 * LANES
    return width, LONGEST_BLOCK if width % LONGEST_BLOCK == 0 else 2 * LANES


@functools.lru_cache
def _splash_kernel(heads: int, S: int, block: int, window: int | None, softcap: float | None):
    """The kernel with its block tables as NumPy arrays: built once, constants of any program."""
    kernels, masks = _splash()
    mask = (
        masks.CausalMask((S, S)) if window is None else masks.LocalMask((S, S), (window - 1, 0), 0)
    )
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
        )
        return jax.tree.map(np.asarray, kernel)


def _splash():
    """(kernels, masks) of splash attention; an experimental part of jax, hence not at the top."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    return splash_attention_kernel, splash_attention_mask


def _more_columns(x_BSHK: Array, count: int) -> Array:
    return jnp.pad(x_BSHK, ((0, 0), (0, count), (0, 0), (0, 0)))
