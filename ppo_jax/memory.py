"""Bytes on each device through an iteration, by what they are for: a model of the compiled step.

Weights, moments and batch are counted as they are, array by array; what the program needs beside
them is modelled phase by phase, from what XLA keeps of a layer (`memory_layers`). Held against
`memory_analysis()` of compiled steps in the tests.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ppo_jax.classifier import most_parts
from ppo_jax.config import Config, ModelConfig
from ppo_jax.cost import FLOAT32, item_bytes, kv_bytes
from ppo_jax.memory_layers import Held, backward_bytes, forward_bytes, saved_bytes
from ppo_jax.memory_weights import (
    Case,
    RewardModel,
    abstract_reward_model,
    abstract_weights,
    cast_bytes,
    on_one_of,
    read_bytes,
    sampler_bytes,
    shares,
    tree_bytes,
    trunk_shapes,
    widened,
)
from ppo_jax.offload import RESTING
from ppo_jax.parts import ROWS
from ppo_jax.sampling import MAX_KEPT
from ppo_jax.slots import REFILL
from ppo_jax.types import PyTree, TrainState

CATEGORIES = ("params", "optimiser", "kv", "activations", "logits", "batch")


class Memory(NamedTuple):
    """Bytes of one device: {phase: {category: bytes}}."""

    phases: dict[str, dict[str, float]]
    host: float = 0.0  # of what rests in the memory of its host

    @property
    def peak(self) -> float:
        return max(sum(parts.values()) for parts in self.phases.values())


def memory_of(config: Config, case: Case) -> Memory:
    """Bytes of each phase of an iteration. `config` has every `auto` settled."""
    state, frozen = abstract_weights(config, case.model, case.critic)
    by, away = shares(config, case), RESTING[config.parallel.offload]
    reference = tree_bytes((state.ref, frozen["ref"]), by)
    moments = tree_bytes(state.opt_state, by)
    learned = (*case.reward_models, *case.judges)
    rewards = [abstract_reward_model(config, one) for one in learned]
    moved_ref, moved_moments = reference * ("ref" in away), moments * ("opt_state" in away)
    always = dict.fromkeys(CATEGORIES, 0.0) | {
        "params": tree_bytes((state.params, state.ref, frozen, rewards), by) - moved_ref,
        "optimiser": moments - moved_moments,
        "batch": batch_bytes(config, case),
    }
    extra = {
        "rollout": _rollout(config, case, state, frozen),
        "score": _score(config, case, moved_ref),
        **({"reward": _reward(config, case, learned)} if learned else {}),
        "head": _head(config, case, state),
        "layers": _layers(config, case, state),
        # All gradients: new parameters and moments are written over the old ones (`update`).
        "optimiser": {"optimiser": tree_bytes(state.params, by) + moved_moments},
    }
    if case.platform == "tpu":  # whose compiler brings it in before the rollout has ended
        extra["rollout"]["params"] += moved_ref
    phases = {
        phase: {name: always[name] + parts.get(name, 0.0) for name in CATEGORIES}
        for phase, parts in extra.items()
    }
    return Memory(phases, host=moved_ref + moved_moments)


def batch_bytes(config: Config, case: Case) -> float:
    """Prompts, responses and what is known of each token: about twelve numbers."""
    rows = config.rollout.batch_size / shares(config, case).rows
    T = config.rollout.max_new_tokens
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
    vocabulary = case.model.vocab_size / shares(config, case).tensor
    return min(config.model.logit_chunk, tokens) * vocabulary * FLOAT32


def _part_rows(config: Config, case: Case) -> int:
    return max(1, config.microbatch_size // shares(config, case).rows)


def held(config: Config, case: Case, model: ModelConfig) -> Held:
    """What the activations of a part of the update depend on: as many tokens as its rows hold at
    most, as padded rows or as a stream whose largest size this is."""
    width, by = update_width(config, case), shares(config, case)
    stream = config.ppo.token_sizes is not None and config.minibatch_size > by.rows
    return Held(
        on_one_of(model, by),
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
    if not widened(config, case):
        return item_bytes(config)
    return 2.5 if _unrolled_on_cpu(config, case) else FLOAT32


def _unrolled_on_cpu(config: Config, case: Case) -> bool:
    """Where XLA's schedule goes depth first through all layers: the first layer's gradients, which
    lie deepest, come before those of most other weights; in a sum over microbatches, as they can.
    """
    return case.platform == "cpu" and config.model.scan_layers != "scan"


def _rollout(config: Config, case: Case, state: TrainState, frozen: PyTree) -> dict[str, float]:
    """The sampler's copy of the weights; with it the prompts' pass, or the caches with one step's
    logits and what is made beside them (`rollout.sample`)."""
    by = shares(config, case)
    slots = (config.rollout.slots or config.rollout.batch_size) / by.rows
    refilled = slots < config.rollout.batch_size / by.rows
    filled = -(-slots // REFILL) if refilled else slots
    columns = case.width + config.rollout.max_new_tokens
    kv = kv_bytes(config, case.model) / by.tensor * (2 if widened(config, case) else 1)
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
    return {"params": sampler_bytes(config, case, state, frozen), **larger}


def _score(config: Config, case: Case, reference: float) -> dict[str, float]:
    """Forward passes of one trunk after the other, then a chunk's logits (`score_rollout`).
    `reference` are the bytes of one that comes from the host for them."""
    passes = [forward_bytes(held(config, case, model)) for model in trunk_shapes(case)]
    chunk = chunk_bytes(config, case)
    return {
        "params": 2 * cast_bytes(config, case) + reference,
        "activations": max(max(passes) - chunk, 0.0),
        "logits": chunk,
    }


def _reward(config: Config, case: Case, learned: tuple[RewardModel, ...]) -> dict[str, float]:
    """The passes of the rewards and judges that are models, one after the other: the largest."""
    passes = [
        {
            "params": read_bytes(config, case, reward),
            "activations": forward_bytes(_reading(config, case, reward)),
        }
        for reward in learned
    ]
    return max(passes, key=lambda parts: sum(parts.values()))


def _reading(config: Config, case: Case, reward: RewardModel) -> Held:
    """A part of the rows as a reward reads them, to their last token (`score_responses`)."""
    rows = config.rollout.batch_size // shares(config, case).rows
    width, parts = case.width + config.rollout.max_new_tokens, most_parts(config)
    by_tokens = config.ppo.token_sizes is not None
    each = -(-rows // parts) if by_tokens else rows // math.gcd(rows, parts)
    return held(config, case, reward.model)._replace(
        tokens=each * width,
        width=width,
        stream=by_tokens and rows > 1,
        # Some arrays of a pass that keeps none are float32 where the CPU widens.
        item=3 if widened(config, case) else item_bytes(config),
        adapters=False,
        scanned=reward.scanned,
        attention=reward.attention,
        cells=min(parts, ROWS) if by_tokens and rows > 1 else 1,
    )


def _head(config: Config, case: Case, state: TrainState) -> dict[str, float]:
    """The head's gradient, chunk by chunk, with all that is kept of the layers (`chunks`)."""
    layers = [held(config, case, model) for model in trunk_shapes(case)]
    table = case.model.vocab_size * case.model.embed_dim * FLOAT32 / shares(config, case).tensor
    own = 0.0 if config.model.lora.rank is not None else table
    return {
        "params": cast_bytes(config, case),
        "activations": _at_once(case)(map(saved_bytes, layers)),
        "logits": 4 * chunk_bytes(config, case),
        "optimiser": _earlier_gradients(config, case, state) + own,
    }


