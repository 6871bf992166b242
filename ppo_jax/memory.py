"""Bytes on each device through an iteration, by what they are for: a model of the compiled step.

Weights, moments and batch are counted as they are, array by array; what the program needs beside
them is modelled phase by phase, from what XLA keeps of a layer (`memory_layers`). Held against
`memory_analysis()` of compiled steps in the tests.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import Config, ModelConfig
from ppo_jax.cost import FLOAT32, head_params, item_bytes, kv_bytes, layer_params
from ppo_jax.decoder import Decoder
from ppo_jax.lora import attach, init_adapters
from ppo_jax.memory_layers import Held, forward_bytes, saved_bytes, working_bytes
from ppo_jax.model import cast_weights, init_trunk, init_value_head, stack_layers
from ppo_jax.prepare import init_state, without_lm_head
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.sampling import MAX_KEPT
from ppo_jax.slots import REFILL
from ppo_jax.types import PyTree, TrainState

NEW_STATE = 1.75  # arrays of new parameters and moments beside the old ones, of three: fitted
CATEGORIES = ("params", "optimiser", "kv", "activations", "logits", "batch")


class Case(NamedTuple):
    """What is to fit, beside the options."""

    model: ModelConfig
    critic: ModelConfig | None  # of a separate critic's trunk
    width: int  # prompt columns
    devices: int
    platform: str  # cpu, gpu or tpu


class Memory(NamedTuple):
    """Bytes of one device: {phase: {category: bytes}}."""

    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.phases.values())


def memory_of(config: Config, case: Case) -> Memory:
    """Bytes of each phase of an iteration. `config` has every `auto` settled."""
    state, frozen = abstract_weights(config, case.model, case.critic)
    always = dict.fromkeys(CATEGORIES, 0.0) | {
        "params": tree_bytes((state.params, state.ref, frozen)),
        "optimiser": tree_bytes(state.opt_state),
        "batch": batch_bytes(config, case),
    }
    extra = {
        "rollout": _rollout(config, case, state, frozen),
        "score": _score(config, case),
        "head": _head(config, case),
        "layers": _layers(config, case, state),
        "optimiser": _optimiser(config, state),
    }
    return Memory(
        {
            phase: {name: always[name] + parts.get(name, 0.0) for name in CATEGORIES}
            for phase, parts in extra.items()
        }
    )


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


def tree_bytes(tree: PyTree) -> float:
    """Bytes of all arrays; keys are 8 bytes."""
    size = lambda x: 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return float(sum(x.size * size(x) for x in jax.tree.leaves(tree)))


def batch_bytes(config: Config, case: Case) -> float:
    """Prompts, responses and what is known of each token: about twelve numbers."""
    rows, T = config.rollout.batch_size / case.devices, config.rollout.max_new_tokens
    kept = 0
    if config.rollout.top_k is not None or config.rollout.top_p is not None:
        kept = MAX_KEPT if config.rollout.top_k is None else config.rollout.top_k
    states = 0
    if config.reward.kl_in == "loss" and config.reward.kl_estimator == "full":
        states = case.model.embed_dim  # of the reference, kept for the loss
    item = item_bytes(config)
    return rows * (5 * case.width + T * (12 * FLOAT32 + 2 * FLOAT32 * kept + 2 * item * states))


def update_width(config: Config, case: Case) -> int:
    """Tokens of the longest row the update can see: nothing follows the last one."""
    return case.width + config.rollout.max_new_tokens - 1


def chunk_bytes(config: Config, case: Case) -> float:
    """One float32 array of the logits of a chunk of response tokens."""
    tokens = _part_rows(config, case) * config.rollout.max_new_tokens
    return min(config.model.logit_chunk, tokens) * case.model.vocab_size * FLOAT32


def _part_rows(config: Config, case: Case) -> int:
    return max(1, config.microbatch_size // case.devices)


def held(config: Config, case: Case, model: ModelConfig) -> Held:
    """What the activations of a part of the update depend on: as many tokens as its rows hold at
    most, as padded rows or as a stream whose largest size this is."""
    width = update_width(config, case)
    stream = config.ppo.token_sizes is not None and _part_rows(config, case) > 1
    return Held(
        model,
        tokens=_part_rows(config, case) * width,
        width=width,
        stream=stream,
        item=activation_bytes(config, case),
        remat=config.model.remat,
        adapters=config.model.lora.rank is not None,
        scanned=config.model.scan_layers == "scan",
        attention=config.model.attention,
        platform=case.platform,
    )


def activation_bytes(config: Config, case: Case) -> float:
    """Bytes of a number: XLA's CPU code computes most of bfloat16 in float32."""
    return 3.0 if _widened(config, case) else item_bytes(config)


def _widened(config: Config, case: Case) -> bool:
    return case.platform == "cpu" and config.model.compute_dtype == "bfloat16"


def _trunks(case: Case) -> list[ModelConfig]:
    return [model for model in (case.model, case.critic) if model is not None]


