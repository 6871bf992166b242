"""Where a model comes from: a Hugging Face or run folder, a known name, or random weights."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.checkpoint import restore_params
from ppo_jax.config import ModelConfig, ModelOptions
from ppo_jax.config_io import load_config
from ppo_jax.hf_folder import read_model_config
from ppo_jax.model import init_trunk, make_decoder, scans_layers, unstack_layers
from ppo_jax.run_folder import run_folder
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer
from ppo_jax.types import PyTree
from ppo_jax.weights import load_hf, resolve_model

INIT_KEY = 2**31 - 2  # folded in for random weights: no iteration of a run has this number


class Source(NamedTuple):
    """A model before its weights are read."""

    config: ModelConfig
    tokenizer: Any
    folder: Path | None  # None: random weights
    is_run: bool


def open_source(path: str | None, shape: ModelConfig | None = None) -> Source:
    """Shape and tokenizer of the model at `path`, or of the random model of `shape`.

    Raises ConfigError where there is no usable model.
    """
    if path is None:
        return Source(shape or ModelConfig(), byte_tokenizer(), None, is_run=False)
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _open_run(folder)
    folder = resolve_model(path)
    return Source(read_model_config(folder), load_tokenizer(folder), folder, is_run=False)


def _open_run(folder: Path) -> Source:
    """A run keeps tokenizer and model config, so it outlives the model it began with."""
    run = run_folder(folder)
    if load_config(run.config).model.path is None:
        return Source(load_config(run.config).model.shape, byte_tokenizer(), folder, is_run=True)
    return Source(
        read_model_config(run.tokenizer), load_tokenizer(run.tokenizer), folder, is_run=True
    )


def load_trunk(source: Source, *, seed: int = 0) -> PyTree:
    """The trunk's float32 weights as NumPy arrays, layers as a list."""
    if source.folder is None:
        key = jax.random.fold_in(jax.random.key(seed), INIT_KEY)
        return jax.tree.map(np.asarray, init_trunk(source.config, key))
    if source.is_run:
        params = restore_params(run_folder(source.folder).checkpoints)
        return unstack_layers(params["policy"])
    return load_hf(source.folder)[1]


def load_critic(source: Source) -> tuple[PyTree | None, PyTree]:
    """(value head or None, trunk) of a critic's own checkpoint: a run's critic, else the model."""
    if source.folder is None or not source.is_run:
        return None, load_trunk(source)
    params = restore_params(run_folder(source.folder).checkpoints)
    value = params["value"]
    return value["head"], unstack_layers(value.get("trunk", params["policy"]))


def resolve_options(options: ModelOptions, config: ModelConfig) -> ModelOptions:
    """The options with every `auto` settled, as they are saved with the run."""
    decoder = make_decoder(config, options)
    layers = "scan" if scans_layers(config, options) else "unroll"
    return dataclasses.replace(options, compute_dtype=decoder.dtype, scan_layers=layers)
