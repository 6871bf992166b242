"""An experiment as devices that need not be here would have it: shapes and prompts, no weights."""

import dataclasses
import math
from typing import NamedTuple

from ppo_jax import attention, data
from ppo_jax.config import Config, ModelConfig
from ppo_jax.decoder import Decoder, lora_scale
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.loading import Source
from ppo_jax.memory_weights import Case
from ppo_jax.model import scans_layers
from ppo_jax.prepare import open_critic, open_policy
from ppo_jax.rewards.base import parse_rewards, text_columns
from ppo_jax.validate import check_devices, check_model, check_shared
from ppo_jax.workload import dataset_of, workload_of


class Planned(NamedTuple):
    config: Config  # with every `auto` settled for the devices
    source: Source
    critic: ModelConfig | None  # of a separate critic's trunk
    dataset: data.Dataset
    case: Case


def open_planned(experiment: Experiment, config: Config, platform: str, devices: int) -> Planned:
    """Read the model's config and the prompts of an experiment for so many devices of a platform.

    Raises ConfigError or DataError where training would.
    """
    check_devices(config, devices)
    used = math.prod(config.parallel.sizes(devices))
    if used != devices:
        raise ConfigError(
            f"parallel.data={config.parallel.data}: the mesh has {used} devices, and the plan is "
            f"for {devices}; nearest valid: -1, or a plan for {used}"
        )
    source = open_policy(config)
    critic_source = open_critic(config, source)
    config = settle(config, source, platform, devices)
    critic = None
    if config.model.critic == "separate":
        critic = source.config if critic_source is None else critic_source.config
    texts = text_columns(parse_rewards(experiment.reward))
    dataset = dataset_of(workload_of(experiment), config, source, texts)
    width = data.prompt_width(dataset)
    check_model(config, source.config, width)
    for model in filter(None, (source.config, critic)):
        check_shared(config, model, devices)
    case = Case(source.config, critic, width, devices, platform)
    return Planned(config, source, critic, dataset, case)


def settle(config: Config, source: Source, platform: str, devices: int) -> Config:
    """Every `auto` of the model as the device will have it, which is not the one planned on."""
    asked = config.model
    dtype = asked.compute_dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    kernel, _ = attention.choose(asked.attention, source.config, dtype, platform)
    lora = asked.lora
    if lora.rank is not None and source.adapters is not None:
        lora = dataclasses.replace(lora, targets=source.adapters.lora.targets)
    layers = "scan" if scans_layers(source.config, asked) else "unroll"
    model = dataclasses.replace(
        asked, compute_dtype=dtype, scan_layers=layers, attention=kernel, lora=lora
    )
    data_, fsdp, tensor = config.parallel.sizes(devices)
    parallel = dataclasses.replace(config.parallel, data=data_, fsdp=fsdp, tensor=tensor)
    return dataclasses.replace(config, model=model, parallel=parallel)


def decoder_of(config: Config, model: ModelConfig, mesh) -> Decoder:
    """The decoder of a settled config, as `make_decoder` makes it on the devices themselves."""
    options = config.model
    scale = lora_scale(options.lora)
    return Decoder(model, options.compute_dtype, options.remat, options.attention, scale, mesh)
