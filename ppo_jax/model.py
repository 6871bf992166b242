"""The decoder as pure functions: whole sequences, prefill, one step of decoding, logits, values.

Parameters of a trunk are `{"embed", "layers", "final_norm"[, "positions"][, "lm_head"]}`. `layers`
is a list with one tree per layer, or the same trees stacked along a leading axis L, in which case
the layers run as a scan: slower to run by some per cent with few layers, much faster to compile
with many.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax import attention, kv_cache
from ppo_jax.config import ModelConfig, ModelOptions
from ppo_jax.decoder import Decoder
from ppo_jax.layers import Block, Norm
from ppo_jax.rope import pick, positions_from_mask, rotations
from ppo_jax.stream import Layout, Stream
from ppo_jax.stream_attention import over_stream
from ppo_jax.types import Array, PyTree
from ppo_jax.weight_sharding import Place, gather, gathered, place_of, share, split_rows_only

SCAN_FROM_LAYERS = 12  # below, unrolled layers compile fast enough and run faster


def embed(decoder: Decoder, params: PyTree, ids: Array, positions: Array) -> Array:
    """Embedded tokens [..., D] in the compute dtype; `positions` is read where it is learned."""
    config = decoder.config

    def rows(module: str, index: Array) -> Array:
        table = params[module]["embedding"]
        place = place_of(decoder.mesh, module, "embedding", table.shape)
        return look_up(place, decoder.compute, table, index)

    x = rows("embed", ids)
    if config.scale_embedding:
        x = x * jnp.asarray(config.embed_dim**0.5, decoder.compute)
    return x + rows("positions", positions) if config.position == "learned" else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def look_up(place: Place | None, dtype: jnp.dtype, table_ND: Array, index: Array) -> Array:
    """Rows [..., D] of a table in this dtype, with a float32 gradient for the table."""
    return _look_up_forward(place, dtype, table_ND, index)[0]


def _look_up_forward(place, dtype, table_ND, index):
    rows = gather(place, table_ND.astype(dtype))[index]
    # An empty array tells the backward pass the table's dtype, for which it needs nothing else.
    return rows, (table_ND[:0], table_ND.shape[0], index)


def _look_up_backward(place, dtype, saved, grad):
    empty, N, index = saved
    zeros_ND = jnp.zeros((N, grad.shape[-1]), jnp.float32)
    # Each device adds up whole rows, of its own tokens; then they are summed to the shares.
    grad_ND = gather(place, zeros_ND.at[index].add(grad.astype(jnp.float32)))
    return share(place, grad_ND).astype(empty.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def head_of(decoder: Decoder, params: PyTree) -> PyTree:
    """The part of a trunk that makes logits, gathered: once, for all chunks of tokens."""
    module, name = ("lm_head", "kernel") if "lm_head" in params else ("embed", "embedding")
    table = params[module][name]
    place = place_of(decoder.mesh, module, name, table.shape)
    return {module: {name: gathered(place, decoder.compute, table)}}


def unembed(decoder: Decoder, params: PyTree, hidden: Array) -> Array:
    """float32 logits [..., V] of normed hidden states [..., D]."""
    tied = "lm_head" not in params
    table = params["embed"]["embedding"] if tied else params["lm_head"]["kernel"]
    return attention.softcap(head_product(tied, hidden, table), decoder.config.logit_softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def head_product(tied: bool, hidden: Array, table: Array) -> Array:
    """float32 hidden [..., D] @ table [D, V], or [V, D] where it is tied, read in the dtype of the
    states. Its gradient is float32 before chunks and devices add it up, as a kernel's is."""
    return _head_forward(tied, hidden, table)[0]


def _head_forward(tied, hidden, table):
    read = table.astype(hidden.dtype)
    logits = _contract(hidden, (hidden.ndim - 1,), read, (1 if tied else 0,))
    return logits, (hidden, read, table[:0])  # the empty array: the table's dtype


def _head_backward(tied, saved, grad):
    hidden, read, empty = saved
    rows, last = tuple(range(hidden.ndim - 1)), hidden.ndim - 1
    grad_hidden = _contract(grad, (last,), read, (0 if tied else 1,)).astype(hidden.dtype)
    sides = (grad, hidden) if tied else (hidden, grad)
    return grad_hidden, _contract(sides[0], rows, sides[1], rows).astype(empty.dtype)


