"""From a config to what the loop works with: weights, first state, what stays frozen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import data
from ppo_jax.config import Config, HParams
from ppo_jax.errors import ConfigError
from ppo_jax.kl_control import INITIAL_KL_ERROR
from ppo_jax.loading import Source, load_critic, load_trunk, open_source
from ppo_jax.model import cast_weights, init_value_head, make_decoder, stack_layers
from ppo_jax.optimizer import make_optimizer
from ppo_jax.rewards.base import Part
from ppo_jax.sharding import make_mesh, put_replicated
from ppo_jax.step import Setup
from ppo_jax.types import PyTree, ScoreMoments, TrainState


class Run(NamedTuple):
    """What the loop works with beside `state` and `frozen`, which hold the arrays."""

    config: Config
    setup: Setup
    parts: list[Part]
    dataset: data.Dataset
    tokenizer: Any
    width: int  # prompt columns
    hparams: HParams  # float32 scalars

    @property
    def pad_id(self) -> int:
        return self.setup.decoder.config.pad_token_id

    @property
    def has_host_reward(self) -> bool:
        return any(part.host is not None for part in self.parts)


def prepare(
    config: Config,
    source: Source,
    dataset: data.Dataset,
    parts: list[Part],
    critic_source: Source | None = None,
) -> tuple[Run, TrainState, PyTree]:
    """Load the weights and build (run, first state, frozen), the arrays on the devices."""
    mesh = make_mesh(config.parallel)
    decoder = make_decoder(source.config, config.model)
    layout = stack_layers if config.model.scan_layers == "scan" else lambda params: params
    policy = layout(load_trunk(source, seed=config.run.seed))
    value, critic = _value_tree(config, source, critic_source, policy, layout)
    device_parts = [part for part in parts if part.device is not None]
    setup = Setup(
        config,
        mesh,
        decoder,
        critic,
        {part.name: part.device.fn for part in device_parts},
        {part.name: part.weight for part in parts},
    )
    fixed = config.reward.reference == "fixed"
    tables = {
        part.name: part.device.make_tables(source.tokenizer, source.config.vocab_size)
        for part in device_parts
    }
    frozen = {"ref": cast_weights(decoder, policy) if fixed else None, "reward": tables}
    state = init_state(config, {"policy": policy, "value": value})
    hparams = jax.tree.map(jnp.float32, config.hparams)
    width = data.prompt_width(dataset)
    run = Run(config, setup, parts, dataset, source.tokenizer, width, hparams)
    return run, put_replicated(mesh, state), put_replicated(mesh, frozen)


def open_critic(config: Config, source: Source) -> Source | None:
    """The critic's own checkpoint, before its weights are read; None: it starts as the policy.

    Raises ConfigError if it is no model, or not one that can read the policy's sequences.
    """
    path = config.model.critic_path
    if path is None:
        return None
    critic = open_source(path)
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


def _value_tree(config: Config, source: Source, critic: Source | None, policy: PyTree, layout):
    """The value group's parameters and the decoder of its trunk."""
    if config.model.critic == "shared":
        return {"head": init_value_head(source.config)}, make_decoder(source.config, config.model)
    if critic is None:
        value = {"head": init_value_head(source.config), "trunk": policy}
        return value, make_decoder(source.config, config.model)
    head, trunk = load_critic(critic)
    if head is None:
        head = init_value_head(critic.config)
    return {"head": head, "trunk": layout(trunk)}, make_decoder(critic.config, config.model)


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
