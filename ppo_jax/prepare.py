"""From a config to what the loop works with: weights, first state, what stays frozen."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import data
from ppo_jax.config import Config, HParams
from ppo_jax.decoder import Decoder, make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.kl_control import INITIAL_KL_ERROR
from ppo_jax.loading import (
    Source,
    load_adapters,
    load_critic,
    load_trunk,
    open_source,
    resolve_options,
)
from ppo_jax.lora import init_adapters
from ppo_jax.model import cast_weights, init_value_head, stack_layers
from ppo_jax.offload import check_memories, shardings_at_rest
from ppo_jax.optimizer import make_optimizer
from ppo_jax.rewards.base import Part, check_columns, parse_rewards
from ppo_jax.rewards.host import SEEDS, HostScores, Rows
from ppo_jax.sharding import make_mesh, put, put_replicated
from ppo_jax.step import Setup
from ppo_jax.types import PyTree, ScoreMoments, TrainState
from ppo_jax.validate import check_model, check_shared
from ppo_jax.weight_sharding import weight_shardings

# Folded in for the first adapters: no iteration of a run has these numbers.
LORA_KEY, CRITIC_LORA_KEY = 2**31 - 3, 2**31 - 4


CallHost = Callable[[Part, Rows, int], HostScores]  # a host reward, its rows, a seed


class Run(NamedTuple):
    """What the loop works with beside `state` and `frozen`, which hold the arrays."""

    config: Config
    setup: Setup
    parts: list[Part]
    dataset: data.Dataset
    tokenizer: Any
    width: int  # prompt columns
    hparams: HParams  # float32 scalars
    call_host: CallHost | None = None  # None: in this process

    @property
    def pad_id(self) -> int:
        return self.setup.decoder.config.pad_token_id

    @property
    def has_host_reward(self) -> bool:
        return any(part.host is not None for part in self.parts)


class Opened(NamedTuple):
    """All that a run is made of, read and held against each other; no weights yet."""

    config: Config  # with the model's options resolved
    source: Source
    critic: Source | None
    dataset: data.Dataset
    parts: list[Part]


def open_run_of(
    config: Config, reward: Any, dataset_of: Callable[[Config, Source], data.Dataset]
) -> Opened:
    """Open the models, the data and the rewards. Raises ConfigError or DataError."""
    source = open_policy(config)
    critic = open_critic(config, source)
    config = dataclasses.replace(config, model=resolve_options(config.model, source, critic))
    dataset = dataset_of(config, source)
    check_model(config, source.config, data.prompt_width(dataset))
    for model in filter(None, (source, critic)):
        check_shared(config, model.config, jax.device_count())
    check_memories(config, jax.devices())
    parts = parse_rewards(reward)
    for part in parts:
        check_columns(part, {*dataset.columns, SEEDS})
    return Opened(config, source, critic, dataset, parts)


def read_dataset(config: Config, source: Source) -> data.Dataset:
    """The prompts of `data.path`."""
    return data.load_dataset(config.data, source.tokenizer, vocab_size=source.config.vocab_size)


def prepare(
    config: Config,
    source: Source,
    dataset: data.Dataset,
    parts: list[Part],
    critic_source: Source | None = None,
) -> tuple[Run, TrainState, PyTree]:
    """Load the weights and build (run, first state, frozen), the arrays on the devices."""
    mesh = make_mesh(config.parallel)
    decoder = critic = make_decoder(source.config, config.model, mesh)
    if critic_source is not None:
        critic = make_decoder(critic_source.config, config.model, mesh)
    trained, still = initial_weights(config, source, critic_source, decoder, critic)
    device_parts = [part for part in parts if part.device is not None]
    setup = Setup(
        config,
        mesh,
        decoder,
        critic,
        {part.name: part.device.fn for part in device_parts},
        {part.name: part.weight for part in parts},
    )
    tables = {
        part.name: part.device.make_tables(source.tokenizer, source.config.vocab_size)
        for part in device_parts
    }
    state = place_state(config, mesh, trained)
    hparams = jax.tree.map(jnp.float32, config.hparams)
    width = data.prompt_width(dataset)
    run = Run(config, setup, parts, dataset, source.tokenizer, width, hparams)
    frozen = place_frozen(config, mesh, still)
    return run, state, {**frozen, "reward": put_replicated(mesh, tables)}


def initial_weights(
    config: Config,
    source: Source,
    critic_source: Source | None,
    decoder: Decoder,
    critic: Decoder,
) -> tuple[PyTree, PyTree]:
    """({"policy", "value"} as they start, {"base", "critic", "ref"} as `trunks` describes them)."""
    layout = stack_layers if config.model.scan_layers == "scan" else lambda params: params
    separate, lora = config.model.critic == "separate", config.model.lora
    still: dict[str, Any] = {"base": None, "critic": None, "ref": None}
    if lora.rank is None:
        policy = layout(load_trunk(source))
        if config.reward.reference == "fixed":
            still["ref"] = cast_weights(decoder, policy)
    else:
        goes_on = source.adapters is not None
        base = source.adapters.base if goes_on else source
        still["base"] = cast_weights(decoder, layout(load_trunk(base)))
        policy = layout(
            load_adapters(source)
            if goes_on
            else init_adapters(source.config, lora, _lora_key(config, LORA_KEY))
        )
        if goes_on and config.reward.reference == "fixed":
            still["ref"] = policy  # the base without adapters is not where this policy starts
    value: dict[str, Any] = {"head": init_value_head(critic.config)}
    if separate and critic_source is None:
        value["trunk"] = without_lm_head(policy)
    elif separate:
        own = load_critic(critic_source)
        value["head"] = value["head"] if own.head is None else own.head
        value["trunk"] = without_lm_head(layout(own.trunk))
        if lora.rank is not None:
            still["critic"] = cast_weights(critic, value["trunk"])
            key = _lora_key(config, CRITIC_LORA_KEY)
            value["trunk"] = layout(init_adapters(critic.config, lora, key))
    return {"policy": policy, "value": value}, still


def without_lm_head(trunk: PyTree) -> PyTree:
    """A critic's trunk: it makes values, not logits."""
    return {name: x for name, x in trunk.items() if name != "lm_head"}


