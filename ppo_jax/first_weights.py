"""The weights that a run starts from, loaded to the host: what trains, and what stays still."""

from typing import Any

import jax

from ppo_jax.config import Config
from ppo_jax.critics import load_critic
from ppo_jax.decoder import Decoder
from ppo_jax.loading import Source, load_adapters, load_trunk
from ppo_jax.lora import init_adapters
from ppo_jax.model import cast_weights, init_value_head, stack_layers, without_lm_head
from ppo_jax.types import PyTree

# Folded in for the first adapters: no iteration of a run has these numbers.
LORA_KEY, CRITIC_LORA_KEY = 2**31 - 3, 2**31 - 4


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
        base = source if source.adapters is None else source.adapters.base
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
    elif separate and critic_source is not None:
        own = load_critic(critic_source)
        value["head"] = value["head"] if own.head is None else own.head
        value["trunk"] = without_lm_head(layout(own.trunk))
        if lora.rank is not None:
            still["critic"] = cast_weights(critic, value["trunk"])
            key = _lora_key(config, CRITIC_LORA_KEY)
            value["trunk"] = layout(init_adapters(critic.config, lora, key))
    return {"policy": policy, "value": value}, still


def _lora_key(config: Config, number: int):
    return jax.random.fold_in(jax.random.key(config.run.seed), number)
