"""What the network's functions need to know beside its weights."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import attention
from ppo_jax.config import LoraOptions, ModelConfig, ModelOptions


@dataclass(frozen=True)
class Decoder:
    """A model's switches and how it is computed; hashable, static."""

    config: ModelConfig
    dtype: str = "float32"  # of matrix products; norms, softmax and logits are float32
    remat: str = "full"
    attention: str = "xla"  # kernel of whole sequences
    lora_scale: float = 1.0  # of the adapters' product, where there are adapters
    mesh: Mesh | None = None  # over which a fused kernel is split; XLA's own code needs none

    @property
    def compute(self):
        return jnp.dtype(self.dtype)


def make_decoder(config: ModelConfig, options: ModelOptions, mesh: Mesh | None = None) -> Decoder:
    """The decoder with every `auto` settled for the platform at hand.

    Raises ConfigError for an attention kernel that is asked for and cannot be had here.
    """
    platform = jax.default_backend()
    auto = "float32" if platform == "cpu" else "bfloat16"  # bfloat16 is the slower one on CPUs
    dtype = auto if options.compute_dtype == "auto" else options.compute_dtype
    kernel, _ = attention.choose(options.attention, config, dtype, platform)
    return Decoder(config, dtype, options.remat, kernel, lora_scale(options.lora), mesh)


def lora_scale(lora: LoraOptions) -> float:
    """alpha / rank; 1 without adapters."""
    if lora.rank is None:
        return 1.0
    return 2.0 if lora.alpha is None else lora.alpha / lora.rank
