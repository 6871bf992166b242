"""The whole train step lowered for shapes alone: to be compiled where nothing is to run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax.config import Config
from ppo_jax.decoder import Decoder
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.memory_weights import Case, abstract_weights
from ppo_jax.offload import shardings_at_rest
from ppo_jax.sharding import batch_sharding, replicated
from ppo_jax.step import Setup, train_step
from ppo_jax.types import Prompts, PyTree
from ppo_jax.weight_sharding import weight_shardings


class Rewards(NamedTuple):
    """The step's rewards, each computed on the device, by name, and what the policy talks with;
    arrays may be shapes alone."""

    rules: dict[str, Callable]  # fn(rollout, columns, tables) -> [B] or [B, T]
    weights: dict[str, float]
    tables: dict[str, PyTree]
    columns: dict[str, Any]  # what they read of the data, [B, ...]
    environment: DeviceEnv | None = None
    env_tables: PyTree = None
    models: dict[str, PyTree] = {}  # weights of those that are models, in shares


def count_tokens(rollout, columns, tables):
    """A reward that stands for any other: the tokens of each response, [B]."""
    return rollout.mask_BT.sum(axis=1)


TOKENS = Rewards({"rule": count_tokens}, {"rule": 1.0}, {"rule": ()}, {})


def lower_step(
    config: Config,
    case: Case,
    mesh: Mesh,
    decoder: Decoder,
    *,
    critic: Decoder | None = None,
    rewards: Rewards = TOKENS,
) -> jax.stages.Lowered:
    """As training compiles it, on devices that need not be here. `critic` computes a trunk of
    another shape than the policy's; None: `decoder` does."""
    setup = Setup(
        config,
        mesh,
        decoder,
        critic or decoder,
        rewards.rules,
        rewards.weights,
        rewards.environment,
    )
    state, still = abstract_weights(config, case.model, case.critic)
    shape, B = jax.ShapeDtypeStruct, config.rollout.batch_size
    rows = lambda *columns: shape((B, *columns), jnp.int32)
    ids, mask = rows(case.width), shape((B, case.width), bool)
    prompts = Prompts(ids, mask, rows(), rows(), rewards.columns)
    hparams = jax.tree.map(lambda _: shape((), jnp.float32), config.hparams)
    whole, split = replicated(mesh), batch_sharding(mesh)
    put = lambda x, where: shape(x.shape, x.dtype, sharding=where)
    everywhere = lambda tree, where: jax.tree.map(lambda x: put(x, where), tree)
    at_rest = lambda tree: shardings_at_rest(config, mesh, tree)
    shared = lambda tree: jax.tree.map(put, tree, at_rest(tree))
    step = jax.jit(
        functools.partial(train_step, setup),
        donate_argnums=0,
        out_shardings=(at_rest(state), whole, split, split),
    )
    models = jax.tree.map(put, rewards.models, weight_shardings(mesh, rewards.models))
    frozen = {**shared(still), "reward": everywhere(rewards.tables, whole) | models}
    if rewards.environment is not None:
        frozen["env"] = everywhere(rewards.env_tables, whole)
    hparams, prompts = everywhere(hparams, whole), everywhere(prompts, split)
    return step.lower(shared(state), frozen, hparams, prompts)
