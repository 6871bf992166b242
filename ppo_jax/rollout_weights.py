"""The sampler's own copy of the weights: one tree a layer, merged, cast once, maybe in 8 bits."""

from typing import Literal

import jax
import jax.numpy as jnp

from ppo_jax.decoder import Decoder
from ppo_jax.layers import SIDE_BY_SIDE
from ppo_jax.lora import merge
from ppo_jax.model import cast_weights, unstack_layers
from ppo_jax.quantize import quantize_layers
from ppo_jax.types import PyTree
from ppo_jax.weight_sharding import gather_trunk


def rollout_copy(
    decoder: Decoder, trunk: PyTree, weights: Literal["compute", "unmerged", "int8"] = "compute"
) -> PyTree:
    """The trunk as the sampler wants it.

    Adapters are merged into their kernels, so that a step of decoding costs what it does without
    them. In bfloat16 a change below a kernel's last bit is lost on the way; `unmerged` keeps the
    adapters beside the kernels, as the training forward has them. In another dtype than
    float32 and in 8 bits, where every kernel is a new array anyway, those that read the same input
    are joined into one; but not where devices share their columns. Weights that are shared over
    `fsdp` are gathered, once they are cast.
    """
    trunk = unstack_layers(trunk)
    if weights != "unmerged":
        trunk = merge(trunk, decoder.lora_scale)
    if weights == "int8":
        trunk = quantize_layers(trunk)  # from the unrounded weights
    trunk = cast_weights(decoder, trunk)
    joins = weights != "unmerged" and (weights == "int8" or decoder.dtype != "float32")
    if joins and (decoder.mesh is None or decoder.mesh.shape["tensor"] == 1):
        trunk = {**trunk, "layers": [join(layer) for layer in trunk["layers"]]}
    return gather_trunk(decoder.mesh, trunk)


def join(layer: PyTree) -> PyTree:
    """A layer with the kernels of queries, keys and values side by side, and those of gate and up.

    XLA on a GPU would join them itself, and write all of them again at every token.
    """
    for whole, parts in SIDE_BY_SIDE.items():
        if all(name in layer for name in parts):
            side_by_side = lambda *arrays: jnp.concatenate(arrays, axis=-1)
            joined = jax.tree.map(side_by_side, *(layer[name] for name in parts))
            layer = {k: v for k, v in layer.items() if k not in parts} | {whole: joined}
    return layer
