"""Where a model comes from: a folder (Hugging Face, PEFT, run), a known name, a hub id, chance."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.checkpoint import restore_params
from ppo_jax.config import LoraOptions, ModelConfig, ModelOptions
from ppo_jax.config_io import load_config
from ppo_jax.decoder import lora_scale, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, read_model_config
from ppo_jax.lora import adapted_modules, attach, merge
from ppo_jax.model import init_trunk, scans_layers, unstack_layers
from ppo_jax.model_folder import resolve_model
from ppo_jax.peft_folder import base_model, is_adapter_folder, read_adapters
from ppo_jax.run_folder import run_folder
from ppo_jax.tokenizer import byte_tokenizer, has_tokenizer, load_tokenizer
from ppo_jax.types import PyTree
from ppo_jax.weights import load_classifier, load_hf

INIT_KEY = 2**31 - 2  # folded in for random weights: no iteration of a run has this number


class Source(NamedTuple):
    """A model before its weights are read."""

    config: ModelConfig
    tokenizer: Any
    folder: Path | None  # None: random weights
    name: str | None  # leads to the same files again; None: random weights
    is_run: bool = False
    files: Path | None = None  # folder whose tokenizer and configs go along on export
    base: "Source | None" = None  # what its adapters lie on
    lora: LoraOptions | None = None  # of these adapters
    seed: int = 0  # of random weights


class Critic(NamedTuple):
    """A value model: float32 NumPy weights, layers as a list."""

    config: ModelConfig
    head: PyTree | None  # {"kernel": [D, 1]}; None where there is a trunk alone
    trunk: PyTree


def open_source(
    path: str | None,
    shape: ModelConfig | None = None,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Source:
    """Shape and tokenizer of the model at `path`, or of the random model of `shape` and `seed`.

    Raises ConfigError where there is no usable model.
    """
    if path is None:
        return Source(shape or ModelConfig(), byte_tokenizer(), None, None, seed=seed)
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _open_run(path, folder, trust_remote_code)
    folder, name = resolve_model(path)
    if is_adapter_folder(folder):
        return _open_adapters(folder, name, trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return Source(read_model_config(folder), tokenizer, folder, name, files=folder)


def _open_run(name: str, folder: Path, trust_remote_code: bool) -> Source:
    """A run keeps tokenizer and model config, so it outlives the model it began with; where only
    adapters were trained, the weights under them are still needed."""
    run = run_folder(folder)
    config = load_config(run.config)
    base = None
    if config.model.lora.rank is not None:
        base = open_source(
            config.model.path,
            config.model.shape,
            seed=config.run.seed,
            trust_remote_code=trust_remote_code,
        )
        # Under adapters that went on from other ones lies what those lay on.
        base = base if base.base is None else base.base
    lora = None if base is None else config.model.lora
    common = {"is_run": True, "base": base, "lora": lora}
    if config.model.path is None:
        return Source(config.model.shape, byte_tokenizer(), folder, name, **common)
    tokenizer = load_tokenizer(run.tokenizer, trust_remote_code=trust_remote_code)
    shape = read_model_config(run.tokenizer)
    return Source(shape, tokenizer, folder, name, files=run.tokenizer, **common)


def _open_adapters(folder: Path, name: str, trust_remote_code: bool) -> Source:
    base_name, revision = base_model(folder)
    beside = folder / base_name  # a relative path may be meant from the adapters' own folder
    if not Path(base_name).expanduser().exists() and beside.is_dir():
        base_name = str(beside)
    elif revision is not None and not Path(base_name).expanduser().exists():
        base_name = f"{base_name}@{revision}"
    try:
        base = open_source(base_name, trust_remote_code=trust_remote_code)
    except ConfigError as error:
        raise ConfigError(f"{folder}: its base_model_name_or_path: {error}") from None
    if base.lora is not None:
        raise ConfigError(f"{folder}: its base {base_name} is adapters too: merge those first")
    lora, _ = read_adapters(folder, base.config)
    tokenizer = base.tokenizer
    if has_tokenizer(folder):
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    files = folder if has_tokenizer(folder) else base.files
    return Source(base.config, tokenizer, folder, name, files=files, base=base, lora=lora)


def load_trunk(source: Source) -> PyTree:
    """The whole trunk's float32 weights as NumPy arrays, layers as a list, adapters merged."""
    if source.base is not None:
        whole = attach(load_trunk(source.base), load_adapters(source))
        return jax.tree.map(np.asarray, merge(whole, lora_scale(source.lora)))
    if source.folder is None:
        key = jax.random.fold_in(jax.random.key(source.seed), INIT_KEY)
        return jax.tree.map(np.asarray, init_trunk(source.config, key))
    if source.is_run:
        return unstack_layers(_trained(source)["policy"])
    return load_hf(source.folder)[1]


