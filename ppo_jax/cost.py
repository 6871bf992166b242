"""What an iteration must compute and move, counted on real tokens: the yardstick of its time.

Conventions. Products of matrices alone are counted, 2 FLOPs a multiply-add; attention on the keys a
token sees, of its row up to itself and within a layer's window; the head on response positions
only; a response's last token not at all, for nothing is drawn after it; a gradient as twice the
forward (recomputation not counted), once where the weights under adapters stay still; adapters' own
products not at all. Bytes are the weights once a pass, the keys and values once a decode step, and
the optimiser's arrays: what cannot be kept on the chip. Padding, activations and launches are no
work. (Roofline: https://jax-ml.github.io/scaling-book.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppo_jax.config import Config, ModelConfig
from ppo_jax.hf_tensors import matrices
from ppo_jax.lora import adapted_modules

FLOAT32 = 4  # bytes


class Work(NamedTuple):
    """FLOPs and bytes of a phase; `stages_N2`, where given, are its parts [FLOPs, bytes], each of
    which waits for the one before."""

    flops: float
    bytes: float
    stages_N2: np.ndarray | None = None


class Lengths(NamedTuple):
    """Real tokens of each sequence."""

    prompt_B: np.ndarray
    response_B: np.ndarray


def trunk_flops(model: ModelConfig, tokens, pairs):
    """Forward FLOPs of the layers on `tokens` tokens with `pairs` query-key pairs a layer, the mean
    where layers differ.

    Plain arithmetic: numbers, arrays and traced scalars alike.
    """
    attention = 4.0 * model.num_heads * model.head_dim * model.num_layers  # scores, then mixing
    return 2.0 * layer_params(model) * tokens + attention * pairs


def seen_keys(model: ModelConfig, place_N: np.ndarray) -> np.ndarray:
    """Keys that the token at each place of its row (the first is 1) attends to, itself included;
    the mean over layers."""
    return place_N - _local_share(model) * _beyond(model, place_N)


def seen_pairs(model: ModelConfig, length_B: np.ndarray) -> float:
    """Query-key pairs of whole rows of these lengths: `seen_keys` summed over their places."""
    triangle = lambda n_B: float((n_B * (n_B + 1) / 2).sum())
    return triangle(length_B) - _local_share(model) * triangle(_beyond(model, length_B))


def _beyond(model: ModelConfig, place_N: np.ndarray) -> np.ndarray:
    """How many of the tokens up to each place the window leaves out."""
    return np.maximum(place_N - (model.window or np.inf), 0)


def _local_share(model: ModelConfig) -> float:
    return sum(model.is_local) / model.num_layers


def head_flops(model: ModelConfig, tokens):
    """Forward FLOPs of the logits of `tokens` tokens."""
    return 2.0 * model.vocab_size * model.embed_dim * tokens


def layer_params(model: ModelConfig) -> int:
    """Entries of the matrices of all layers."""
    return model.num_layers * sum(rows * columns for rows, columns, _ in matrices(model).values())


def head_params(model: ModelConfig) -> int:
    return model.vocab_size * model.embed_dim


def trained_params(config: Config, model: ModelConfig, *, lm_head: bool = True) -> int:
    """Entries that the optimiser moves in one trunk: a policy's, or without an LM head that of a
    critic of its own. Vectors (norms, biases, the value head) are left out."""
    lora = config.model.lora
    if lora.rank is None:
        tables = 2 if lm_head and not model.tie_embeddings else 1
        learned = model.max_positions * model.embed_dim if model.position == "learned" else 0
        return layer_params(model) + tables * head_params(model) + learned
    sizes = [matrices(model)[name] for name in adapted_modules(model, lora.targets)]
    return model.num_layers * sum(lora.rank * (rows + columns) for rows, columns, _ in sizes)


def kv_bytes(config: Config, model: ModelConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    entries = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return entries * item_bytes(config)


def item_bytes(config: Config) -> int:
    """Bytes of a number in the compute dtype; `auto` is read as off the CPU."""
    return FLOAT32 if config.model.compute_dtype == "float32" else 2


def phase_work(
    config: Config, model: ModelConfig, critic: ModelConfig | None, lengths: Lengths
) -> dict[str, Work]:
    """Useful work of one iteration, all devices: {"rollout", "score", "update"}.

    `critic` is the shape of a separate critic's trunk, None for a head on the policy's. Weights
    count once, as if one device read them: several that each hold a copy read them as often.
    """
    return {
        "rollout": _rollout(config, model, lengths),
        "score": _score(config, model, critic, lengths),
        "update": _update(config, model, critic, lengths),
    }


def reading_work(config: Config, models: Sequence[ModelConfig], lengths: Lengths) -> Work:
    """Useful work of rewards that are models: a forward pass each, over whole sequences."""
    prompt_B, response_B = _longs(lengths)
    whole_B = prompt_B + response_B
    tokens = float(whole_B.sum())
    item, stages = item_bytes(config), []
    for model in models:
        flops = trunk_flops(model, tokens, seen_pairs(model, whole_B))
        stages.append([flops, item * layer_params(model)])
    return _staged(np.asarray(stages, np.float64))


def floor_seconds(work: Work, flops_per_s: float, bytes_per_s: float) -> float:
    """No program on a device of these rates is faster: the slower of the two, stage by stage."""
    whole = np.asarray([[work.flops, work.bytes]], np.float64)
    stages_N2 = whole if work.stages_N2 is None else work.stages_N2
    return float(np.maximum(stages_N2[:, 0] / flops_per_s, stages_N2[:, 1] / bytes_per_s).sum())


def decode_steps(model: ModelConfig, lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) of each decode step with all rows at once: the rows that still need a token,
    and the keys these attend to. A response's first token comes from the prompt's pass."""
    prompt_B, response_B = _longs(lengths)
    # Step t feeds token t of the responses longer than t.
    places = [prompt_B[response_B > t] + t for t in range(1, int(response_B.max(initial=1)))]
    rows_T = np.asarray([len(place_N) for place_N in places], np.float64)
    keys_T = np.asarray([seen_keys(model, place_N).sum() for place_N in places], np.float64)
    return rows_T, keys_T