def _rollout(config: Config, case: Case, state: TrainState, frozen: PyTree) -> dict[str, float]:
    """The sampler's copy of the weights; caches, with the prompts' pass or the smaller caches of a
    compaction beside them; one step's logits (`rollout.sample`)."""
    slots = (config.rollout.slots or config.rollout.batch_size) / case.devices
    rows = config.rollout.batch_size / case.devices
    filled = slots if slots >= rows else -(-slots // REFILL)
    columns = case.width + config.rollout.max_new_tokens
    kv = kv_bytes(config, case.model) * (2 if _widened(config, case) else 1)
    caches = slots * columns * kv
    smaller = 0.5 * caches if config.rollout.compactions > 0 and slots > 1 else 0.0
    layers = held(config, case, case.model)
    prompts = layers._replace(
        tokens=filled * case.width, width=case.width, stream=False, scanned=True
    )
    return {
        "params": _sampler_bytes(config, case, state, frozen),
        "kv": caches + smaller,
        "activations": max(0.0, forward_bytes(prompts) - smaller),
        "logits": 3 * slots * case.model.vocab_size * FLOAT32,
    }


def _sampler_bytes(config: Config, case: Case, state: TrainState, frozen: PyTree) -> float:
    """The arrays of `rollout_copy` that are not the trained ones themselves: cast, merged,
    quantised, or a layer's own where the trained ones are stacked."""
    decoder = Decoder(case.model, config.model.compute_dtype)
    trunk = attach(frozen["base"], state.params["policy"])
    copy = jax.eval_shape(
        functools.partial(rollout_copy, decoder, weights=config.rollout.weights), trunk
    )
    merged = config.model.lora.rank is not None and config.rollout.weights == "compute"
    own = config.model.scan_layers == "scan" or config.rollout.weights == "int8" or merged
    changed = lambda new, old: 0.0 if new.dtype == old.dtype else tree_bytes(new)
    total = 0.0
    for name, part in copy.items():
        if name == "layers" and own:
            total += tree_bytes(part)
        else:
            total += sum(jax.tree.leaves(jax.tree.map(changed, part, trunk[name])))
    return total + (2 * tree_bytes(copy) if _widened(config, case) else 0.0)


def _cast_bytes(config: Config, case: Case) -> float:
    """Weights in the compute dtype in the training forward: tables whole, a layer at a time where
    they are scanned. The CPU's float32 copies of bfloat16 come on top."""
    if config.model.compute_dtype == "float32":
        return 0.0
    total = 0.0
    for model in _trunks(case):
        layers = layer_params(model)
        layers /= model.num_layers if config.model.scan_layers == "scan" else 1
        wide = 3 if _widened(config, case) else 1
        total += wide * item_bytes(config) * (layers + head_params(model))
    return total


def _score(config: Config, case: Case) -> dict[str, float]:
    """Forward passes of one trunk after the other, then a chunk's logits (`score_rollout`)."""
    passes = [forward_bytes(held(config, case, model)) for model in _trunks(case)]
    chunk = 2 * chunk_bytes(config, case)
    return {
        "params": 2 * _cast_bytes(config, case),
        "activations": max(max(passes) - chunk, 0.0),
        "logits": chunk,
    }


def _head(config: Config, case: Case) -> dict[str, float]:
    """The head's gradient, a chunk's added to the sum, with all that is kept of the layers
    (`chunks`)."""
    layers = [held(config, case, model) for model in _trunks(case)]
    table = case.model.vocab_size * case.model.embed_dim * FLOAT32
    return {
        "params": _cast_bytes(config, case),
        "activations": sum(map(saved_bytes, layers)) + _beside(layers),
        "logits": 3 * chunk_bytes(config, case),
        "optimiser": 2 * table if config.model.lora.rank is None else 0.0,
    }


def _layers(config: Config, case: Case, state: TrainState) -> dict[str, float]:
    """The layers' gradients: of one layer what is worked with, of all what is kept and what has
    been computed; twice that with microbatches, whose gradients are summed (`gradients`)."""
    layers = [held(config, case, model) for model in _trunks(case)]
    gradients = tree_bytes(state.params) * (2 if config.ppo.microbatches > 1 else 1)
    if layers[0].together and config.ppo.microbatches == 1:
        gradients = 0.0  # they take the place of activations
    return {
        "params": _cast_bytes(config, case),
        "activations": sum(map(saved_bytes, layers)) + max(map(working_bytes, layers)),
        "optimiser": gradients,
    }


def _beside(layers: list[Held]) -> float:
    """Gradients of a layer that the CPU's schedule computes beside the head's."""
    return max(map(working_bytes, layers)) if layers[0].together else 0.0


def _optimiser(config: Config, state: TrainState) -> dict[str, float]:
    """All gradients, and new parameters and moments beside the old ones, of all groups at once: a
    step that is not applied leaves the old ones, and XLA makes little of it in place (`update`)."""
    return {"optimiser": (1 + NEW_STATE) * tree_bytes(state.params)}
