"""PPO on a control task: the project's own `compute_gae` and `ppo_update`, an MLP for a policy.

All of a training is one pure function of the hyper-parameters and a key; `jax.vmap` trains several
seeds, or settings, in one program. A step of an environment is to the update what a token is, in a
row of its own, so that minibatches are of steps and not of whole episodes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from _networks import draw, init_params, likeliest, logprob_and_entropy, value_of
from _task import Array, Task, advance, begin
from jax import lax

from ppo_jax.config import Config, HParams
from ppo_jax.gae import compute_gae
from ppo_jax.masked import masked_whiten
from ppo_jax.optimizer import learning_rate_factor, make_optimizer
from ppo_jax.reward import kl_estimate
from ppo_jax.update import Evaluation, Optimisers, Rows, ppo_update

# Of the update's statistics, those that are kept for every iteration.
KEPT = "approxkl clipfrac entropy policy_loss value_loss ratio_max_dev_first skipped".split()


class Shape(NamedTuple):
    """Static sizes of a training beside those of its Config."""

    environments: int
    horizon: int  # steps of each environment an iteration
    hidden: tuple[int, ...]
    reward_scale: float = 1.0  # of what is learnt from; returns are reported unscaled


class Learner(NamedTuple):
    params: dict
    opt_state: dict
    episodes: tuple  # Episode of every environment


class Steps(NamedTuple):
    """What the environments did in one iteration."""

    seen_BTF: Array
    action_BT: Array  # [B, T], or [B, T, A] where continuous
    logprobs_BT: Array
    outcome_BT: tuple  # Outcome of every step


class Trained(NamedTuple):
    params: dict
    history: dict[str, Array]  # [iterations] by name: KEPT, `episodes` that ended, their `returns`


def train(
    task: Task,
    config: Config,
    shape: Shape,
    hparams: HParams,
    key: Array,
    start: dict | None = None,
    reference: dict | None = None,
) -> Trained:
    """All `config.run.iterations`. `start`: the first parameters, None for random ones. With the
    parameters of a `reference` policy the reward loses `hparams.kl_coef` times the KL to it."""
    key_init, key_begin, key_run = jax.random.split(key, 3)
    params = start
    if params is None:
        params = init_params(task, shape.hidden, config.model.critic, key_init)
    transform = make_optimizer(config.optim)
    opt_state = {group: transform.init(params[group]) for group in params}
    keys_B = jax.random.split(key_begin, shape.environments)
    learner = Learner(params, opt_state, jax.vmap(lambda key: begin(task, key))(keys_B))

    def iteration(learner: Learner, step: Array):
        key_act, key_update = jax.random.split(jax.random.fold_in(key_run, step))
        episodes, steps = act(task, shape, learner, key_act)
        rows = training_rows(config, shape, hparams, learner.params, reference, steps)
        factor = learning_rate_factor(config, step)
        critic_rate = hparams.critic_learning_rate
        rates = hparams.learning_rate, critic_rate
        rates = [rates[0] if rate is None else rate for rate in rates]
        params, opt_state, stats = ppo_update(
            config,
            hparams,
            Optimisers(*((transform, rate * factor) for rate in rates)),
            evaluate,
            learner.params,
            learner.opt_state,
            rows,
            key_update,
            kl_coef=jnp.float32(0),  # the KL is in the reward
            freeze_policy=jnp.zeros((), bool),
        )
        over_BT = steps.outcome_BT.terminated | steps.outcome_BT.truncated
        history = {name: stats[name] for name in KEPT if name in stats} | {
            "episodes": over_BT.sum(),
            "returns": jnp.where(over_BT, steps.outcome_BT.total, 0.0).sum(),
        }
        return Learner(params, opt_state, episodes), history

    learner, history = lax.scan(iteration, learner, jnp.arange(config.run.iterations))
    return Trained(learner.params, history)


def act(task: Task, shape: Shape, learner: Learner, key: Array):
    """(Episode of every environment, Steps) after `shape.horizon` steps of each."""

    def one(episode, key):
        key_draw, key_begin = jax.random.split(key)
        seen_F = task.observe(episode.state)
        action, logprob = draw(task, learner.params["policy"], seen_F, key_draw)
        episode, outcome = advance(task, episode, action, key_begin)
        return episode, Steps(seen_F, action, logprob, outcome)

    def step(episodes, key):
        return jax.vmap(one)(episodes, jax.random.split(key, shape.environments))

    keys_T = jax.random.split(key, shape.horizon)
    episodes, steps_TB = lax.scan(step, learner.episodes, keys_T)
    return episodes, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps_TB)


def training_rows(
    config: Config, shape: Shape, hparams: HParams, params, reference, steps: Steps
) -> Rows:
    """Advantages and returns of the steps, each step a row.

    An episode may end inside a row of `compute_gae`: no value comes through gamma (1 - over). Where
    it was only cut off, the reward gains what the last state was worth.
    """
    values = jax.vmap(jax.vmap(lambda seen_F: value_of(params, seen_F)))
    values_BT, outcome = values(steps.seen_BTF), steps.outcome_BT
    next_values_BT = values(outcome.next_seen_F)
    rewards_BT = shape.reward_scale * outcome.reward
    if reference is not None:
        ref_BT, _ = jax.vmap(jax.vmap(logprob_and_entropy, (None, 0, 0)), (None, 0, 0))(
            reference["policy"], steps.seen_BTF, steps.action_BT
        )
        rewards_BT -= hparams.kl_coef * kl_estimate(steps.logprobs_BT, ref_BT, "k1")
    rewards_BT += hparams.gamma * jnp.where(outcome.truncated, next_values_BT, 0.0)
    mask_BT = jnp.ones_like(rewards_BT)
    advantages_BT, returns_BT = compute_gae(
        rewards_BT,
        values_BT,
        mask_BT,
        gamma=hparams.gamma * (1.0 - (outcome.terminated | outcome.truncated)),
        lam=hparams.lam,
        bootstrap_B=next_values_BT[:, -1],
    )
    if config.ppo.whiten_advantages:
        advantages_BT = masked_whiten(advantages_BT, mask_BT)
    rows = Rows(
        data=(steps.seen_BTF, steps.action_BT),
        mask_BT=mask_BT,
        old_logprobs_BT=steps.logprobs_BT,
        old_values_BT=values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
    return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), rows)


def evaluate(params, rows: Rows, losses: tuple[str, ...]) -> Evaluation:
    """The present policy and critic on the rows, as `ppo_update` asks for them."""
    seen_BTF, action_BT = rows.data
    logprobs_BT = entropy_BT = values_BT = None
    if "policy" in losses:
        each = lambda seen_F, action: logprob_and_entropy(params["policy"], seen_F, action)
        logprobs_BT, entropy_BT = jax.vmap(jax.vmap(each))(seen_BTF, action_BT)
    if "value" in losses:
        values_BT = jax.vmap(jax.vmap(lambda seen_F: value_of(params, seen_F)))(seen_BTF)
    return Evaluation(logprobs_BT, entropy_BT, values_BT)


def episode_returns(task: Task, params, key: Array, *, episodes: int, greedy: bool) -> Array:
    """Sum of the rewards of so many new episodes, [B]; greedy: the likeliest action each time."""
    key_begin, key_act = jax.random.split(key)
    start = jax.vmap(lambda key: begin(task, key))(jax.random.split(key_begin, episodes))

    def one(episode, running, key):
        key_draw, key_next = jax.random.split(key)
        seen_F = task.observe(episode.state)
        if greedy:
            action = likeliest(task, params["policy"], seen_F)
        else:
            action, _ = draw(task, params["policy"], seen_F, key_draw)
        after, outcome = advance(task, episode, action, key_next)
        total = jnp.where(running, outcome.total, 0.0)
        return after, running & ~(outcome.terminated | outcome.truncated), total

    def step(carry, key):
        states, running_B, totals_B = carry
        keys_B = jax.random.split(key, episodes)
        states, still_B, now_B = jax.vmap(one)(states, running_B, keys_B)
        return (states, still_B, jnp.where(running_B, now_B, totals_B)), None

    carry = start, jnp.ones(episodes, bool), jnp.zeros(episodes)
    return lax.scan(step, carry, jax.random.split(key_act, task.limit))[0][2]
