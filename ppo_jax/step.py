"""One PPO iteration: `train_step` is the algorithm, everything below it a part it names.

A reward that is ordinary Python cuts the same functions into three programs (`programs.py`).
"""

import functools

import jax
import jax.numpy as jnp

from ppo_jax import estimators
from ppo_jax.config import Config, HParams
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.gae import compute_gae
from ppo_jax.kl_control import control_kl
from ppo_jax.losses import importance_weights
from ppo_jax.masked import masked_whiten
from ppo_jax.optimizer import learning_rate_factor, make_optimizer
from ppo_jax.passes import evaluator, scoring_passes, sum_by_tokens
from ppo_jax.reward import (
    combine_scores,
    reference_kl,
    shape_rewards,
    shape_scores,
    update_moments,
)
from ppo_jax.rollout import sharded_sample
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.setup import Setup
from ppo_jax.sharding import constrain_rows
from ppo_jax.step_metrics import explained_variance, iteration_metrics
from ppo_jax.trunks import assemble, move_reference
from ppo_jax.types import Array, Prompts, PyTree, Rollout, Scored, TrainState
from ppo_jax.update import Optimisers, Rows, ppo_update

RawScores = dict[str, Array]  # reward part -> [B] or [B, T]


def train_step(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, prompts: Prompts
) -> tuple[TrainState, dict[str, Array], Rollout, Array]:
    """One iteration in one program. `frozen`: the weights that stay still, see `trunks`, and the
    tables of rewards and environment.

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
    tables = frozen.get("env")
    return sample_with(setup, params, prompts, k_sample, hparams.temperature, tables=tables)


def score_rollout(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, rollout: Rollout
) -> Scored:
    return scoring_passes(setup, state, frozen, hparams, rollout, step_keys(state)[1])


def sample_with(
    setup: Setup,
    params: PyTree,
    prompts: Prompts,
    key: Array,
    temperature,
    *,
    greedy: bool = False,
    tables: PyTree = None,
) -> Rollout:
    """Per device, under `shard_map`: own decode loop, own early exit. `tables`: frozen["env"]."""
    with jax.named_scope("rollout"):
        policy = rollout_copy(setup.decoder, params["policy"], setup.config.rollout.weights)
        on_trunk = setup.has_critic and "trunk" not in params["value"]
        head = params["value"]["head"] if on_trunk else None
        options, under = setup.config.rollout, setup.config.parallel.rollout
        sample = sharded_sample(
            setup.mesh,
            setup.decoder,
            options,
            greedy=greedy,
            under=under,
            environment=setup.environment,
            together=setup.together,
        )
        if setup.environment is None:
            return sample(policy, head, prompts._replace(columns={}), key, temperature)
        return sample(policy, head, prompts, key, temperature, tables)


def device_scores(setup: Setup, frozen: PyTree, rollout: Rollout, columns) -> RawScores:
    """Scores of the rewards that are part of the program."""
    raw = {}
    for name, reward in setup.device_rewards.items():
        try:
            with jax.named_scope("reward"):
                raw[name] = jnp.asarray(reward(rollout, columns, frozen["reward"][name]))
        except ConfigError:
            raise
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
    scores = combine_scores(raw, setup.weights, rollout, on_error=config.reward.on_error)
    mask_BT = scores.counted(rollout.mask_BT)
    moments = update_moments(state.moments, scores.sequence_B, scores.valid_B)
    score_B = shape_scores(config.reward, hparams, scores, moments, rollout)
    kl_BT = reference_kl(config.reward, scored)
    if config.reward.kl_controller == "fixed":
        state = state._replace(kl_coef=jnp.asarray(hparams.kl_coef, jnp.float32))
    rewards_BT = shape_rewards(
        config.reward, score_B, scores.token_BT, kl_BT, state.kl_coef, rollout, mask_BT
    )
    rows = training_rows(setup, hparams, rewards_BT, scored, rollout, mask_BT)
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
            freeze_policy=state.step < config.warmups["ppo.critic_warmup"],
            constrain=lambda split: constrain_rows(setup.mesh, split, axis=1),
            sum_parts=sum_by_tokens(setup, rollout),
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
    return state, metrics, rollout, scores.total_B


def training_rows(
    setup: Setup, hparams: HParams, rewards_BT, scored: Scored, rollout: Rollout, mask_BT: Array
) -> Rows:
    """What the update learns from: whitened advantages, returns, and the tokens that count, of
    those that `mask_BT` leaves."""
    config = setup.config
    advantages_BT, returns_BT = estimate_advantages(
        setup, hparams, rewards_BT, scored, rollout, mask_BT
    )
    if config.reward.drop_truncated:
        mask_BT = mask_BT * rollout.ended_B[:, None]
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


def estimate_advantages(
    setup: Setup, hparams: HParams, rewards_BT, scored: Scored, rollout: Rollout, mask_BT: Array
):
    """(advantages_BT, returns_BT) by the configured estimator; a row without tokens in `mask_BT`
    is no sample to it. With `critic_lam` the critic's returns have a lambda of their own (VC-PPO,
    https://arxiv.org/abs/2503.01491): the policy's decays a reward at the end of a long response
    on its way to the critic's first values too."""
    config = setup.config
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
    gae = functools.partial(
        compute_gae,
        rewards_BT,
        scored.values_BT,
        mask_BT,
        gamma=hparams.gamma,
        bootstrap_B=bootstrap_B,
    )
    advantages_BT, returns_BT = gae(lam=hparams.lam)
    if hparams.critic_lam is not None:
        _, returns_BT = gae(lam=hparams.critic_lam)
    return advantages_BT, returns_BT


def optimisers(config: Config, hparams: HParams, step: Array) -> Optimisers:
    """Both groups' Adam and this iteration's learning rates."""
    transform = make_optimizer(config.optim)
    factor = learning_rate_factor(config, step)
    critic_rate = hparams.critic_learning_rate
    if critic_rate is None:
        critic_rate = hparams.learning_rate
    return Optimisers(
        (transform, hparams.learning_rate * factor), (transform, critic_rate * factor)
    )
