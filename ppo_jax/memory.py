"""Bytes on each device through an iteration, by what they are for: a model of the compiled step.

Weights, moments and batch are counted as they are, array by array; what the program needs beside
them is modelled phase by phase, from what XLA keeps of a layer (`memory_layers`). Held against
`memory_analysis()` of compiled steps in the tests.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import Config, ModelConfig
from ppo_jax.cost import FLOAT32, head_params, item_bytes, kv_bytes, layer_params
from ppo_jax.decoder import Decoder
from ppo_jax.lora import attach, init_adapters
from ppo_jax.memory_layers import Held, backward_bytes, forward_bytes, saved_bytes
from ppo_jax.model import cast_weights, init_trunk, init_value_head, stack_layers
from ppo_jax.parts import ROWS
from ppo_jax.prepare import init_state, without_lm_head
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.sampling import MAX_KEPT
from ppo_jax.slots import REFILL
from ppo_jax.types import PyTree, TrainState

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
        "head": _head(config, case, state),
        "layers": _layers(config, case, state),
        # All gradients: new parameters and moments are written over the old ones (`update`).
        "optimiser": {"optimiser": tree_bytes(state.params)},
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
    stream = config.ppo.token_sizes is not None and config.minibatch_size > case.devices
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
        cells=min(config.ppo.microbatches, ROWS) if stream else 1,
        deferred=_unrolled_on_cpu(config, case) and config.ppo.microbatches == 1,
    )


def activation_bytes(config: Config, case: Case) -> float:
    """Bytes of a number: XLA's CPU code computes most of bfloat16 in float32. A scan reads float32
    copies of all it has saved; of what unrolled layers keep, a quarter is such a copy."""
    if not _widened(config, case):
        return item_bytes(config)
    return 2.5 if _unrolled_on_cpu(config, case) else FLOAT32


def _widened(config: Config, case: Case) -> bool:
    return case.platform == "cpu" and config.model.compute_dtype == "bfloat16"


def _unrolled_on_cpu(config: Config, case: Case) -> bool:
    """Where XLA's schedule goes depth first through all layers: the first layer's gradients, which
    lie deepest, come before those of most other weights; in a sum over microbatches, as they can.
    """
    return case.platform == "cpu" and config.model.scan_layers != "scan"


def _trunks(case: Case) -> list[ModelConfig]:
    return [model for model in (case.model, case.critic) if model is not None]


def _rollout(config: Config, case: Case, state: TrainState, frozen: PyTree) -> dict[str, float]:
    """The sampler's copy of the weights; with it the prompts' pass, or the caches with one step's
    logits and what is made beside them (`rollout.sample`)."""
    slots = (config.rollout.slots or config.rollout.batch_size) / case.devices
    refilled = slots < config.rollout.batch_size / case.devices
    filled = -(-slots // REFILL) if refilled else slots
    columns = case.width + config.rollout.max_new_tokens
    kv = kv_bytes(config, case.model) * (2 if _widened(config, case) else 1)
    layers = held(config, case, case.model)._replace(
        tokens=filled * case.width, width=case.width, stream=False, cells=1
    )
    prompts = {"kv": filled * case.width * kv, "activations": forward_bytes(layers)}
    caches, beside = slots * columns * kv, 0.0
    if config.rollout.compactions > 0 and slots > 1:
        # On the CPU the smaller caches take the larger ones' place array by array.
        beside = 0.5 * caches / (2 * case.model.num_layers if case.platform == "cpu" else 1)
    steps = {
        "kv": caches + beside,
        "activations": max(0.0, sum(prompts.values()) - beside) if refilled else 0.0,
        "logits": 3 * slots * case.model.vocab_size * FLOAT32,
    }
    larger = max(prompts, steps, key=lambda parts: sum(parts.values()))
    return {"params": _sampler_bytes(config, case, state, frozen), **larger}


def _sampler_bytes(config: Config, case: Case, state: TrainState, frozen: PyTree) -> float:
    """The arrays of `rollout_copy` that are not the trained ones themselves: cast, merged,
    quantised, or a layer's own where the trained ones are stacked."""
    decoder = Decoder(case.model, config.model.compute_dtype)
    trunk = attach(frozen["base"], state.params["policy"])
    copy = jax.eval_shape(
        functools.partial(rollout_copy, decoder, weights=config.rollout.weights), trunk
    )
    options, weights = config.model, config.rollout.weights
    merged = options.lora.rank is not None and weights == "compute"
    changed_all = merged or weights == "int8" or options.compute_dtype != "float32"
    own = options.scan_layers == "scan" or changed_all
    changed = lambda new, old: 0.0 if new.dtype == old.dtype else tree_bytes(new)
    total = 0.0
    for name, part in copy.items():
        if name == "layers" and own:
            total += tree_bytes(part)
        else:
            total += sum(jax.tree.leaves(jax.tree.map(changed, part, trunk[name])))
    return total + (2 * tree_bytes(copy) if _widened(config, case) else 0.0)


