"""Which weights play which part: policy, critic and reference, of what trains and what is frozen.

`frozen` = {"base", "critic", "ref", "reward"}. `base` is the trunk under the policy's adapters, in
the compute dtype; None where every weight trains. `critic` is the trunk under a separate critic's
adapters where it is not `base`. `ref` is the reference: a trunk, adapters on `base`, or None, which
is `base` itself (or a moving reference in the state). `reward` are tables of device rewards.
"""

import jax
import jax.numpy as jnp

from ppo_jax.config import Config, HParams
from ppo_jax.lora import attach
from ppo_jax.offload import fetched, put_back
from ppo_jax.types import PyTree, TrainState


def assemble(frozen: PyTree, trained: PyTree) -> PyTree:
    """{"policy": trunk, "value": {"head"[, "trunk"]}} as the model reads them."""
    value = trained["value"]
    if "trunk" in value:
        base = frozen["base"] if frozen["critic"] is None else frozen["critic"]
        value = {**value, "trunk": attach(base, value["trunk"])}
    return {"policy": attach(frozen["base"], trained["policy"]), "value": value}


def reference_trunk(frozen: PyTree, moving: PyTree | None, after: PyTree = None) -> PyTree:
    """The reference policy's trunk; `moving` is the state's own, where it moves. On the device, for
    use after `after`."""
    return attach(frozen["base"], fetched(frozen["ref"] if moving is None else moving, after))


def move_reference(config: Config, hparams: HParams, state: TrainState, policy: PyTree):
    """The next moving reference, of the trained weights alone; None where it is fixed.

    Of adapters each factor is averaged, which is not the average of their products.
    """
    if config.reward.reference == "fixed":
        return None
    ref = fetched(state.ref, policy)
    if config.reward.reference == "ema":
        decay = hparams.reference_decay
        moved = jax.tree.map(lambda r, p: decay * r + (1.0 - decay) * p, ref, policy)
    else:
        due = (state.step + 1) % config.reward.reference_reset_every == 0
        moved = jax.tree.map(lambda r, p: jnp.where(due, p, r), ref, policy)
    return put_back(moved, state.ref)
