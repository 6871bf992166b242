"""Llama-family decoder in Flax linen: one block, and pure functions that chain it.

Parameters of a trunk are `{"embed", "layers", "final_norm"[, "lm_head"]}`. `layers` is a list with
one tree per layer, or the same trees stacked along a leading axis L, in which case the layers run
as a scan: slower to run by some per cent with few layers, much faster to compile with many.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ppo_jax.config import ModelConfig, ModelOptions, RopeScaling
from ppo_jax.types import Array, PyTree

SCAN_FROM_LAYERS = 12  # below, unrolled layers compile fast enough and run faster


@dataclass(frozen=True)
class Decoder:
    """What the functions below need to know beside the weights; hashable, static."""

    config: ModelConfig
    dtype: str = "float32"  # of matrix products; norms, softmax and logits are float32
    remat: str = "full"

    @property
    def compute(self):
        return jnp.dtype(self.dtype)


def make_decoder(config: ModelConfig, options: ModelOptions) -> Decoder:
    on_cpu = jax.default_backend() == "cpu"
    auto = "float32" if on_cpu else "bfloat16"  # bfloat16 products are slower than float32 on CPUs
    dtype = auto if options.compute_dtype == "auto" else options.compute_dtype
    return Decoder(config, dtype, options.remat)


class RMSNorm(nn.Module):
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 * lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (x32 * jnp.broadcast_to(scale_D, x.shape)).astype(self.dtype)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU. `attend(q, k, v) -> (out, cache)` is handed in, so that the
    block is the same in training, prefill and decoding."""

    decoder: Decoder

    @nn.compact
    def __call__(self, x_BSD, cos_BSK, sin_BSK, attend):
        config, dtype = self.decoder.config, self.decoder.compute
        init = nn.initializers.normal(config.init_std)
        dense = lambda features, name: nn.Dense(
            features, use_bias=False, dtype=dtype, kernel_init=init, name=name
        )
        heads = lambda y_BSF: y_BSF.reshape(*y_BSF.shape[:2], -1, config.head_dim)
        width, kv_width = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))

        h_BSD = RMSNorm(config.norm_eps, dtype, name="attn_norm")(x_BSD)
        q_BSHK = rotate(heads(dense(width, "q")(h_BSD)), cos_BSK, sin_BSK)
        k_BSGK = rotate(heads(dense(kv_width, "k")(h_BSD)), cos_BSK, sin_BSK)
        v_BSGK = heads(dense(kv_width, "v")(h_BSD))
        out_BSHK, cache = attend(q_BSHK, k_BSGK, v_BSGK)
        x_BSD = x_BSD + dense(config.embed_dim, "o")(out_BSHK.reshape(*x_BSD.shape[:2], width))

        h_BSD = RMSNorm(config.norm_eps, dtype, name="mlp_norm")(x_BSD)
        gate_BSF = nn.silu(dense(config.mlp_dim, "gate")(h_BSD))
        h_BSF = gate_BSF * dense(config.mlp_dim, "up")(h_BSD)
        return x_BSD + dense(config.embed_dim, "down")(h_BSF), cache


def rope_frequencies(config: ModelConfig) -> Array:
    """Radians a position of each rotary pair, [K/2]; Llama 3's scaling where configured."""
    K = config.head_dim
    frequencies = config.rope_theta ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)
    return frequencies if config.rope_scaling is None else _llama3(frequencies, config.rope_scaling)


def _llama3(frequencies, scaling: RopeScaling):
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns = scaling.original_max_positions * frequencies / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / scaling.factor)


def rope(config: ModelConfig, positions_BS: Array) -> tuple[Array, Array]:
    """cos and sin [B, S, K/2] of the rotary angles, float32."""
    angles_BSK = positions_BS[..., None].astype(jnp.float32) * rope_frequencies(config)[None, None]
    return jnp.cos(angles_BSK), jnp.sin(angles_BSK)


def rotate(x_BSHK: Array, cos_BSK: Array, sin_BSK: Array) -> Array:
    """Rotary embedding in Hugging Face's half-split order, computed in float32."""
    a, b = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BSK[:, :, None], sin_BSK[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BSHK.dtype)


def positions_from_mask(mask_BS: Array) -> Array:
    """Position of each real token; padding before a sequence does not count."""
    return jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)


def embed(decoder: Decoder, params: PyTree, ids: Array) -> Array:
    return params["embed"]["embedding"].astype(decoder.compute)[ids]


def unembed(params: PyTree, hidden: Array) -> Array:
    """float32 logits [..., V] of normed hidden states [..., D]."""
    if "lm_head" in params:
        kernel_DV = params["lm_head"]["kernel"].astype(hidden.dtype)
        return jnp.einsum("...d,dv->...v", hidden, kernel_DV, preferred_element_type=jnp.float32)
    embedding_VD = params["embed"]["embedding"].astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, embedding_VD, preferred_element_type=jnp.float32)


def final_norm(decoder: Decoder, params: PyTree, x: Array) -> Array:
    norm = RMSNorm(decoder.config.norm_eps, decoder.compute)
    return norm.apply({"params": params["final_norm"]}, x)


def trunk(decoder: Decoder, params: PyTree, ids_BS: Array, mask_BS: Array) -> Array:
    """Normed hidden states [B, S, D] of whole sequences; rows at padding are meaningless.

    `mask_BS` is 1 on real tokens, which may stand anywhere in the row.
    """
    cos_BSK, sin_BSK = rope(decoder.config, positions_from_mask(mask_BS))
    S = ids_BS.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    visible_B1SS = causal_SS[None, None] & (mask_BS > 0)[:, None, None, :]

    def layer(layer_params, x_BSD):
        attend = lambda q, k, v: (
            jax.nn.dot_product_attention(q, k, v, mask=visible_B1SS),
            None,
        )
        return Block(decoder).apply({"params": layer_params}, x_BSD, cos_BSK, sin_BSK, attend)[0]

    layer = _with_remat(layer, decoder.remat, scanned=not isinstance(params["layers"], list))
    x_BSD = embed(decoder, params, ids_BS)
    if isinstance(params["layers"], list):
        for layer_params in params["layers"]:
            x_BSD = layer(layer_params, x_BSD)
    else:
        x_BSD, _ = lax.scan(lambda x, p: (layer(p, x), None), x_BSD, params["layers"])
    return final_norm(decoder, params, x_BSD)


