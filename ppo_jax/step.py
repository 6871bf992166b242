"""One PPO iteration: `train_step` is the algorithm, everything below it a part it names.

A reward that is ordinary Python cuts the same functions into three programs (`programs.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax import estimators
from ppo_jax.config import Config, HParams
from ppo_jax.decoder import Decoder
from ppo_jax.errors import RewardError
from ppo_jax.gae import compute_gae
from ppo_jax.kl_control import control_kl
from ppo_jax.losses import importance_weights
from ppo_jax.masked import masked_whiten
from ppo_jax.microbatch import by_microbatch
from ppo_jax.optimizer import learning_rate_factor, make_optimizer
from ppo_jax.reward import (
    combine_scores,
    reference_kl,
    shape_rewards,
    shape_scores,
    update_moments,
)
from ppo_jax.rollout import sharded_sample, stop_ids
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.scoring import Scorer, forward, values_from
from ppo_jax.sharding import batch_devices, constrain_rows
from ppo_jax.step_metrics import explained_variance, iteration_metrics
from ppo_jax.trunks import assemble, move_reference, reference_trunk
from ppo_jax.types import Array, Prompts, PyTree, Rollout, Scored, TrainState
from ppo_jax.update import Evaluation, Optimisers, Rows, ppo_update

RawScores = dict[str, Array]  # reward part -> [B] or [B, T]


class Setup(NamedTuple):
    """What the step is built from; static. Weights and tables are arguments of the step."""

    config: Config
    mesh: Mesh
    decoder: Decoder
    critic: Decoder
    device_rewards: dict[str, Callable]  # name -> fn(rollout, columns, tables)
    weights: dict[str, float]  # of every reward part

    @property
    def scorer(self) -> Scorer:
        config = self.config
        rows = max(1, config.microbatch_size // batch_devices(self.mesh))
        return Scorer(
            self.decoder,
            self.critic,
            stop_ids(self.decoder, config.rollout),
            config.rollout.min_new_tokens,
            chunk=max(1, config.model.logit_chunk // rows),
        )

    @property
    def has_critic(self) -> bool:
        return self.config.ppo.advantage == "gae"


def train_step(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, prompts: Prompts
) -> tuple[TrainState, dict[str, Array], Rollout, Array]:
    """One iteration in one program. `frozen`: the weights that stay still, see `trunks`.

    Returns (state, metrics, rollout, scores_B), the last two for the log.
    """
    rollout = sample_rollout(setup, state, frozen, hparams, prompts)
    scored = score_rollout(setup, state, frozen, hparams, rollout)
    raw = device_scores(setup, frozen, rollout, prompts.columns)
    return learn(setup, state, frozen, hparams, rollout, scored, raw)


def step_keys(state: TrainState) -> tuple[Array, Array]:
    """(k_sample, k_update) of this iteration."""
    k_sample, k_update = jax.random.split(jax.random.fold_in(state.key, state.step))
    return k_sample, k_update


def sample_rollout(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, prompts: Prompts
) -> Rollout:
    k_sample, _ = step_keys(state)
    params = assemble(frozen, state.params)
    return sample_with(setup, params, prompts, k_sample, hparams.temperature)


def sample_with(setup: Setup, params: PyTree, prompts: Prompts, key: Array, temperature) -> Rollout:
    """Per device, under `shard_map`: own decode loop, own early exit."""
    with jax.named_scope("rollout"):
        policy = rollout_copy(setup.decoder, params["policy"], setup.config.rollout.weights)
        on_trunk = setup.has_critic and "trunk" not in params["value"]
        head = params["value"]["head"] if on_trunk else None
        sample = sharded_sample(setup.mesh, setup.decoder, setup.config.rollout)
        return sample(policy, head, prompts._replace(columns={}), key, temperature)


def score_rollout(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, rollout: Rollout
) -> Scored:
    """The scoring passes: the training forward of the policy that sampled, of its critic and of the
    reference, on the same microbatches as the update."""
    config, scorer = setup.config, setup.scorer
    params, ref = assemble(frozen, state.params), reference_trunk(frozen, state.ref)
    exact = config.reward.kl_estimator == "full"
    recompute = config.rollout.old_logprobs == "recompute"

    def score(part: Rollout) -> Scored:
        ref_out = forward(scorer, ref, part, hparams.temperature)
        reference = (ref, ref_out.hidden_BUD[:, :-1]) if exact else None
        out = None
        if recompute or exact:
            out = forward(scorer, params["policy"], part, hparams.temperature, reference=reference)
        values_BT, final_B = _old_values(setup, params["value"], part, out)
        return Scored(
            old_logprobs_BT=out.logprobs_BT if recompute else part.logprobs_BT,
            values_BT=values_BT,
            final_value_B=final_B,
            ref_logprobs_BT=ref_out.logprobs_BT,
            kl_BT=out.kl_BT if exact else None,
            ref_hidden_BTD=reference[1] if exact and config.reward.kl_in == "loss" else None,
        )

    with jax.named_scope("scoring"):
        return by_microbatch(score, rollout, config.ppo.minibatches * config.ppo.microbatches)


def _old_values(setup: Setup, value: PyTree, part: Rollout, out):
    if not setup.has_critic:
        return jnp.zeros_like(part.logprobs_BT), None
    if out is None and part.values_BT is not None:
        return part.values_BT, None
    hidden = None if out is None else out.hidden_BUD
    values_BU = values_from(value, setup.scorer, part, hidden)
    final_B = jnp.take_along_axis(values_BU, part.lengths_B[:, None], axis=1)[:, 0]
    return values_BU[:, :-1], final_B


def device_scores(setup: Setup, frozen: PyTree, rollout: Rollout, columns) -> RawScores:
    """Scores of the rewards that are part of the program."""
    raw = {}
    for name, reward in setup.device_rewards.items():
        try:
            with jax.named_scope("reward"):
                raw[name] = jnp.asarray(reward(rollout, columns, frozen["reward"][name]))
        except Exception as error:  # while it is traced: a fault of the user's function
            present = ", ".join(sorted(columns)) or "none"
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise RewardError(
                f"reward {name}: {what[:300]} (numeric columns: {present})"
            ) from error
    return raw


def learn(
    setup: Setup,
    state: TrainState,
    frozen: PyTree,
    hparams: HParams,
    rollout: Rollout,
    scored: Scored,
    raw: RawScores,
) -> tuple[TrainState, dict[str, Array], Rollout, Array]:
    """From scores to the next state: rewards, advantages, update, KL controller, reference."""
    config = setup.config
    scores = combine_scores(raw, setup.weights, rollout)
    moments = update_moments(state.moments, scores.sequence_B)
    score_B = shape_scores(config.reward, hparams, scores, moments, rollout)
    kl_BT = reference_kl(config.reward, scored)
    if config.reward.kl_controller == "fixed":
        state = state._replace(kl_coef=jnp.asarray(hparams.kl_coef, jnp.float32))
    rewards_BT = shape_rewards(
        config.reward, score_B, scores.token_BT, kl_BT, state.kl_coef, rollout
    )
    rows = training_rows(setup, hparams, rewards_BT, scored, rollout)
    with jax.named_scope("update"):
        params, opt_state, stats = ppo_update(
            config,
            hparams,
            optimisers(config, hparams, state.step),
            evaluator(setup, frozen, state.ref, hparams),
            state.params,
            state.opt_state,
            rows,
            step_keys(state)[1],
            kl_coef=state.kl_coef,
            freeze_policy=state.step < config.ppo.critic_warmup,
            constrain=lambda split: constrain_rows(setup.mesh, split, axis=1),
        )
    nonfinite = jnp.where(stats["skipped"] > 0, state.nonfinite + 1, 0)
    metrics = iteration_metrics(
        config, hparams, state, rollout, scored, scores, score_B, rewards_BT, nonfinite, stats
    )
    if setup.has_critic:
        metrics["value/explained_variance"] = explained_variance(
            scored, rows.returns_BT, rows.mask_BT
        )
    state = state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        moments=moments,
        nonfinite=nonfinite,
        tokens=state.tokens + rollout.mask_BT.sum(),
        ref=move_reference(config, hparams, state, params["policy"]),
    )
    state = control_kl(config, hparams, state, metrics["objective/kl"])
    return state, metrics, rollout, scores.sequence_B + scores.token_BT.sum(axis=1)


def training_rows(setup: Setup, hparams: HParams, rewards_BT, scored: Scored, rollout) -> Rows:
    """What the update learns from: whitened advantages, returns, and the tokens that count."""
    config, mask_BT = setup.config, rollout.mask_BT
    if config.reward.drop_truncated:
        mask_BT = mask_BT * rollout.ended_B[:, None]
    advantages_BT, returns_BT = estimate_advantages(setup, hparams, rewards_BT, scored, rollout)
    if config.ppo.whiten_advantages:
        advantages_BT = masked_whiten(advantages_BT, mask_BT)
    if hparams.tis_cap is not None:
        # A positive weight on the clipped loss of a token is the same weight on its advantage.
        advantages_BT *= importance_weights(
            scored.old_logprobs_BT, rollout.logprobs_BT, mask_BT, cap=hparams.tis_cap
        )
    return Rows(
        data=(rollout, scored.ref_hidden_BTD),
        mask_BT=mask_BT,
        old_logprobs_BT=scored.old_logprobs_BT,
        old_values_BT=scored.values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        ref_logprobs_BT=scored.ref_logprobs_BT,
    )


def estimate_advantages(setup: Setup, hparams: HParams, rewards_BT, scored: Scored, rollout):
    """(advantages_BT, returns_BT) by the configured estimator."""
    config, mask_BT = setup.config, rollout.mask_BT
    samples = config.rollout.samples_per_prompt
    if config.ppo.advantage == "rloo":
        return estimators.rloo(rewards_BT, mask_BT, samples_per_prompt=samples)
    if config.ppo.advantage == "group_mean":
        return estimators.group_mean(rewards_BT, mask_BT, samples_per_prompt=samples)
    if config.ppo.advantage == "reinforce":
        return estimators.reinforce(rewards_BT, mask_BT, gamma=hparams.gamma)
    bootstrap_B = None
    if config.ppo.bootstrap_truncated:
        bootstrap_B = jnp.where(rollout.ended_B, 0.0, scored.final_value_B)
    return compute_gae(
        rewards_BT,
        scored.values_BT,
        mask_BT,
        gamma=hparams.gamma,
        lam=hparams.lam,
        bootstrap_B=bootstrap_B,
    )


def optimisers(config: Config, hparams: HParams, step: Array) -> Optimisers:
    """Both groups' Adam and this iteration's learning rates."""
    transform = make_optimizer(config.optim)
    factor = learning_rate_factor(config.optim, step, config.run.iterations)
    critic_rate = hparams.critic_learning_rate
    if critic_rate is None:
        critic_rate = hparams.learning_rate
    return Optimisers(
        (transform, hparams.learning_rate * factor), (transform, critic_rate * factor)
    )


def evaluator(setup: Setup, frozen: PyTree, moving_ref: PyTree | None, hparams: HParams):
    """What the update asks of the model: log-probabilities, entropies, values of some rows."""
    scorer = setup.scorer
    ref = reference_trunk(frozen, moving_ref)

    def evaluate(trained: PyTree, rows: Rows) -> Evaluation:
        params = assemble(frozen, trained)
        rollout, ref_hidden_BTD = rows.data
        reference = None if ref_hidden_BTD is None else (ref, ref_hidden_BTD)
        out = forward(scorer, params["policy"], rollout, hparams.temperature, reference=reference)
        values_BT = jnp.zeros_like(out.logprobs_BT)
        if setup.has_critic:
            values_BT = values_from(params["value"], scorer, rollout, out.hidden_BUD)[:, :-1]
        return Evaluation(out.logprobs_BT, out.entropy_BT, values_BT, out.kl_BT)

    return evaluate
