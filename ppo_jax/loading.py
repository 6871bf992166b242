"""Where a model comes from: a folder (Hugging Face, PEFT, run), a known name, a hub id, chance."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.config import LoraOptions, ModelConfig, ModelOptions
from ppo_jax.config_io import load_config
from ppo_jax.decoder import lora_scale, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import read_model_config
from ppo_jax.lora import adapted_modules, attach, merge
from ppo_jax.model import init_trunk, scans_layers, unstack_layers
from ppo_jax.model_folder import ModelFolder, resolve_model
from ppo_jax.peft_folder import base_model, is_adapter_folder, read_adapters
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.stages import run_at
from ppo_jax.storage import downloaded
from ppo_jax.tokenizer import byte_tokenizer, has_tokenizer, load_tokenizer
from ppo_jax.types import PyTree
from ppo_jax.weights import load_hf

INIT_KEY = 2**31 - 2  # folded in for random weights: no iteration of a run has this number


class Source(NamedTuple):
    """A model before its weights are read."""

    config: ModelConfig
    tokenizer: Any
    name: str | None  # leads here again, a hub id to its commit; None: random weights
    files: Path | None = None  # folder whose tokenizer and configs go along on export
    folder: Path | None = None  # of a Hugging Face model
    run: RunFolder | None = None
    step: int | None = None  # of that run; None: its newest
    adapters: "Adapters | None" = None
    seed: int = 0  # of random weights
    trusted: bool = False  # a model's own tokenizer code may be run


class Adapters(NamedTuple):
    """What a run has trained on top of another model, or a PEFT folder holds."""

    lora: LoraOptions
    base: Source
    folder: Path | None = None  # PEFT's; None: the run's checkpoint has them


def open_source(
    path: str | None,
    shape: ModelConfig | None = None,
    *,
    seed: int = 0,
    base_path: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Shape and tokenizer of the model at `path`, or of the random model of `shape` and `seed`.

    `base_path` is the model under the adapters of a PEFT folder, where it is not the one they name.
    Raises ConfigError where there is no usable model.
    """
    if path is None:
        return Source(shape or ModelConfig(), byte_tokenizer(), None, seed=seed)
    folder, step = run_at(path)
    if (folder / "checkpoints").is_dir():
        name = path if step is None else f"{folder}@{step}"
        run = _open_run(name, run_folder(folder), trust_remote_code)
        return run._replace(trusted=trust_remote_code, step=step)
    model = resolve_model(path)
    if trust_remote_code and model.from_hub:
        raise ConfigError(
            f"trust_remote_code=True: no code of {path} is fetched from the hub; give the path of "
            "a folder that holds it"
        )
    if is_adapter_folder(model.path):
        return _open_adapters(model, base_path, trust_remote_code)
    if base_path is not None:
        raise ConfigError(f"model.base_path={base_path}: read for adapters alone, {path} is none")
    return _open_folder(model, trust_remote_code)


def _open_folder(model: ModelFolder, trust_remote_code: bool) -> Source:
    tokenizer = load_tokenizer(model.path, trust_remote_code=trust_remote_code)
    shape = read_model_config(model.path)
    # Tokens that were added later may lie beyond: a prompt that has one is refused with its line.
    if tokenizer.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"{model.path}: its tokenizer has {tokenizer.vocab_size} tokens, its config.json a "
            f"vocabulary of {shape.vocab_size}: they are of different models"
        )
    return Source(shape, tokenizer, model.name, files=model.path, folder=model.path)


def _open_run(name: str, run: RunFolder, trust_remote_code: bool) -> Source:
    """A run keeps tokenizer and model config, so it outlives the model it began with; where only
    adapters were trained, the weights under them are still needed."""
    config, adapters = load_config(run.config), None
    if config.model.lora.rank is not None:
        try:
            base = open_source(
                config.model.path,
                config.model.shape,
                seed=config.run.seed,
                base_path=config.model.base_path,
                trust_remote_code=trust_remote_code,
            )
        except ConfigError as error:
            raise ConfigError(f"{run.root}: the model under its adapters: {error}") from None
        # Under adapters that went on from other ones lies what those lay on.
        base = base if base.adapters is None else base.adapters.base
        adapters = Adapters(config.model.lora, base)
    if config.model.path is None:
        return Source(config.model.shape, byte_tokenizer(), name, run=run, adapters=adapters)
    folder = downloaded(run.tokenizer)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    shape = read_model_config(folder)
    return Source(shape, tokenizer, name, files=folder, run=run, adapters=adapters)


def _open_adapters(model: ModelFolder, base_path: str | None, trust_remote_code: bool) -> Source:
    folder = model.path
    try:
        base = _open_base(folder, base_path, trust_remote_code)
    except ConfigError as error:
        which = "its base_model_name_or_path" if base_path is None else "model.base_path"
        raise ConfigError(f"{folder}: {which}: {error}") from None
    lora, _ = read_adapters(folder, base.config)
    tokenizer, files = base.tokenizer, base.files
    if has_tokenizer(folder):
        tokenizer, files = load_tokenizer(folder, trust_remote_code=trust_remote_code), folder
    adapters = Adapters(lora, base, folder)
    return Source(base.config, tokenizer, model.name, files=files, adapters=adapters)