def _with_remat(layer, remat: str, *, scanned: bool):
    if remat == "none":
        return layer
    policy = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[remat]
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)


def prefill(decoder: Decoder, params: PyTree, ids_BP: Array, mask_BP: Array, width: int):
    """Hidden state [B, D] after the prompt, and per-layer caches (k, v) [B, width, G, K].

    Prompts are left-padded: the last column is every row's last token, and all rows share one
    write position in the caches.
    """
    cos_BPK, sin_BPK = rope(decoder.config, positions_from_mask(mask_BP))
    P = ids_BP.shape[1]
    visible = jnp.tril(jnp.ones((1, 1, P, P), bool)) & mask_BP[:, None, None, :]
    room = ((0, 0), (0, width - P), (0, 0), (0, 0))

    def attend(q, k, v):
        out = jax.nn.dot_product_attention(q, k, v, mask=visible)
        return out, (jnp.pad(k, room), jnp.pad(v, room))

    x_BPD, caches = embed(decoder, params, ids_BP), []
    for layer_params in params["layers"]:
        x_BPD, cache = Block(decoder).apply(
            {"params": layer_params}, x_BPD, cos_BPK, sin_BPK, attend
        )
        caches.append(cache)
    return final_norm(decoder, params, x_BPD[:, -1]), caches


def decode_step(decoder: Decoder, params: PyTree, ids_B, positions_B, visible_BS, caches, cursor):
    """Hidden state [B, D] after one more token, written at column `cursor` of the caches.

    `visible_BS` is True on the columns a row may attend to, `cursor` included.
    """
    cos_B1K, sin_B1K = rope(decoder.config, positions_B[:, None])

    def attend(cache, q, k, v):
        cache_k, cache_v = (
            lax.dynamic_update_slice_in_dim(old, new, cursor, axis=1)
            for old, new in zip(cache, (k, v), strict=True)
        )
        mask_B11S = visible_BS[:, None, None, :]
        out = jax.nn.dot_product_attention(q, cache_k, cache_v, mask=mask_B11S)
        return out, (cache_k, cache_v)

    x_B1D, new_caches = embed(decoder, params, ids_B[:, None]), []
    for layer_params, cache in zip(params["layers"], caches, strict=True):
        x_B1D, cache = Block(decoder).apply(
            {"params": layer_params}, x_B1D, cos_B1K, sin_B1K, functools.partial(attend, cache)
        )
        new_caches.append(cache)
    return final_norm(decoder, params, x_B1D[:, 0]), new_caches


def value_head(params: PyTree, hidden: Array) -> Array:
    """float32 values [...] of hidden states [..., D]."""
    return (hidden.astype(jnp.float32) @ params["kernel"])[..., 0] + params["bias"][0]


def init_value_head(config: ModelConfig) -> PyTree:
    """Zeros: the first values are 0 and the trunk hears nothing from the critic at first."""
    return {
        "kernel": jnp.zeros((config.embed_dim, 1), jnp.float32),
        "bias": jnp.zeros((1,), jnp.float32),
    }


def init_trunk(config: ModelConfig, key: Array) -> PyTree:
    """Random float32 weights of a trunk, layers as a list."""
    decoder = Decoder(config)
    k_embed, k_head, k_layers = jax.random.split(key, 3)
    x_11D = jnp.zeros((1, 1, config.embed_dim))
    angles = rope(config, jnp.zeros((1, 1), jnp.int32))
    attend = lambda q, k, v: (q, None)
    init = lambda k: Block(decoder).init(k, x_11D, *angles, attend)["params"]
    normal = lambda k, shape: config.init_std * jax.random.normal(k, shape, jnp.float32)
    params = {
        "embed": {"embedding": normal(k_embed, (config.vocab_size, config.embed_dim))},
        "layers": [init(k) for k in jax.random.split(k_layers, config.num_layers)],
        "final_norm": {"scale": jnp.ones((config.embed_dim,), jnp.float32)},
    }
    if not config.tie_embeddings:
        params["lm_head"] = {"kernel": normal(k_head, (config.embed_dim, config.vocab_size))}
    return params


def scans_layers(config: ModelConfig, options: ModelOptions) -> bool:
    if options.scan_layers == "auto":
        return config.num_layers >= SCAN_FROM_LAYERS
    return options.scan_layers == "scan"


def stack_layers(params: PyTree) -> PyTree:
    """The trunk with its list of layers stacked along a leading axis, for the scan."""
    if not isinstance(params["layers"], list):
        return params
    return {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}


def unstack_layers(params: PyTree) -> PyTree:
    """The trunk with its layers as a list: how they decode fastest, and how they are stored."""
    if isinstance(params["layers"], list):
        return params
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)]
    return {**params, "layers": layers}


def cast_weights(decoder: Decoder, params: PyTree) -> PyTree:
    """A trunk's matrices in the compute dtype; norm scales stay float32, as they are used."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else x.astype(decoder.compute), params
    )


def rollout_copy(decoder: Decoder, params: PyTree) -> PyTree:
    """The trunk as the sampler wants it: cast once, one tree a layer."""
    return cast_weights(decoder, unstack_layers(params))