def _layers(config: Config, case: Case, state: TrainState) -> dict[str, float]:
    """The layers' gradients, with the activations they are made of (`gradients`)."""
    layers = [held(config, case, model) for model in trunk_shapes(case)]
    groups = _group_bytes(config, case, state)
    own = 0.0 if _unrolled_on_cpu(config, case) else _at_once(case)(groups)
    tokens = _part_rows(config, case) * config.rollout.max_new_tokens
    whole = tokens <= config.model.logit_chunk and config.model.lora.rank is None
    return {
        "params": cast_bytes(config, case),
        "activations": _at_once(case)(map(backward_bytes, layers)),
        # Where one chunk holds all, the gradient of the head's table may come last.
        "logits": 2 * chunk_bytes(config, case) if whole else 0.0,
        "optimiser": _earlier_gradients(config, case, state) + own,
    }


def _at_once(case: Case) -> Callable[[Iterable[float]], float]:
    """Of the trunks of policy and critic: on the CPU the passes of one come after those of the
    other. What other platforms' schedules do is not known, so there they count together."""
    return max if case.platform == "cpu" else sum


def _group_bytes(config: Config, case: Case, state: TrainState) -> list[float]:
    """Bytes of the gradients of either group: as many as of its parameters."""
    return [tree_bytes(group, shares(config, case)) for group in state.params.values()]


def _earlier_gradients(config: Config, case: Case, state: TrainState) -> float:
    """Gradients that are there before a trunk's own: the sums over microbatches, or those of the
    trunk that went first."""
    groups = _group_bytes(config, case, state)
    return sum(groups) - (_at_once(case)(groups) if config.ppo.microbatches == 1 else 0.0)
