"""The sampler's own copy of the weights: one tree a layer, merged, cast once, maybe in 8 bits."""

from typing import Literal

from ppo_jax.decoder import Decoder
from ppo_jax.lora import merge
from ppo_jax.model import cast_weights, unstack_layers
from ppo_jax.quantize import quantize_layers
from ppo_jax.types import PyTree


def rollout_copy(
    decoder: Decoder, trunk: PyTree, weights: Literal["compute", "unmerged", "int8"] = "compute"
) -> PyTree:
    """The trunk as the sampler wants it.

    Adapters are merged into their kernels, so that a step of decoding costs what it does without
    them. In bfloat16 a change below a kernel's last bit is lost on the way; `unmerged` keeps the
    adapters beside the kernels, as the training forward has them.
    """
    trunk = unstack_layers(trunk)
    if weights != "unmerged":
        trunk = merge(trunk, decoder.lora_scale)
    if weights == "int8":
        trunk = quantize_layers(trunk)  # from the unrounded weights
    return cast_weights(decoder, trunk)
