"""Adapters of small models in PEFT folders, and ways to spoil them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from family_configs import model_config
from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.lora import init_adapters
from ppo_jax.peft_folder import read_adapters, write_adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LLAMA = model_config("llama-gqa")
LORA = LoraOptions(3, 6.0, ("q_proj", "down_proj"))
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN1 = "base_model.model.model.layers.1.mlp.down_proj"


def random_adapters(config: ModelConfig, lora: LoraOptions, seed: int = 1, scale: float = 1.0):
    """NumPy adapters with both factors filled, so that a product which is left out shows."""
    rng = np.random.default_rng(seed)
    fill = lambda x: rng.normal(0, scale, x.shape).astype(np.float32)
    return jax.tree.map(fill, init_adapters(config, lora, jax.random.key(0)))


def write_llama(folder: Path) -> Path:
    write_adapters(folder, LLAMA, LORA, random_adapters(LLAMA, LORA), base="org/base")
    return folder


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(one, np.ndarray) and one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def edit_config(folder, drop=(), **changes):
    raw = json.loads((folder / CONFIG).read_text()) | changes
    for key in drop:
        del raw[key]
    (folder / CONFIG).write_text(json.dumps(raw))


def edit_tensors(folder, drop=(), **changes):
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({k: v for k, v in tensors.items() if k not in drop}, folder / WEIGHTS)


def assert_refused(folder, *words, config=LLAMA):
    with pytest.raises(ConfigError) as error:
        read_adapters(folder, config)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
