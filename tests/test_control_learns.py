"""PPO learns: CartPole in 40 iterations, and the KL bandit to its closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from control_parts import bandit, classic, settings, study, training

SHORT = settings.Settings(seeds=2, iterations=40)
RATES = 1e-3, 0.0


def test_cartpole_is_learnt_and_only_by_learning():
    """Both learning rates and both seeds are one program; nothing is learnt at a rate of 0."""
    config = settings.config_of(SHORT)
    shape = settings.shape_of(SHORT)
    traces = []

    def one(rate, key):
        traces.append(1)
        hparams = jax.tree.map(jnp.float32, config.hparams)
        hparams = dataclasses.replace(hparams, learning_rate=rate)
        return training.train(classic.CARTPOLE, config, shape, hparams, key)

    seeds = jax.vmap(one, in_axes=(None, 0))
    program = jax.jit(jax.vmap(seeds, in_axes=(0, None)))
    trained = program(jnp.array(RATES), study.seed_keys(2)[0])
    history = jax.tree.map(np.asarray, trained.history)
    mean = lambda part: (
        history["returns"][..., part].sum(-1) / history["episodes"][..., part].sum(-1)
    )
    first, last = mean(slice(0, 1)), mean(slice(-15, None))
    assert np.all(last[0] > 120) and np.all(first < 40) and np.all(last[1] < 40)
    assert len(traces) == 1
    assert history["skipped"].sum() == 0 and history["ratio_max_dev_first"].max() <= 1e-5
    assert history["approxkl"][1].max() == 0 < history["approxkl"][0].min()

    test = functools.partial(
        training.episode_returns, classic.CARTPOLE, key=jax.random.key(5), episodes=20, greedy=True
    )
    learnt, random = (
        float(test(jax.tree.map(lambda x, i=i: x[i, 0], trained.params)).mean()) for i in (0, 1)
    )
    assert learnt > 120 and random < 60 and learnt <= 500


def test_the_bandit_goes_to_the_closed_form():
    flags = bandit.Flags(betas=(0.2, 1.0), seeds=2, actions=256, iterations=80)
    found_BNA, _ = bandit.learnt(flags)
    start_A = np.exp(bandit.REFERENCE_A) / np.exp(bandit.REFERENCE_A).sum()
    for beta, policy_NA in zip(flags.betas, found_BNA, strict=True):
        weights_A = start_A * np.exp(bandit.REWARD_A / beta)
        best_A = weights_A / weights_A.sum()
        np.testing.assert_allclose(bandit.closed_form(beta), best_A)
        off = 0.5 * np.abs(policy_NA - best_A).sum(axis=-1)
        assert np.all(off < 0.02) and 0.5 * np.abs(start_A - best_A).sum() > 0.1