def _cast_bytes(config: Config, case: Case) -> float:
    """Weights in the compute dtype in the training forward: tables whole, and layers, but that of
    scanned ones only a TPU holds all. The CPU's float32 copies of bfloat16 come on top."""
    if config.model.compute_dtype == "float32":
        return 0.0
    total = 0.0
    for model in _trunks(case):
        alone = config.model.scan_layers == "scan" and case.platform != "tpu"
        layers = layer_params(model) / (model.num_layers if alone else 1)
        wide = 3 if _widened(config, case) else 1
        total += wide * item_bytes(config) * (layers + head_params(model))
    return total


def _score(config: Config, case: Case) -> dict[str, float]:
    """Forward passes of one trunk after the other, then a chunk's logits (`score_rollout`)."""
    passes = [forward_bytes(held(config, case, model)) for model in _trunks(case)]
    chunk = chunk_bytes(config, case)
    return {
        "params": 2 * _cast_bytes(config, case),
        "activations": max(max(passes) - chunk, 0.0),
        "logits": chunk,
    }


def _head(config: Config, case: Case, state: TrainState) -> dict[str, float]:
    """The head's gradient, chunk by chunk, with all that is kept of the layers (`chunks`)."""
    layers = [held(config, case, model) for model in _trunks(case)]
    table = case.model.vocab_size * case.model.embed_dim * FLOAT32
    own = 0.0 if config.model.lora.rank is not None else table
    return {
        "params": _cast_bytes(config, case),
        "activations": _at_once(case)(map(saved_bytes, layers)),
        "logits": 4 * chunk_bytes(config, case),
        "optimiser": _earlier_gradients(config, case, state) + own,
    }


def _layers(config: Config, case: Case, state: TrainState) -> dict[str, float]:
    """The layers' gradients, with the activations they are made of (`gradients`)."""
    layers = [held(config, case, model) for model in _trunks(case)]
    own = 0.0 if _unrolled_on_cpu(config, case) else _at_once(case)(_group_bytes(state))
    tokens = _part_rows(config, case) * config.rollout.max_new_tokens
    whole = tokens <= config.model.logit_chunk and config.model.lora.rank is None
    return {
        "params": _cast_bytes(config, case),
        "activations": _at_once(case)(map(backward_bytes, layers)),
        # Where one chunk holds all, the gradient of the head's table may come last.
        "logits": 2 * chunk_bytes(config, case) if whole else 0.0,
        "optimiser": _earlier_gradients(config, case, state) + own,
    }


def _at_once(case: Case) -> Callable[[Iterable[float]], float]:
    """Of the trunks of policy and critic: on the CPU the passes of one come after those of the
    other. What other platforms' schedules do is not known, so there they count together."""
    return max if case.platform == "cpu" else sum


def _group_bytes(state: TrainState) -> list[float]:
    """Bytes of the gradients of either group: as many as of its parameters."""
    return [tree_bytes(group) for group in state.params.values()]


def _earlier_gradients(config: Config, case: Case, state: TrainState) -> float:
    """Gradients that are there before a trunk's own: the sums over microbatches, or those of the
    trunk that went first."""
    groups = _group_bytes(state)
    return sum(groups) - (_at_once(case)(groups) if config.ppo.microbatches == 1 else 0.0)
