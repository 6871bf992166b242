"""A training step on dialogues: what is read teaches nothing, what is paid does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import ModelConfig, replace
from ppo_jax.envs.base import DeviceEnv, Observation
from ppo_jax.envs.maze import maze
from ppo_jax.errors import ConfigError
from ppo_jax.reward import combine_scores, shape_rewards, shape_scores
from ppo_jax.rewards.environment import environment_reward
from ppo_jax.rewards.length import target_length
from ppo_jax.sharding import put_replicated
from ppo_jax.step import train_step, training_rows
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.types import Scored, ScoreMoments
from step_builders import BASE, EOS, setup_of, start, traced
from step_builders import prompts_at as plain_prompts

B, T = 16, 14
CONFIG = replace(
    BASE,
    **{
        "rollout.batch_size": B,
        "rollout.max_new_tokens": T,
        "rollout.slots": 8,
        "ppo.bootstrap_truncated": True,
        "hparams.gamma": 0.97,
        "hparams.kl_coef": 0.02,
        "hparams.length_penalty": 0.01,
    },
)
LOW, HIGH = 10, 30  # actions that are right after a 2, after a 3: of so many ids


def _reset(tables, key, row):
    tag = jax.random.randint(key, (), 2, 4)
    return {"tag": tag, "right": jnp.int32(0)}, Observation(tag[None], jnp.int32(1))


def _step(tables, state, ids_A, length):
    first = tables["start"][state["tag"] - 2]
    right = (ids_A[0] >= first) & (ids_A[0] < first + 20)
    state = state | {"right": state["right"] + right}
    seen = Observation(state["tag"] + jnp.arange(2), 1 + right.astype(jnp.int32))
    return state, seen, right.astype(jnp.float32), ids_A[length - 1] == EOS


TAGS = DeviceEnv(
    "tags",
    lambda tokenizer, vocab_size: {"start": np.array([LOW, HIGH], np.int32)},
    _reset,
    _step,
    lambda tables, state: {"right": state["right"]},
    max_action_tokens=2,
    max_turns=3,
)


def build(environment, tables, config, reward):
    setup = setup_of(config)._replace(
        environment=environment, device_rewards={"pay": reward.fn}, weights={"pay": 1.0}
    )
    state, frozen = start(setup)
    return setup, state, {**frozen, "env": put_replicated(setup.mesh, tables)}


@functools.cache
def tags():
    built = build(TAGS, TAGS.make_tables(None, 64), CONFIG, environment_reward())
    options = {"xla_backend_optimization_level": 0}
    return *built, jax.jit(functools.partial(train_step, built[0]), compiler_options=options)


@pytest.fixture(scope="module")
def first():
    setup, state, frozen, program = tags()
    _, metrics, rollout, scores_B = program(
        state, frozen, traced(CONFIG.hparams), plain_prompts(setup)
    )
    return {k: v.item() for k, v in metrics.items()}, jax.device_get(rollout), scores_B


def test_the_first_minibatch_has_ratio_one(first):
    metrics, rollout, _ = first
    assert 0 < rollout.mask_BT.sum() < rollout.lengths_B.sum()
    assert metrics["val/ratio_first_max_dev"] <= 1e-5
    assert metrics["policy/approxkl_first"] <= 1e-10
    assert metrics["rollout/logprob_gap_max"] <= 1e-5
    assert abs(metrics["objective/kl"]) <= 1e-6 * T  # the policy is the reference yet


def test_metrics_are_of_generated_tokens(first):
    metrics, rollout, scores_B = first
    paid_B = rollout.env_rewards_BT.sum(axis=1)
    np.testing.assert_allclose(scores_B, paid_B, atol=1e-6)
    assert np.all(rollout.env_rewards_BT[rollout.mask_BT == 0] == 0) and paid_B.any()
    generated = rollout.mask_BT.sum()
    assert metrics == metrics | {
        "env/right": pytest.approx(rollout.measures["right"].mean()),
        "env/turns": pytest.approx(rollout.measures["turns"].mean()),
        "reward/pay": pytest.approx(paid_B.mean()),
        "rollout/tokens": generated,
        "rollout/length_mean": pytest.approx(generated / B),
        "rollout/length_max": rollout.lengths_B.max(),
        "rollout/ended": pytest.approx(rollout.ended_B.mean()),
    }
    np.testing.assert_allclose(rollout.measures["right"], paid_B)  # a right action pays 1


def advantages_of(rewards, values, gamma, lam, bootstrap):
    """The sum of the definition, for one episode of tokens side by side."""
    after = [*values.tolist(), bootstrap]
    deltas = [r + gamma * after[i + 1] - after[i] for i, r in enumerate(rewards.tolist())]
    weigh = lambda i: sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(deltas)))
    return [weigh(i) for i in range(len(deltas))]


def test_advantages_are_those_of_the_generated_tokens_alone(first):
    """Each row less what was read, whatever the scoring passes say there; float64 sums."""
    _, rollout, _ = first
    own_BT, hparams = rollout.mask_BT > 0, traced(CONFIG.hparams)
    rng = np.random.default_rng(0)
    random = lambda: jnp.float32(np.where(own_BT, rng.normal(size=(B, T)), np.nan))
    values_BT, old_BT, ref_BT = random(), random(), random()
    final_B = jnp.float32(rng.normal(size=B))
    scored = Scored(old_BT, values_BT, final_B, ref_BT, None, None)
    setup = tags()[0]._replace(config=replace(CONFIG, **{"ppo.whiten_advantages": False}))

    @jax.jit
    def learn_from(rollout, scored):
        raw = {"pay": rollout.env_rewards_BT}
        scores = combine_scores(raw, {"pay": 1.0}, rollout)
        moments = ScoreMoments(*[jnp.float32(0)] * 3)
        score_B = shape_scores(CONFIG.reward, hparams, scores, moments, rollout)
        kl_BT = scored.old_logprobs_BT - scored.ref_logprobs_BT
        mask_BT, options = rollout.mask_BT, CONFIG.reward
        rewards_BT = shape_rewards(
            options, score_B, scores.token_BT, kl_BT, hparams.kl_coef, rollout, mask_BT
        )
        return training_rows(setup, hparams, rewards_BT, scored, rollout, mask_BT)

    rows = learn_from(rollout, scored)
    for b in range(B):
        own = own_BT[b]
        rewards = rollout.env_rewards_BT[b, own] - 0.02 * np.asarray(old_BT - ref_BT)[b, own]
        rewards[-1] -= 0.01 * own.sum()
        bootstrap = 0.0 if rollout.ended_B[b] else final_B[b]
        wanted = advantages_of(
            rewards, np.asarray(values_BT)[b, own], 0.97, CONFIG.hparams.lam, bootstrap
        )
        np.testing.assert_allclose(rows.advantages_BT[b, own], wanted, rtol=1e-4, atol=1e-5)
        assert np.all(rows.advantages_BT[b, ~own] == 0) and np.all(rows.returns_BT[b, ~own] == 0)
    cut_B = ~rollout.ended_B
    assert cut_B.any() and rollout.ended_B.any()
    trailing = np.array([not row[n - 1] for row, n in zip(own_BT, rollout.lengths_B, strict=True)])
    assert trailing.any() and not np.any(trailing & rollout.ended_B)


def test_what_the_environment_pays_is_learnt():
    setup, state, frozen, program = tags()
    learning = {"hparams.kl_coef": 0.0, "hparams.learning_rate": 3e-3}  # steadily, from any draw
    hparams, right = traced(replace(CONFIG, **learning).hparams), []
    for step in range(80):
        state, metrics, *_ = program(state, frozen, hparams, plain_prompts(setup, step))
        right.append(metrics["env/right"].item() / metrics["env/turns"].item())
    assert np.mean(right[:5]) < 0.45 and np.mean(right[-20:]) > 0.85


def test_without_an_environment_its_reward_is_an_error(first):
    with pytest.raises(ConfigError, match="the experiment names no ENVIRONMENT"):
        environment_reward().fn(first[1]._replace(env_rewards_BT=None), {}, ())


def test_lengths_count_what_was_generated(first):
    rollout = jax.tree.map(jnp.asarray, first[1])
    score_B = target_length(4, width=8.0).fn(rollout, {}, ())
    wanted_B = np.maximum(1 - np.abs(first[1].mask_BT.sum(axis=1) - 4) / 8, 0)
    np.testing.assert_allclose(score_B, wanted_B, atol=1e-6)


def test_the_step_with_a_maze_calls_nothing_outside():
    shape = ModelConfig(embed_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=16)
    config = replace(CONFIG, **{"model.shape": shape, "rollout.max_new_tokens": 40})
    environment = maze(4)
    tables = environment.make_tables(byte_tokenizer(), 259)
    setup, state, frozen = build(environment, tables, config, environment_reward())
    traced_step = jax.jit(functools.partial(train_step, setup)).trace(
        state, frozen, traced(config.hparams), plain_prompts(setup, seed=np.arange(B))
    )
    jaxpr, program = str(traced_step.jaxpr), traced_step.lower().as_text()
    assert "while" in jaxpr and "callback" not in jaxpr
    assert "stablehlo.while" in program and "callback" not in program
    assert "infeed" not in program and "outfeed" not in program