def _contract(x: Array, x_axes: tuple[int, ...], y: Array, y_axes: tuple[int, ...]) -> Array:
    along = ((x_axes, y_axes), ((), ()))
    return lax.dot_general(x, y, along, preferred_element_type=jnp.float32)


head_product.defvjp(_head_forward, _head_backward)


def final_norm(decoder: Decoder, params: PyTree, x: Array) -> Array:
    norm: Callable[..., Any] = Norm(decoder).apply  # flax: a pair where state is asked for as well
    return norm({"params": params["final_norm"]}, x)


def stream_trunk(decoder: Decoder, params: PyTree, stream: Stream, layout: Layout) -> Array:
    """Normed hidden states [Z, N, D] of token streams; meaningless where no token stands."""
    config, attend = decoder.config, over_stream(decoder, stream, layout)
    angles = rotations(config, stream.positions_ZN)

    def layer(local, layer_params, x_ZND):
        x_ZND = split_rows_only(decoder.mesh, x_ZND)
        run = lambda q, k, v: (attend(local, q, k, v), None)
        return Block(decoder).apply({"params": layer_params}, x_ZND, pick(angles, local), run)[0]

    x_ZND = embed(decoder, params, stream.ids_ZN, stream.positions_ZN)
    layers, kinds = params["layers"], config.is_local
    if isinstance(layers, list):
        for local, layer_params in zip(kinds, layers, strict=True):
            run = _with_remat(functools.partial(layer, local), decoder.remat, scanned=False)
            x_ZND = run(layer_params, x_ZND)
    elif len(set(kinds)) == 1:
        run = _with_remat(functools.partial(layer, kinds[0]), decoder.remat, scanned=True)
        x_ZND, _ = lax.scan(lambda x, p: (run(p, x), None), x_ZND, layers)
    else:
        run = _with_remat(layer, decoder.remat, scanned=True)
        step = lambda x, kind_and_params: (run(*kind_and_params, x), None)
        x_ZND, _ = lax.scan(step, x_ZND, (jnp.asarray(kinds), layers))
    return final_norm(decoder, params, x_ZND)


def _with_remat(layer: Callable[..., Array], remat: str, *, scanned: bool) -> Callable[..., Array]:
    if remat == "none":
        return layer
    policy = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[remat]
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)


def prefill(decoder: Decoder, params: PyTree, ids_BP: Array, mask_BP: Array):
    """Hidden state [B, D] after the prompt, and each layer's (k, v) [B, G, P, K].

    Prompts are left-padded: the last column is every row's last token.
    """
    config, mask_BP = decoder.config, mask_BP > 0
    positions_BP = positions_from_mask(mask_BP)
    seen = attention.view(config, mask_BP, positions_BP)
    angles = rotations(config, positions_BP)

    def attend(local, q, k, v):
        out = attention.attend(config, decoder.attention, seen, q, k, v, local, decoder.mesh)
        return out, (k.swapaxes(1, 2), v.swapaxes(1, 2))

    x_BPD, written = embed(decoder, params, ids_BP, positions_BP), []
    for local, layer_params in zip(config.is_local, params["layers"], strict=True):
        x_BPD, keys_and_values = Block(decoder).apply(
            {"params": layer_params}, x_BPD, pick(angles, local), functools.partial(attend, local)
        )
        written.append(keys_and_values)
    return final_norm(decoder, params, x_BPD[:, -1]), written


def decode_step(
    decoder: Decoder, params: PyTree, ids_B, positions_B, visible_BS, caches, column_B, reach
):
    """Hidden state [B, D] after one more token, written at `column_B` of the layers' caches.

    `visible_BS` is True on the row's real tokens up to and including that column; `reach` is the
    number of the caches' blocks, less one, that hold all of these.
    """
    config, positions_B1 = decoder.config, positions_B[:, None]
    angles = rotations(config, positions_B1)

    def attend(local, cache, q, k, v):
        cache = kv_cache.write_token(cache, k, v, column_B)
        return attention.attend_one(config, q, cache, visible_BS, column_B, reach, local), cache

    x_B1D, new_caches = embed(decoder, params, ids_B[:, None], positions_B1), []
    for local, layer_params, cache in zip(config.is_local, params["layers"], caches, strict=True):
        x_B1D, cache = Block(decoder).apply(
            {"params": layer_params},
            x_B1D,
            pick(angles, local),
            functools.partial(attend, local, cache),
        )
        new_caches.append(cache)
    return final_norm(decoder, params, x_B1D[:, 0]), new_caches


