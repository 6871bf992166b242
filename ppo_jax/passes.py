"""The forward passes of an iteration over what was sampled: the scoring passes before the update,
and what the update itself asks of the model; by padded rows, or by tokens."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.config import HParams
from ppo_jax.cost import trunk_flops
from ppo_jax.gradients import Evaluation, Rows
from ppo_jax.microbatch import by_microbatch
from ppo_jax.parts import (
    ByTokens,
    SumParts,
    by_tokens,
    map_over_tokens,
    sum_over_tokens,
)
from ppo_jax.scoring import Reading, forward, read, response_states, values_from
from ppo_jax.setup import Setup
from ppo_jax.sharding import batch_devices, constrain_rows
from ppo_jax.stream import Layout, row_layout, row_tokens, row_width
from ppo_jax.stream_attention import counts
from ppo_jax.trunks import assemble, reference_trunk
from ppo_jax.types import Array, PyTree, Rollout, Scored, TrainState
from ppo_jax.update import first_order, split_rows


def scoring_passes(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, rollout: Rollout, key: Array
) -> Scored:
    """The scoring passes: the training forward of the policy that sampled, of its critic and of the
    reference, on parts like those of the update, whose key `key` is."""
    config, scorer = setup.config, setup.scorer
    params = assemble(frozen, state.params)
    ref = reference_trunk(frozen, state.ref, rollout.mask_BT)
    exact = config.reward.kl_estimator == "full"
    recompute = config.rollout.old_logprobs == "recompute"
    final = config.ppo.bootstrap_truncated

    def score(part: Rollout, present_B=None, size=None) -> Scored:
        reading = read_part(setup, part, present_B, size)
        ref_out = forward(scorer, ref, reading, hparams.temperature)
        reference = (ref, response_states(reading, ref_out.hidden_ZND)) if exact else None
        out = None
        if recompute or exact:
            policy = params["policy"]
            out = forward(scorer, policy, reading, hparams.temperature, reference=reference)
        values_BT, final_B = _old_values(setup, params["value"], reading, out)
        old_BT = out.logprobs_BT if recompute else _present(reading, part.logprobs_BT)
        return Scored(
            old_logprobs_BT=old_BT,
            values_BT=values_BT,
            final_value_B=final_B,
            ref_logprobs_BT=ref_out.logprobs_BT,
            kl_BT=out.kl_BT if exact else None,
            ref_hidden_BTD=reference[1] if exact and config.reward.kl_in == "loss" else None,
        )

    with jax.named_scope("scoring"):
        if config.ppo.token_sizes is None:
            return by_microbatch(score, rollout, config.ppo.minibatches * config.ppo.microbatches)
        # On the very parts of the update's first epoch: another size may round otherwise.
        order_B = first_order(config, key)
        recipe = parts_by_tokens(setup, rollout)

        def score_minibatch(part: Rollout) -> Scored:
            tokens_B = row_tokens(part, final=final)
            if not config.reward.drop_truncated:
                return map_over_tokens(recipe, tokens_B, part, score)
            # The update has parts of the sequences that ended alone; the others go apart.
            some = lambda these_B: map_over_tokens(
                recipe, jnp.where(these_B, tokens_B, 0), part, score
            )
            both = lax.map(some, jnp.stack([part.ended_B, ~part.ended_B]))
            return jax.tree.map(lambda x: x.sum(axis=0), both)

        scored = lax.map(score_minibatch, split_rows(rollout, order_B, config))
        back_B = jnp.argsort(order_B)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back_B], scored)


def _old_values(setup: Setup, value: PyTree, reading: Reading, out):
    if not setup.has_critic:
        return jnp.zeros_like(reading.rollout.logprobs_BT), None
    if out is None and reading.rollout.values_BT is not None:
        return _present(reading, reading.rollout.values_BT), None
    hidden = None if out is None else out.hidden_ZND
    return values_from(value, setup.scorer, reading, hidden)


def _present(reading: Reading, x_BT: Array) -> Array:
    """Zeros in the rows that the reading leaves out."""
    return jnp.where(reading.stream.lengths_ZR.reshape(-1, 1) > 0, x_BT, 0.0)


def parts_by_tokens(setup: Setup, rollout: Rollout) -> ByTokens:
    """How a minibatch of rows as wide as these runs in parts by tokens."""
    options, shards = setup.config.ppo, batch_devices(setup.mesh)
    width = row_width(rollout, final=options.bootstrap_truncated)
    rows = setup.config.minibatch_size // shards
    padded = any(decoder.attention != "xla" for decoder in (setup.decoder, setup.critic))
    parts, sizes = options.microbatches, options.token_sizes
    return by_tokens(shards, rows, width, parts, sizes, padded=padded)


def sum_by_tokens(setup: Setup, rollout: Rollout) -> SumParts | None:
    """How the update sums over a minibatch; None: by rows."""
    if setup.config.ppo.token_sizes is None:
        return None
    final = setup.config.ppo.bootstrap_truncated

    def tokens_of(rows: Rows) -> Array:
        learnt_B = jnp.any(rows.mask_BT > 0, axis=1)
        return jnp.where(learnt_B, row_tokens(rows.data[0], final=final), 0)

    return functools.partial(sum_over_tokens, parts_by_tokens(setup, rollout), tokens_of)


def read_part(setup: Setup, rollout: Rollout, present_B: Array | None, size: int | None) -> Reading:
    """Rows as the forward passes read them: those present in streams of `size` tokens a device, or
    all of them as padded rows."""
    final = setup.config.ppo.bootstrap_truncated  # the value after a cut sequence is wanted
    if size is None:
        return read(rollout, row_layout(rollout, final=final))
    rollout = constrain_rows(setup.mesh, rollout)
    width = row_width(rollout, final=final)
    layout = Layout(batch_devices(setup.mesh), size, width, final)
    return read(rollout, layout, present_B)


def evaluator(setup: Setup, frozen: PyTree, moving_ref: PyTree | None, hparams: HParams):
    """What the update asks of the model: log-probabilities, entropies, values of some rows."""
    scorer = setup.scorer
    ref = reference_trunk(frozen, moving_ref)

    def evaluate(trained: PyTree, rows: Rows, losses, size: int | None = None) -> Evaluation:
        params = assemble(frozen, trained)
        rollout, ref_hidden_BTD = rows.data
        present_B = jnp.any(rows.mask_BT > 0, axis=1)
        reading = read_part(setup, rollout, present_B, size)
        logprobs_BT = entropy_BT = values_BT = kl_BT = hidden_ZND = None
        if "policy" in losses or "trunk" not in params["value"]:
            reference = None if ref_hidden_BTD is None else (ref, ref_hidden_BTD)
            logprobs_BT, entropy_BT, kl_BT, hidden_ZND = forward(
                scorer, params["policy"], reading, hparams.temperature, reference=reference
            )
        if "value" in losses:
            values_BT, _ = values_from(params["value"], scorer, reading, hidden_ZND)
        counts = trunk_counts(setup, params, reading, losses)
        return Evaluation(logprobs_BT, entropy_BT, values_BT, kl_BT, counts)

    return evaluate


def trunk_counts(setup: Setup, params: PyTree, reading: Reading, losses) -> dict[str, Array]:
    """FLOPs of the forward passes over some rows of the trunks that these losses read, and those of
    them on real tokens."""
    own = "trunk" in params["value"]
    decoders = [setup.decoder] if "policy" in losses or not own else []
    if "value" in losses and own:
        decoders.append(setup.critic)
    flops = real = jnp.float32(0)
    for decoder in decoders:
        c = counts(decoder, reading.stream, reading.layout)
        flops += trunk_flops(decoder.config, c.tokens, c.pairs)
        real += trunk_flops(decoder.config, c.real_tokens, c.real_pairs)
    return {"trunk_flops": flops, "real_trunk_flops": real}
