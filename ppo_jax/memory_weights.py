"""Bytes of weights on one device of a mesh: kept, gathered, copied, cast."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from ppo_jax.classifier import as_read
from ppo_jax.config import Config, ModelConfig
from ppo_jax.cost import FLOAT32, head_params, item_bytes, layer_params
from ppo_jax.decoder import Decoder
from ppo_jax.lora import attach, init_adapters
from ppo_jax.model import (
    cast_weights,
    init_reward_head,
    init_trunk,
    init_value_head,
    stack_layers,
    without_lm_head,
)
from ppo_jax.prepare import init_state
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.sharding import AXES
from ppo_jax.types import PyTree, TrainState
from ppo_jax.weight_sharding import share_count, weight_shardings


class RewardModel(NamedTuple):
    """A model that is a reward, with what it settles for itself."""

    model: ModelConfig
    attention: str  # kernel of whole sequences
    scanned: bool  # its layers are stacked


class Case(NamedTuple):
    """What is to fit, beside the options."""

    model: ModelConfig
    critic: ModelConfig | None  # of a separate critic's trunk
    width: int  # prompt columns
    devices: int  # of the whole mesh
    platform: str  # cpu, gpu or tpu
    reward_models: tuple[RewardModel, ...] = ()  # rewards that are models
    judges: tuple[RewardModel, ...] = ()  # which are read between iterations, on held-out rows


class Shares(NamedTuple):
    """Devices that share: the rows of a batch, the weights by rows' devices, heads and columns."""

    rows: int
    fsdp: int
    tensor: int


