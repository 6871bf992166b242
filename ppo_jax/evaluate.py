"""Continuations of fixed prompts, sampled and scored as in training but without an update."""

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.compiled import Built, program
from ppo_jax.decoder import Decoder
from ppo_jax.microbatch import by_microbatch
from ppo_jax.passes import read_part
from ppo_jax.scoring import forward, from_states
from ppo_jax.sharding import batch_devices, replicated
from ppo_jax.step import Setup, device_scores, sample_with
from ppo_jax.tokenizer import decode
from ppo_jax.trunks import assemble, reference_trunk
from ppo_jax.types import Array, Prompts, PyTree, Rollout


def make_evaluation(setup: Setup):
    """`evaluate(params, frozen, temperature, prompts, key) -> (rollout, raw device scores)`, all
    rows of them on every device; the first call compiles, for good."""

    def evaluated(params: PyTree, frozen: PyTree, temperature: Array, prompts: Prompts, key: Array):
        whole, tables = assemble(frozen, params), frozen.get("env")
        rollout = sample_with(setup, whole, prompts, key, temperature, tables=tables)
        return rollout, device_scores(setup, frozen, rollout, prompts.columns)

    return program(Built({}, {}), "evaluation", evaluated, replicated(setup.mesh))


def make_examination(setup: Setup, *, greedy: bool = False, reference: Decoder | None = None):
    """`examination`, compiled by the first call, for good; all rows of it on every device."""
    examine = examination(setup, greedy=greedy, reference=reference)
    return program(Built({}, {}), "examination", examine, replicated(setup.mesh))


def examination(setup: Setup, *, greedy: bool = False, reference: Decoder | None = None):
    """`examine(params, moving_ref, frozen, temperature, prompts, key) -> (rollout, raw device
    scores, log-probabilities)`: as `make_evaluation`, and read as `reading` does.

    The prompts are as many as those of an iteration.
    """
    read = reading(setup, reference=reference)

    def examined(params: PyTree, moving_ref, frozen: PyTree, temperature, prompts: Prompts, key):
        whole = assemble(frozen, params)
        tables = frozen.get("env")
        rollout = sample_with(setup, whole, prompts, key, temperature, greedy=greedy, tables=tables)
        return read(params, moving_ref, frozen, temperature, rollout, prompts.columns)

    return examined


def reading(setup: Setup, *, reference: Decoder | None = None):
    """`read(params, moving_ref, frozen, temperature, rollout, columns) -> (rollout, raw device
    scores, log-probabilities)` of responses that are there: with `response_logprobs`.

    `moving_ref` is the state's own reference, or None; `reference` its decoder, where it is not the
    policy's.
    """
    parts = setup.config.ppo.minibatches * setup.config.ppo.microbatches

    def read_all(params: PyTree, moving_ref, frozen, temperature, rollout: Rollout, columns):
        whole = assemble(frozen, params)
        raw = device_scores(setup, frozen, rollout, columns)
        ref = reference_trunk(frozen, moving_ref, rollout.mask_BT)
        read = lambda some: response_logprobs(
            setup, whole["policy"], ref, some, temperature, reference=reference
        )
        sums = by_microbatch(read, rollout, parts)
        return rollout._replace(values_BT=None, kept_ids_BTK=None), raw, sums

    return read_all


def response_logprobs(
    setup: Setup,
    policy: PyTree,
    ref: PyTree,
    rollout: Rollout,
    temperature: Array,
    *,
    reference: Decoder | None = None,
) -> dict[str, Array]:
    """Sums over the tokens of each response, nats, [B]: `logprob` and `ref_logprob` of the
    distributions that the training forward has of the two trunks, at this temperature and over the
    ids that could be sampled; `entropy` of the policy's; `ref_plain`, the reference's at
    temperature 1 over the whole vocabulary. And `tokens`, how many the policy wrote."""
    scorer, reading = setup.scorer, read_part(setup, rollout, None, None)
    ref_scorer = scorer if reference is None else scorer._replace(decoder=reference)
    own = forward(scorer, policy, reading, temperature)
    other = forward(ref_scorer, ref, reading, temperature)
    free = reading._replace(rollout=rollout._replace(kept_ids_BTK=None))
    unbound = ref_scorer._replace(min_new_tokens=0)
    plain = from_states(unbound, ref, free, other.hidden_ZND, jnp.float32(1.0))
    tokens = {
        "logprob": own.logprobs_BT,
        "ref_logprob": other.logprobs_BT,
        "entropy": own.entropy_BT,
        "ref_plain": plain.logprobs_BT,
    }
    sums = {name: jnp.where(rollout.mask_BT > 0, x, 0.0).sum(axis=1) for name, x in tokens.items()}
    return sums | {"tokens": rollout.mask_BT.sum(axis=1)}


def pad_rows(setup: Setup, prompts: Prompts) -> Prompts:
    """The prompts, the last row repeated until the devices share them evenly."""
    rows = prompts.ids_BP.shape[0]
    missing = -rows % batch_devices(setup.mesh)
    index = np.minimum(np.arange(rows + missing), rows - 1)
    return jax.tree.map(lambda x: np.asarray(x)[index], prompts)


def response_texts(tokenizer, ids_BT: np.ndarray, lengths_B: np.ndarray) -> list[str]:
    """The responses as text, without special tokens."""
    return [decode(tokenizer, ids[:n]) for ids, n in zip(ids_BT, lengths_B, strict=True)]
