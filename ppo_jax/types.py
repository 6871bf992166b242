"""Arrays that travel through the step.

Shape letters, used as suffixes of array names everywhere: B sequences, P prompt, T response,
S = P + T or the keys seen, Q queries, V vocabulary, D embedding, F features a matrix makes,
H heads, G key-value heads, K head dimension or kept ids, L layers, N any number of things.

Of token streams (`stream`): Z streams, one a device or one a row; N columns, R rows (B = Z x R) and
M response tokens of each, these in line for the head; C cells of padded rows, R x T or R x width.
Of decoding (`slots`, `kv_cache`): W slots; R rows that a refill takes; N the slots or rows dealt
with. Of text columns: C texts of a row, M bytes of each. And within one file: `attention_band` has
C blocks of queries, and like `attention` R query heads to a key-value head; `parts` has C candidate
numbers of parts, P parts, Z devices.

Prefixes: none = current policy, `old_` = the policy that sampled, `ref_` = the reference.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


class Texts(NamedTuple):
    """A text column of the data, for the device-side rewards that name it: the C texts of a row,
    any of which may be meant, padded with 0. Where a row has fewer, the last have length 0."""

    ids_BCN: Array  # int32, by the policy's tokenizer, without special tokens
    lengths_BC: Array  # int32, tokens
    bytes_BCM: Array  # uint8, UTF-8 of the text itself
    sizes_BC: Array  # int32, bytes


class Prompts(NamedTuple):
    """One batch of prompts, left-padded. Row order is prompt-major: all samples of a prompt stand
    side by side."""

    ids_BP: Array  # int32
    mask_BP: Array  # bool, False on the left padding
    prompt_index_B: Array  # int32, row of the data set
    sample_index_B: Array  # int32, which sample of that prompt; (prompt, sample) is the sequence id
    columns: dict[str, Any]  # for device-side rewards: numeric columns [B], and `Texts` they name


class Rollout(NamedTuple):
    """What the sampler returns. Masks come from lengths, so the pad id may equal an EOS id.

    With an environment a response is a dialogue: observations are real tokens but not generated
    ones, and may stand anywhere in it.
    """

    prompt_ids_BP: Array  # int32
    prompt_mask_BP: Array  # bool
    response_ids_BT: Array  # int32, pad id after the last real token
    mask_BT: Array  # float32, 1 on generated tokens, stop tokens included
    lengths_B: Array  # int32, real tokens of the response, at least 1
    ended_B: Array  # bool, a stop token, or the episode's end, came before the length limit
    logprobs_BT: Array  # float32, of the distribution sampled from; 0 where masked
    values_BT: Array | None  # float32, shared-trunk critic only; 0 where masked
    kept_ids_BTK: Array | None  # int32, ids left by top-k/top-p, -1 fills; None: whole vocabulary
    slot_steps_B: Array  # float32, the device's decode-loop slots x steps, an equal share a row
    # None without an environment:
    env_rewards_BT: Array | None = None  # float32, at the last token of the action that earned it
    measures: dict[str, Array] | None = None  # float32 [B] by name, of the environment at the end

    @property
    def generated_B(self) -> Array:
        """int32, generated tokens of each response."""
        if self.env_rewards_BT is None:
            return self.lengths_B
        return self.mask_BT.sum(axis=1).astype(jnp.int32)

    @property
    def last_BT(self) -> Array:
        """bool, the last generated token of each response; none where none was generated."""
        columns_1T = jnp.arange(self.mask_BT.shape[1])[None]
        if self.env_rewards_BT is None:
            return columns_1T == self.lengths_B[:, None] - 1
        last_B = jnp.max(jnp.where(self.mask_BT > 0, columns_1T, -1), axis=1)
        return columns_1T == last_B[:, None]


class Scored(NamedTuple):
    """What the scoring passes (the training forward, no gradient) say about a rollout."""

    old_logprobs_BT: Array  # recomputed, or the sampler's by config
    values_BT: Array  # V of the state before each token
    final_value_B: Array | None  # V of the state after the last real token
    ref_logprobs_BT: Array
    kl_BT: Array | None  # exact KL to the reference, with kl_estimator="full"
    ref_hidden_BTD: Array | None  # kept for an exact KL in the loss


class ScoreMoments(NamedTuple):
    """Running count, mean and sum of squared deviations of the scores (Welford)."""

    count: Array
    mean: Array
    m2: Array


class TrainState(NamedTuple):
    """All that moves during a run, arrays only: what a checkpoint holds."""

    step: Array  # int32, finished iterations
    params: PyTree  # {"policy": ..., "value": ...}, float32
    opt_state: PyTree  # {"policy": ..., "value": ...}
    key: Array  # the run's root PRNG key, never advanced: steps fold their number in
    kl_coef: Array
    kl_error: Array  # last relative error of the KL controller
    moments: ScoreMoments
    nonfinite: Array  # int32, iterations in a row with an optimiser step skipped
    tokens: Array  # float32, response tokens generated so far
    ref: PyTree | None  # moving reference (EMA or reset); None: frozen["ref"] serves