def _lora_key(config: Config, number: int):
    return jax.random.fold_in(jax.random.key(config.run.seed), number)


def open_policy(config: Config) -> Source:
    """The model that a run begins from, before its weights are read. Raises ConfigError."""
    return open_source(
        config.model.path,
        config.model.shape,
        seed=config.run.seed,
        base_path=config.model.base_path,
        trust_remote_code=config.model.trust_remote_code,
    )


def open_critic(config: Config, source: Source) -> Source | None:
    """The critic's own checkpoint, before its weights are read; None: it starts as the policy.

    Raises ConfigError if it is no model, or not one that can read the policy's sequences.
    """
    path = config.model.critic_path
    if path is None:
        return None
    critic = open_source(path, trust_remote_code=config.model.trust_remote_code)
    if critic.config.vocab_size != source.config.vocab_size:
        raise ConfigError(
            f"model.critic_path={path}: its vocabulary has {critic.config.vocab_size} tokens, the "
            f"policy's {source.config.vocab_size}"
        )
    if critic.config.max_positions < config.data.max_prompt_tokens + config.rollout.max_new_tokens:
        raise ConfigError(
            f"model.critic_path={path}: holds {critic.config.max_positions} positions, fewer than "
            f"data.max_prompt_tokens + rollout.max_new_tokens"
        )
    return critic


def place_state(config: Config, mesh: Mesh, params: PyTree) -> TrainState:
    """The state before the first iteration on the devices, from weights on the host. No device
    ever holds more of it than its share."""
    first = lambda params: jax.tree.map(lambda x: x.copy(), init_state(config, params))
    shardings = shardings_at_rest(config, mesh, jax.eval_shape(first, params))
    placed = put(params, weight_shardings(mesh, params))
    return jax.jit(first, out_shardings=shardings, donate_argnums=0)(placed)


def place_frozen(config: Config, mesh: Mesh, still: PyTree) -> PyTree:
    """The weights that stay still where they rest, from weights on the host."""
    placed = put(still, weight_shardings(mesh, still))
    return jax.device_put(placed, shardings_at_rest(config, mesh, still))


def init_state(config: Config, params: PyTree) -> TrainState:
    """The state before the first iteration."""
    transform = make_optimizer(config.optim)
    moving = config.reward.reference != "fixed"
    zero = jnp.zeros((), jnp.float32)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={group: transform.init(params[group]) for group in params},
        key=jax.random.key(config.run.seed),
        kl_coef=jnp.asarray(config.hparams.kl_coef, jnp.float32),
        kl_error=jnp.asarray(INITIAL_KL_ERROR, jnp.float32),
        moments=ScoreMoments(zero, zero, zero),
        nonfinite=jnp.zeros((), jnp.int32),
        tokens=zero,
        ref=params["policy"] if moving else None,
    )