def _open_base(folder: Path, base_path: str | None, trust_remote_code: bool) -> Source:
    name, revision = base_model(folder) if base_path is None else (base_path, None)
    if not Path(name).expanduser().exists():
        if (folder / name).is_dir():  # a relative path may be meant from the adapters' own folder
            name = str(folder / name)
        elif revision is not None:
            name = f"{name}@{revision}"
    if (run_at(name)[0] / "checkpoints").is_dir():
        return open_source(name, trust_remote_code=trust_remote_code)
    base = resolve_model(name)
    # Adapters may have been saved into their base's own folder; on other adapters they cannot lie.
    if is_adapter_folder(base.path) and not base.path.samefile(folder):
        raise ConfigError(f"{name} is adapters too: merge those first (ppo-jax export)")
    return _open_folder(base, trust_remote_code)


def load_trunk(source: Source) -> PyTree:
    """The whole trunk's float32 weights as NumPy arrays, layers as a list, adapters merged."""
    if source.adapters is not None:
        return merged(load_trunk(source.adapters.base), load_adapters(source), source.adapters)
    if source.run is not None:
        return unstack_layers(restore_params(source.run.checkpoints, source.step)["policy"])
    if source.folder is not None:
        return load_hf(source.folder)[1]
    key = jax.random.fold_in(jax.random.key(source.seed), INIT_KEY)
    init = jax.jit(init_trunk, static_argnums=0)  # one program, where each draw would be one
    with jax.default_device(_host()):  # one accelerator may not hold them all
        return jax.tree.map(np.asarray, init(source.config, key))


def _host() -> Any:
    """The CPU, where JAX may use it: JAX_PLATFORMS may name accelerators alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def load_adapters(source: Source) -> PyTree:
    """The adapters of a PEFT folder or of a run that trained some, layers as a list."""
    if source.adapters is not None and source.adapters.folder is not None:
        return read_adapters(source.adapters.folder, source.config)[1]
    assert source.run is not None
    return unstack_layers(restore_params(source.run.checkpoints, source.step)["policy"])


def merged(base: PyTree, trained: PyTree, adapters: Adapters) -> PyTree:
    return jax.tree.map(np.asarray, merge(attach(base, trained), lora_scale(adapters.lora)))


def resolve_options(
    options: ModelOptions, source: Source, critic: Source | None = None
) -> ModelOptions:
    """The options as a run saves them: every hub id pinned, dtype, layers and adapters settled.

    The attention kernel stays `auto`: each model takes its own, on the platform it is run on.
    Raises ConfigError where adapters to go on from are not of the kind that is asked for.
    """
    lora = _resolve_lora(options.lora, source)
    decoder = make_decoder(source.config, options)
    if critic is not None:
        make_decoder(critic.config, options)  # a kernel that is asked for must serve both
        if lora.rank is not None:
            adapted_modules(critic.config, lora.targets)  # of another family, perhaps
    peft = None
    if source.adapters is not None and source.adapters.folder is not None:
        peft = source.adapters.base.name
    layers = "scan" if scans_layers(source.config, options) else "unroll"
    return dataclasses.replace(
        options,
        path=source.name,
        base_path=peft,
        critic_path=None if critic is None else critic.name,
        compute_dtype=decoder.dtype,
        scan_layers=layers,
        lora=lora,
    )


def _resolve_lora(asked: LoraOptions, source: Source) -> LoraOptions:
    if asked.rank is None:
        return asked
    if source.adapters is None:
        adapted_modules(source.config, asked.targets)  # a pattern that picks nothing ends here
        return dataclasses.replace(asked, alpha=lora_scale(asked) * asked.rank)
    theirs = source.adapters.lora
    scale = lora_scale(theirs)
    if asked.rank != theirs.rank:
        raise ConfigError(
            f"model.lora.rank={asked.rank}: the adapters of {source.name} have rank {theirs.rank}; "
            f"nearest valid: {theirs.rank} (or None: merged, and every weight trains)"
        )
    alpha = scale * asked.rank
    if asked.alpha is not None and lora_scale(asked) != scale:
        raise ConfigError(
            f"model.lora.alpha={asked.alpha}: the adapters of {source.name} have alpha {alpha:g}; "
            f"nearest valid: {alpha:g}"
        )
    modules = [adapted_modules(source.config, lora.targets) for lora in (asked, theirs)]
    if asked.targets != LoraOptions().targets and modules[0] != modules[1]:
        raise ConfigError(
            f"model.lora.targets={' '.join(asked.targets)}: the adapters of {source.name} are on "
            f"{' '.join(theirs.targets)}"
        )
    return dataclasses.replace(theirs, alpha=alpha)
