"""Random weights of every family, and rows of tokens to run them on."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from family_configs import model_config
from ppo_jax.config import ModelConfig
from ppo_jax.model import init_trunk


@functools.cache
def family_model(id_: str) -> tuple[ModelConfig, dict]:
    """Shape and weights of a case: predictions far from flat, no scale 1 and no bias 0."""
    config = model_config(id_)
    params = init_trunk(dataclasses.replace(config, init_std=0.3), jax.random.key(1))
    rng = np.random.default_rng(2)

    def moved(path, x):
        spread = {"scale": 0.2, "bias": 0.3}.get(path[-1].key, 0.0)
        return x + jnp.asarray(spread * rng.normal(size=x.shape), jnp.float32)

    return config, jax.tree_util.tree_map_with_path(moved, params)


class Rows(NamedTuple):
    """Left-padded prompts and what follows them; the padding holds random ids."""

    ids_BS: np.ndarray
    mask_BS: np.ndarray
    prompt: int  # columns of it


def random_rows(config: ModelConfig, lengths: list[int], response: int, seed: int = 0) -> Rows:
    """A row for each length of a prompt, every one followed by `response` real tokens."""
    rng = np.random.default_rng(seed)
    P = max(lengths)
    S = P + response
    mask_BS = np.arange(S)[None] >= P - np.array(lengths)[:, None]
    return Rows(rng.integers(0, config.vocab_size, size=(len(lengths), S)), mask_BS, P)