def shares(config: Config, case: Case) -> Shares:
    """Of the mesh that the devices are; what `fsdp` and `tensor` leave shares the rows as well."""
    _, fsdp, tensor = config.parallel.sizes(case.devices)
    return Shares(max(1, case.devices // tensor), fsdp, tensor)


@functools.lru_cache(maxsize=64)
def abstract_weights(
    config: Config, model: ModelConfig, critic: ModelConfig | None
) -> tuple[TrainState, PyTree]:
    """(first state, frozen) as `prepare` makes them, shapes alone: nothing is read or allocated."""
    stacked = config.model.scan_layers == "scan"
    layout = stack_layers if stacked else lambda params: params
    compute = lambda shape: Decoder(shape, config.model.compute_dtype)
    lora, own = config.model.lora, critic if critic is not None else model

    def make(key):
        trunk = layout(init_trunk(model, key))
        value = {"head": init_value_head(own)}
        still = dict.fromkeys(("base", "critic", "ref"))
        if lora.rank is None:
            policy = trunk
            value_trunk = trunk if own == model else layout(init_trunk(own, key))
            if config.reward.reference == "fixed":
                still["ref"] = cast_weights(compute(model), trunk)
        else:
            policy = layout(init_adapters(model, lora, key))
            value_trunk = layout(init_adapters(own, lora, key))
            still["base"] = cast_weights(compute(model), trunk)
            if critic is not None and critic != model:
                own_trunk = without_lm_head(layout(init_trunk(own, key)))
                still["critic"] = cast_weights(compute(own), own_trunk)
        if critic is not None:
            value["trunk"] = without_lm_head(value_trunk)
        return init_state(config, {"policy": policy, "value": value}), still

    return jax.eval_shape(make, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def abstract_reward_model(config: Config, reward: RewardModel) -> PyTree:
    """The weights of a reward as `place_classifier` gives them, shapes alone."""
    decoder = Decoder(reward.model, config.model.compute_dtype)

    def make(key):
        trunk = as_read(decoder, init_trunk(reward.model, key), reward.scanned)
        return {"head": init_reward_head(reward.model, key), "trunk": trunk}

    return jax.eval_shape(make, jax.random.key(0))


def tree_bytes(tree: PyTree, by: Shares | None = None) -> float:
    """Bytes of all arrays; on one device where weights are shared. Keys are 8 bytes."""
    size = lambda x: 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    whole = [x.size * size(x) for x in jax.tree.leaves(tree)]
    if by is None or by.fsdp * by.tensor == 1:
        return float(sum(whole))
    mesh = AbstractMesh((by.rows // by.fsdp, by.fsdp, by.tensor), AXES)
    cuts = map(share_count, jax.tree.leaves(weight_shardings(mesh, tree)))
    return float(sum(n / cut for n, cut in zip(whole, cuts, strict=True)))


def on_one_of(model: ModelConfig, by: Shares) -> ModelConfig:
    """The shape of what a device of `tensor` computes."""
    return dataclasses.replace(
        model,
        num_heads=model.num_heads // by.tensor,
        num_kv_heads=model.num_kv_heads // by.tensor,
        mlp_dim=model.mlp_dim // by.tensor,
    )


def widened(config: Config, case: Case) -> bool:
    """Whether XLA's code computes most of bfloat16 in float32."""
    return case.platform == "cpu" and config.model.compute_dtype == "bfloat16"


def trunk_shapes(case: Case) -> list[ModelConfig]:
    return [model for model in (case.model, case.critic) if model is not None]


def sampler_bytes(config: Config, case: Case, state: TrainState, frozen: PyTree) -> float:
    """The arrays of `rollout_copy` that are not the trained ones themselves: cast, merged,
    quantised, gathered, or a layer's own where the trained ones are stacked."""
    decoder = Decoder(case.model, config.model.compute_dtype)
    trunk = attach(frozen["base"], state.params["policy"])
    copy = jax.eval_shape(
        functools.partial(rollout_copy, decoder, weights=config.rollout.weights), trunk
    )
    options, weights, by = config.model, config.rollout.weights, shares(config, case)
    merged = options.lora.rank is not None and weights == "compute"
    changed_all = merged or weights == "int8" or options.compute_dtype != "float32" or by.fsdp > 1
    own = options.scan_layers == "scan" or changed_all
    gathered = by._replace(fsdp=1)
    changed = lambda new, old: new.dtype != old.dtype or by.fsdp > 1
    total = 0.0
    for name, part in copy.items():
        if name == "layers" and own:
            total += tree_bytes({name: part}, gathered)
            continue
        news, olds = jax.tree.leaves(part), jax.tree.leaves(trunk[name])
        if any(map(changed, news, olds)):
            total += tree_bytes({name: part}, gathered)
    return total + (2 * tree_bytes(copy, gathered) if widened(config, case) else 0.0)


def cast_bytes(config: Config, case: Case) -> float:
    """Weights as the training forward uses them: in the compute dtype, gathered. Tables whole, and
    layers, but that of scanned ones only a TPU holds all, and where `fsdp` shares them no device
    does. The CPU's float32 copies of bfloat16 come on top."""
    by = shares(config, case)
    if config.model.compute_dtype == "float32" and by.fsdp == 1:
        return 0.0
    total, item = 0.0, item_bytes(config)
    for model in trunk_shapes(case):
        alone = config.model.scan_layers == "scan" and (case.platform != "tpu" or by.fsdp > 1)
        layers = layer_params(model) / (model.num_layers if alone else 1)
        wide = 3 if widened(config, case) else 1
        head = head_params(model) * (item + (FLOAT32 if by.fsdp > 1 else 0))
        total += wide * (item * layers + head) / by.tensor
    return total


def read_bytes(config: Config, case: Case, reward: RewardModel) -> float:
    """Copies of a reward's weights as its passes read them: gathered where `fsdp` shares them, of
    scanned layers one, beside the shares of all as they are sent; in float32 where XLA's code
    computes so."""
    by, wide = shares(config, case), widened(config, case)
    if by.fsdp == 1 and not wide:
        return 0.0
    layers = layer_params(reward.model) / by.tensor
    if reward.scanned and by.fsdp > 1:
        layers = layers / reward.model.num_layers + layers / by.fsdp
    item = FLOAT32 if wide else item_bytes(config)
    return item * (layers + head_params(reward.model) / by.tensor)