def _rollout(config: Config, model: ModelConfig, lengths: Lengths) -> Work:
    """Prefill, then a step a token: weights once a step, keys and values of the rows in it."""
    prompt_B, _ = _longs(lengths)
    item, kv = item_bytes(config), kv_bytes(config, model)
    layers = layer_params(model) * (1 if config.rollout.weights == "int8" else item)
    weights = layers + head_params(model) * item
    tokens, pairs = prompt_B.sum(), seen_pairs(model, prompt_B)
    prefill = trunk_flops(model, tokens, pairs) + head_flops(model, len(prompt_B))
    rows_T, keys_T = decode_steps(model, lengths)
    flops_T = trunk_flops(model, rows_T, keys_T) + head_flops(model, rows_T)
    first = [[prefill, weights + kv * tokens]]
    stages_N2 = np.concatenate([first, np.stack([flops_T, weights + kv * keys_T], axis=1)])
    return _staged(stages_N2)


def _score(config: Config, model: ModelConfig, critic, lengths: Lengths) -> Work:
    """A forward pass of the reference, one of the policy where its log-probabilities are computed
    anew (or its exact KL is asked for), one of a critic with a trunk of its own."""
    tokens, pairs, responses = _whole(model, lengths)
    item = item_bytes(config)
    exact = config.reward.kl_estimator == "full"
    passes = 1 + (config.rollout.old_logprobs == "recompute" or exact)
    scored = trunk_flops(model, tokens, pairs) + head_flops(model, responses)
    stages = [[scored, item * (layer_params(model) + head_params(model))]] * passes
    if critic is not None and config.value_epochs > 0:
        tokens, pairs, _ = _whole(critic, lengths)
        stages.append([trunk_flops(critic, tokens, pairs), item * layer_params(critic)])
    return _staged(np.asarray(stages, np.float64))


def _update(config: Config, model: ModelConfig, critic, lengths: Lengths) -> Work:
    """Forward and gradient of every epoch; weights read for both, and the optimiser's arrays
    (parameters, gradients, two moments: read and written, float32), once an optimiser step."""
    policy, value = config.ppo.epochs, config.value_epochs
    trunk_epochs = policy if critic is not None else max(policy, value)
    stages = _gradient_stages(config, model, lengths, trunk_epochs, policy)
    if critic is not None:
        stages += _gradient_stages(config, critic, lengths, value, 0)
    return _staged(np.asarray(stages, np.float64).reshape(-1, 2))


def _gradient_stages(config, model, lengths: Lengths, epochs: int, with_head: int) -> list:
    """[FLOPs, bytes] of each epoch of one trunk, the LM head's in the first `with_head` of them; 0
    for a critic, which has none."""
    tokens, pairs, responses = _whole(model, lengths)
    still = config.model.lora.rank is not None
    forward = trunk_flops(model, tokens, 0)
    head = head_flops(model, responses)
    attention = trunk_flops(model, 0, pairs)
    exact_loss = config.reward.kl_estimator == "full" and config.reward.kl_in == "loss"
    times = 2 if still else 3
    optimiser = 4 * 2 * FLOAT32 * trained_params(config, model, lm_head=with_head > 0)
    stages = []
    for epoch in range(epochs):
        flops, weights = times * forward + 3 * attention, layer_params(model)
        if epoch < with_head:
            flops += times * head + (head if exact_loss else 0)  # the reference's own logits
            weights += head_params(model)
        moved = 2 * item_bytes(config) * weights + optimiser
        stages.append([flops, config.ppo.minibatches * moved])
    return stages


def _longs(lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(lengths.prompt_B, np.int64), np.asarray(lengths.response_B, np.int64)


def _whole(model: ModelConfig, lengths: Lengths) -> tuple[float, float, float]:
    """(tokens, query-key pairs, response tokens) of a training forward of all sequences."""
    prompt_B, response_B = _longs(lengths)
    read_B = prompt_B + response_B - 1
    return float(read_B.sum()), seen_pairs(model, read_B), float(response_B.sum())


def _staged(stages_N2: np.ndarray) -> Work:
    flops, moved = (float(x) for x in stages_N2.sum(axis=0))
    return Work(flops, moved, stages_N2)
