"""Small models and prompts that several tests share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config import ModelConfig
from ppo_jax.model import init_trunk, stream_trunk
from ppo_jax.rope import positions_from_mask
from ppo_jax.stream import Layout, Stream
from ppo_jax.types import Prompts


def tiny_model(**changes) -> ModelConfig:
    """Two layers, 97 ids of which 95 ends a response and 96 pads it."""
    base = ModelConfig(
        vocab_size=97,
        embed_dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        eos_token_ids=(95,),
        pad_token_id=96,
    )
    return dataclasses.replace(base, **changes)


def random_prompts(B: int, P: int, seed: int, vocab: int) -> Prompts:
    """Left-padded prompts of 1 to P tokens; the first row has one token, the second has P.

    The padding holds random ids, so that a test fails where anything reads them.
    """
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(1, P + 1, size=B)
    lengths_B[:2] = (1, P)[:B]
    return Prompts(
        ids_BP=jnp.asarray(rng.integers(0, vocab, size=(B, P)), jnp.int32),
        mask_BP=jnp.asarray(np.arange(P) >= P - lengths_B[:, None]),
        prompt_index_B=jnp.arange(B, dtype=jnp.int32),
        sample_index_B=jnp.zeros(B, jnp.int32),
        columns={},
    )


def trunk_params(config: ModelConfig, seed: int):
    """Weights large enough for distributions that are far from flat, norm scales beside 1."""
    k_init, k_scale = jax.random.split(jax.random.key(seed))
    params = init_trunk(dataclasses.replace(config, init_std=0.3), k_init)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(k_scale, len(leaves))
    moved = [
        x * (1.0 + 0.2 * jax.random.normal(key, x.shape)) if path[-1].key == "scale" else x
        for key, (path, x) in zip(keys, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, moved)


def row_states(decoder, params, ids_BS, mask_BS):
    """Normed hidden states [B, S, D] of whole sequences, each row a stream of its own; rows at
    padding are meaningless. `mask_BS` is 1 on real tokens, which stand side by side, anywhere in
    the row: the package packs them to its left end."""
    B, S = ids_BS.shape
    mask_BS = mask_BS > 0
    # The trunk reads where the tokens stand; the rest of a stream is the head's.
    nothing = dict.fromkeys(Stream._fields)
    stream = Stream(**nothing)._replace(
        ids_ZN=ids_BS,
        positions_ZN=positions_from_mask(mask_BS),
        row_ZN=jnp.where(mask_BS, 0, 1),
        lengths_ZR=mask_BS.sum(axis=1, keepdims=True),
    )
    return stream_trunk(decoder, params, stream, Layout(B, S, S, final=True))
