"""The whole train step lowered for shapes alone: to be compiled where nothing is to run."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax.config import Config
from ppo_jax.decoder import Decoder
from ppo_jax.memory import Case, abstract_weights
from ppo_jax.sharding import batch_sharding, replicated
from ppo_jax.step import Setup, train_step
from ppo_jax.types import Prompts


def lower_step(config: Config, case: Case, mesh: Mesh, decoder: Decoder) -> jax.stages.Lowered:
    """As training compiles it, but that policy and critic are computed by one decoder and that the
    reward counts tokens: any will do that a device computes."""
    rule = lambda rollout, columns, tables: rollout.mask_BT.sum(axis=1)
    setup = Setup(config, mesh, decoder, decoder, {"rule": rule}, {"rule": 1.0})
    state, still = abstract_weights(config, case.model, case.critic)
    frozen = {**still, "reward": {"rule": ()}}
    shape, B = jax.ShapeDtypeStruct, config.rollout.batch_size
    rows = lambda *columns: shape((B, *columns), jnp.int32)
    prompts = Prompts(rows(case.width), shape((B, case.width), bool), rows(), rows(), {})
    hparams = jax.tree.map(lambda _: shape((), jnp.float32), config.hparams)
    whole, split = replicated(mesh), batch_sharding(mesh)
    put = lambda tree, where: jax.tree.map(lambda x: shape(x.shape, x.dtype, sharding=where), tree)
    step = jax.jit(
        functools.partial(train_step, setup),
        donate_argnums=0,
        out_shardings=(whole, whole, split, split),
    )
    return step.lower(*(put(tree, whole) for tree in (state, frozen, hparams)), put(prompts, split))
