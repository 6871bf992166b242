"""An experiment as devices that need not be here would have it: shapes and prompts, no weights."""

import dataclasses
import math
from typing import NamedTuple

from ppo_jax import attention, data
from ppo_jax.classifier import scans_itself
from ppo_jax.config import Config, ModelConfig, ModelOptions
from ppo_jax.decoder import Decoder, lora_scale
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.foreseen import open_models
from ppo_jax.loading import Source
from ppo_jax.memory_weights import Case, RewardModel
from ppo_jax.model import scans_layers
from ppo_jax.rewards.base import parse_rewards, text_columns
from ppo_jax.validate import check_devices, check_model, check_shared
from ppo_jax.workload import dataset_of, workload_of


class Planned(NamedTuple):
    config: Config  # with every `auto` settled for the devices
    source: Source
    critic: ModelConfig | None  # of a separate critic's trunk
    dataset: data.Dataset
    case: Case
    rewards: dict[str, Source] = {}  # that are models, in the order of `case.reward_models`
    judges: dict[str, Source] = {}  # and those of JUDGE, in that of `case.judges`
    unmade: tuple[str, ...] = ()  # stages to run first, planned by the shapes they will have


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
    models = open_models(experiment, config)
    source, asked = models.policy, config.model
    config = settle(config, source, platform, devices)
    critic = None
    if config.model.critic == "separate":
        critic = source.config if models.critic is None else models.critic.config
    texts = text_columns(parse_rewards(experiment.reward))
    dataset = dataset_of(workload_of(experiment), config, source, texts)
    width = data.prompt_width(dataset)
    check_model(config, source.config, width)
    rewards, judges = (
        tuple(_settle_reward(asked, config, one.config, platform) for one in learned.values())
        for learned in (models.rewards, models.judges)
    )
    learned = [one.model for one in (*rewards, *judges)]
    for model in filter(None, (source.config, critic, *learned)):
        check_shared(config, model, devices)
    case = Case(source.config, critic, width, devices, platform, rewards, judges)
    return Planned(
        config, source, critic, dataset, case, models.rewards, models.judges, models.unmade
    )


def _settle_reward(
    asked: ModelOptions, config: Config, model: ModelConfig, platform: str
) -> RewardModel:
    """As `make_classifier` settles what was asked for."""
    kernel, _ = attention.choose(asked.attention, model, config.model.compute_dtype, platform)
    return RewardModel(model, kernel, scans_itself(asked, model))


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


def reward_decoder(config: Config, reward: RewardModel, mesh) -> Decoder:
    """The decoder of a reward that is a model, whose adapters are merged."""
    options = config.model
    return Decoder(reward.model, options.compute_dtype, options.remat, reward.attention, mesh=mesh)


def decoder_of(config: Config, model: ModelConfig, mesh) -> Decoder:
    """The decoder of a settled config, as `make_decoder` makes it on the devices themselves."""
    options = config.model
    scale = lora_scale(options.lora)
    return Decoder(model, options.compute_dtype, options.remat, options.attention, scale, mesh)