def value_head(params: PyTree, hidden: Array) -> Array:
    """float32 values [...] of hidden states [..., D]: Hugging Face's `score.weight`; a reward
    model's head has a bias too."""
    values = (hidden.astype(jnp.float32) @ params["kernel"])[..., 0]
    return values + params["bias"][0] if "bias" in params else values


def init_value_head(config: ModelConfig) -> PyTree:
    """Zeros: the first values are 0 and the trunk hears nothing from the critic at first."""
    return {"kernel": jnp.zeros((config.embed_dim, 1), jnp.float32)}


def init_reward_head(config: ModelConfig, key: Array) -> PyTree:
    """A reward model's: weights from N(0, 1 / (D + 1)) (Stiennon et al. 2020, arXiv 2009.01325,
    appendix), no bias at first."""
    kernel_D1 = jax.random.normal(key, (config.embed_dim, 1), jnp.float32)
    return {"kernel": kernel_D1 / (config.embed_dim + 1) ** 0.5, "bias": jnp.zeros(1, jnp.float32)}


def init_trunk(config: ModelConfig, key: Array) -> PyTree:
    """Random float32 weights of a trunk, layers as a list."""
    decoder = Decoder(config)
    k_embed, k_head, k_layers, k_positions = jax.random.split(key, 4)
    x_11D = jnp.zeros((1, 1, config.embed_dim))
    rotation = pick(rotations(config, jnp.zeros((1, 1), jnp.int32)), False)
    attend = lambda q, k, v: (q, None)
    init = lambda k: Block(decoder).init(k, x_11D, rotation, attend)["params"]
    normal = lambda k, *shape: config.init_std * jax.random.normal(k, shape, jnp.float32)
    params = {
        "embed": {"embedding": normal(k_embed, config.vocab_size, config.embed_dim)},
        "layers": [init(k) for k in jax.random.split(k_layers, config.num_layers)],
        "final_norm": Norm(decoder).init(key, x_11D)["params"],  # constants, whatever the key
    }
    if config.position == "learned":
        params["positions"] = {
            "embedding": normal(k_positions, config.max_positions, config.embed_dim)
        }
    if not config.tie_embeddings:
        params["lm_head"] = {"kernel": normal(k_head, config.embed_dim, config.vocab_size)}
    return params


def without_lm_head(trunk: PyTree) -> PyTree:
    """A critic's trunk: it makes values, not logits."""
    return {name: x for name, x in trunk.items() if name != "lm_head"}


def scans_layers(config: ModelConfig, options: ModelOptions) -> bool:
    if options.scan_layers == "auto":
        return config.num_layers >= SCAN_FROM_LAYERS
    return options.scan_layers == "scan"


def stack_layers(params: PyTree) -> PyTree:
    """The trunk with its list of layers stacked along a leading axis, for the scan."""
    if not isinstance(params["layers"], list):
        return params
    # Weights of the host stay there: one device may not hold them all.
    stack = lambda *x: np.stack(x) if isinstance(x[0], np.ndarray) else jnp.stack(x)
    return {**params, "layers": jax.tree.map(stack, *params["layers"])}


def unstack_layers(params: PyTree) -> PyTree:
    """The trunk with its layers as a list: how they decode fastest, and how they are stored."""
    if isinstance(params["layers"], list):
        return params
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)]
    return {**params, "layers": layers}


def cast_weights(decoder: Decoder, params: PyTree) -> PyTree:
    """A trunk's matrices and their biases in the compute dtype; norms stay float32, as they are
    used, and so does what is 8 bits wide, with its scales."""

    def cast(path, x):
        module, name = (str(part.key) for part in path[-2:])
        keep = module.endswith("norm") or name == "kernel_scale" or x.dtype == jnp.int8
        return x if keep else x.astype(decoder.compute)

    return jax.tree_util.tree_map_with_path(cast, params)
