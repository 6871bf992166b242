"""One token, a reward a token, KL in the reward: the policy goes to π_ref · exp(r / β) / Z."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import row_states
from ppo_jax.config import replace
from ppo_jax.model import unembed
from ppo_jax.sharding import put_batch, put_replicated
from ppo_jax.types import Prompts
from step_builders import BASE, case, traced

V, ROWS, ITERATIONS = 16, 256, 80
BANDIT = replace(
    BASE,
    **{
        "model.shape.vocab_size": V,
        "rollout.batch_size": ROWS,
        "rollout.max_new_tokens": 1,
        "ppo.epochs": 1,
        "ppo.minibatches": 2,
        "ppo.whiten_advantages": False,
        "optim.schedule": "cosine",
        "run.iterations": ITERATIONS,
        "hparams.learning_rate": 5e-3,
        "hparams.vf_coef": 0.5,
        "hparams.value_clip": None,
        "hparams.max_grad_norm": None,
    },
)
TABLE_V = np.random.default_rng(2).uniform(-1, 1, size=V).astype(np.float32)


def table(rollout, columns, tables):
    return jnp.asarray(TABLE_V)[rollout.response_ids_BT[:, 0]]


def policy_of(built, params) -> np.ndarray:
    """The distribution of the token after the prompt."""
    decoder = built.setup.decoder
    hidden = row_states(decoder, params["policy"], jnp.array([[2]]), jnp.ones((1, 1), bool))
    logits_V = unembed(decoder, params["policy"], hidden[0, 0])
    return np.asarray(jax.nn.softmax(logits_V), np.float64)


@functools.cache
def bandit(advantage: str):
    samples = 4 if advantage == "rloo" else 1
    config = replace(BANDIT, **{"ppo.advantage": advantage, "rollout.samples_per_prompt": samples})
    return case(config, rule=table)


def learnt(advantage: str, beta: float):
    """(policy, reference, last metrics) after all iterations at the KL coefficient `beta`."""
    built = bandit(advantage)
    mesh = built.setup.mesh
    config = replace(built.setup.config, **{"hparams.kl_coef": beta})
    hparams = put_replicated(mesh, traced(config.hparams))
    index_B = np.arange(ROWS, dtype=np.int32)
    ids_B1, mask_B1 = np.full((ROWS, 1), 2, np.int32), np.ones((ROWS, 1), bool)
    prompts = put_batch(mesh, Prompts(ids_B1, mask_B1, index_B, 0 * index_B, {}))
    state = built.state._replace(kl_coef=put_replicated(mesh, jnp.float32(beta)))
    for _ in range(ITERATIONS):
        state, metrics, *_ = built.program(state, built.frozen, hparams, prompts)
    return policy_of(built, state.params), policy_of(built, built.state.params), metrics


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_converges_to_the_closed_form(advantage):
    for beta in (0.3, 0.7, 2.0):
        policy, ref, metrics = learnt(advantage, beta)
        weights = ref * np.exp(TABLE_V.astype(np.float64) / beta)
        best = weights / weights.sum()
        distance = 0.5 * np.abs(policy - best).sum()
        moved = 0.5 * np.abs(ref - best).sum()
        assert distance < 0.02 < 0.05 < moved, (beta, distance, moved)
        kl = (best * np.log(best / ref)).sum()
        np.testing.assert_allclose(metrics["objective/kl"], kl, atol=0.15)
    assert bandit(advantage).program._cache_size() == 1