def load_adapters(source: Source) -> PyTree:
    """The adapters of a PEFT folder or of a run that trained some, layers as a list."""
    if source.is_run:
        return unstack_layers(_trained(source)["policy"])
    return read_adapters(source.folder, source.config)[1]


def load_critic(source: Source) -> Critic:
    """A critic's own checkpoint.

    A run gives its critic, a sequence classifier of one output its head and trunk, any other model
    its trunk alone.
    """
    if source.is_run:
        return _run_critic(source)
    labels = None if source.folder is None or source.base else classifier_labels(source.folder)
    if labels is None:
        return Critic(source.config, None, load_trunk(source))
    if labels != 1:
        raise ConfigError(
            f"{source.folder}: a classifier of {labels} outputs: expected one, a value or a score"
        )
    config, trunk, head = load_classifier(source.folder)
    return Critic(config, head, trunk)


def _run_critic(source: Source) -> Critic:
    value = _trained(source)["value"]
    if "trunk" not in value:
        return Critic(source.config, value["head"], load_trunk(source))
    options = load_config(run_folder(source.folder).config).model
    own = None if options.critic_path is None else open_source(options.critic_path)
    config = source.config if own is None else own.config
    trunk = unstack_layers(value["trunk"])
    if source.base is not None:
        base = load_trunk(source.base) if own is None else load_critic(own).trunk
        whole = attach(base, trunk)
        trunk = jax.tree.map(np.asarray, merge(whole, lora_scale(source.lora)))
    return Critic(config, value["head"], trunk)


def _trained(source: Source) -> PyTree:
    return restore_params(run_folder(source.folder).checkpoints)


def resolve_options(
    options: ModelOptions, source: Source, critic: Source | None = None
) -> ModelOptions:
    """The options with every `auto` settled and every hub id pinned, as a run saves them.

    Raises ConfigError where adapters to go on from are not of the kind that is asked for.
    """
    lora = _resolve_lora(options.lora, source)
    decoder = make_decoder(source.config, options)
    layers = "scan" if scans_layers(source.config, options) else "unroll"
    return dataclasses.replace(
        options,
        path=source.name,
        critic_path=None if critic is None else critic.name,
        compute_dtype=decoder.dtype,
        scan_layers=layers,
        lora=lora,
    )


def _resolve_lora(asked: LoraOptions, source: Source) -> LoraOptions:
    if asked.rank is None:
        return asked
    theirs = source.lora
    if theirs is None:
        return dataclasses.replace(asked, alpha=lora_scale(asked) * asked.rank)
    if asked.rank != theirs.rank:
        raise ConfigError(
            f"model.lora.rank={asked.rank}: the adapters of {source.name} have rank {theirs.rank}; "
            f"nearest valid: {theirs.rank} (or None: merged, and every weight trains)"
        )
    scale = lora_scale(theirs)
    if asked.alpha is not None and lora_scale(asked) != scale:
        raise ConfigError(
            f"model.lora.alpha={asked.alpha}: the adapters of {source.name} have alpha "
            f"{scale * theirs.rank:g}; nearest valid: {scale * theirs.rank:g}"
        )
    modules = adapted_modules(source.config, theirs.targets)
    if asked.targets != LoraOptions().targets:
        if adapted_modules(source.config, asked.targets) != modules:
            raise ConfigError(
                f"model.lora.targets={' '.join(asked.targets)}: the adapters of {source.name} are "
                f"on {' '.join(theirs.targets)}"
            )
    return dataclasses.replace(theirs, alpha=scale * theirs.rank)
