"""Dialogues in the sampler's loop equal a plain loop that plays the environment turn by turn."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, row_states, tiny_model, trunk_params
from dialogue_runs import SUMS, TABLES, A, PlainSums, play, secret_of, starts
from ppo_jax import kv_cache
from ppo_jax.config import ParallelOptions, RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.model import unembed, value_head
from ppo_jax.rollout import sample, sharded_sample
from ppo_jax.scoring import Scorer, forward, read, values_from
from ppo_jax.sharding import make_mesh, put_batch, put_replicated
from rollout_runs import HEAD, assert_same_rows, rows_of

B, P, T = 24, 5, 19
CONFIG = tiny_model(num_layers=1, eos_token_ids=(), pad_token_id=96)
PARAMS = trunk_params(CONFIG, seed=0)
STOPS = tuple(range(0, 97, 6))
KEY = jax.random.key(4)
PROMPTS = random_prompts(B, P, 1, CONFIG.vocab_size)._replace(columns=starts(B))
STATIC = {"max_new_tokens": T, "stop_token_ids": STOPS, "compactions": 0, "cache_widths": 1}
SAMPLES = {"samples_per_prompt": 4, "top_k": 20, "top_p": 0.9}
FAST = {"xla_backend_optimization_level": 0}  # compiling takes nearly all of the time


@pytest.fixture(autouse=True, scope="module")
def narrow_blocks():
    """Caches of a few columns are split too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "ONE_BLOCK", 0)
        patch.setattr(kv_cache, "SMALLEST", 2)
        yield


@functools.cache
def jit_sample(options):
    decoder = Decoder(CONFIG)
    call = functools.partial(sample, decoder, options, environment=SUMS)
    return jax.jit(call, compiler_options=FAST)


def run(prompts=PROMPTS, *, key=KEY, **options):
    call = jit_sample(RolloutOptions(**STATIC | options))
    return jax.device_get(call(PARAMS, HEAD, prompts, key, jnp.float32(1.0), TABLES))


@pytest.fixture(scope="module")
def static():
    return run()


@pytest.fixture(scope="module")
def played():
    """Every row as the plain loop has it."""
    decoder = Decoder(CONFIG)

    @jax.jit
    def last_state(ids_1S, mask_1S, last):
        hidden_D = row_states(decoder, PARAMS, ids_1S, mask_1S)[0, last]
        return unembed(decoder, PARAMS, hidden_D), value_head(HEAD, hidden_D)

    def play_row(b: int):
        prompt = int(PROMPTS.prompt_index_B[b])
        row_key = jax.random.fold_in(jax.random.fold_in(KEY, prompt), 0)

        def state_after(said):
            ids, mask = np.zeros((1, P + T), int), np.zeros((1, P + T), bool)
            ids[0, :P], mask[0, :P] = PROMPTS.ids_BP[b], PROMPTS.mask_BP[b]
            ids[0, P : P + len(said)], mask[0, P : P + len(said)] = said, True
            logits_V, value = last_state(ids, mask, P + len(said) - 1)
            return np.asarray(logits_V, np.float64), float(value)

        env = PlainSums(secret_of(KEY, prompt, 0), {"start": PROMPTS.columns["start"][b]})
        return play(env, state_after, row_key, STOPS, T), env

    return [play_row(b) for b in range(B)]


def test_rows_equal_a_plain_loop(static, played):
    for b, (row, env) in enumerate(played):
        n = len(row.ids)
        assert static.lengths_B[b] == n
        assert static.response_ids_BT[b, :n].tolist() == row.ids
        assert np.all(static.response_ids_BT[b, n:] == CONFIG.pad_token_id)
        np.testing.assert_array_equal(static.mask_BT[b, :n], row.generated)
        np.testing.assert_allclose(static.env_rewards_BT[b, :n], row.rewards, atol=1e-5)
        np.testing.assert_allclose(static.logprobs_BT[b, :n], row.logprobs, atol=2e-5)
        np.testing.assert_allclose(static.values_BT[b, :n], row.values, atol=2e-5)
        assert static.ended_B[b] == row.done
        assert static.measures["turns"][b] == row.turns == env.actions
        assert static.measures["total"][b] == env.total
    for past in (static.mask_BT, static.env_rewards_BT, static.logprobs_BT, static.values_BT):
        assert np.all(past[np.arange(T) >= static.lengths_B[:, None]] == 0)


def test_the_rows_above_end_in_every_way(played):
    ends = Counter(row.end for row, _ in played)
    assert {"done", "turns", "no room to read", "tokens in an action"} <= ends.keys()
    openings = {row.generated.index(True) for row, _ in played}
    assert openings == {0, 1, 2}  # tokens read before the first one drawn
    lengths = {len(action) for row, _ in played for action in _actions(row)}
    assert lengths == set(range(1, A + 1))


def _actions(row):
    """Runs of generated tokens; two actions with nothing read between count as one or two."""
    action: list[int] = []
    for id, generated, reward in zip(row.ids, row.generated, row.rewards, strict=True):
        action = [*action, id] if generated else []
        if reward:
            yield action
            action = []


def test_another_schedule_or_order_of_rows_gives_the_same_dialogues(static):
    schedule: dict = {"slots": 5, "compactions": 1, "cache_widths": 3}
    assert_same_dialogues(run(**schedule), static)
    for seed in range(3):
        order_B = np.random.default_rng(seed).permutation(B)
        prompts, wanted = rows_of(PROMPTS, order_B), rows_of(static, order_B)
        assert_same_dialogues(run(prompts), wanted)
        assert_same_dialogues(run(prompts, **schedule), wanted)


def assert_same_dialogues(got, expected):
    for name, measure_B in expected.measures.items():
        np.testing.assert_array_equal(got.measures[name], measure_B)
    assert_same_rows(got._replace(measures=None), expected._replace(measures=None))


def test_dialogues_do_not_depend_on_the_device_count(static):
    mesh = make_mesh(ParallelOptions(data=4))
    schedule: dict = STATIC | {"slots": 8}
    options = RolloutOptions(**schedule)
    call = sharded_sample(mesh, Decoder(CONFIG), options, environment=SUMS)
    call = jax.jit(call, compiler_options=FAST)
    params, head, tables = put_replicated(mesh, (PARAMS, HEAD, TABLES))
    got = call(params, head, put_batch(mesh, PROMPTS), KEY, jnp.float32(1.0), tables)
    assert_same_dialogues(jax.device_get(got), static)


def test_samples_of_a_prompt_meet_the_same_opening():
    """Four samples each of six prompts: one secret a prompt; repeated prompts meet others."""
    prompts = rows_of(PROMPTS, np.repeat(np.arange(6), 4))._replace(
        sample_index_B=jnp.tile(jnp.arange(4, dtype=jnp.int32), 6)
    )
    opening = lambda rollout: rollout.response_ids_BT[:, :2] * (rollout.mask_BT[:, :2] == 0)
    totals = lambda rollout: [tuple(x.tolist()) for x in opening(rollout).reshape(6, 4, 2)[:, :, 0]]
    together = totals(run(prompts, **SAMPLES))
    assert all(len(set(group)) == 1 for group in together)
    apart = totals(run(prompts))
    assert any(len(set(group)) > 1 for group in apart)


@pytest.mark.parametrize("options", [{}, SAMPLES], ids=str)
def test_logprobs_and_values_equal_the_scoring_forward(options):
    rollout = run(**options)
    decoder = Decoder(CONFIG)
    scorer = Scorer(decoder, decoder, STOPS, 0, chunk=64)
    on_device = jax.tree.map(jnp.asarray, rollout)

    @functools.partial(jax.jit, compiler_options=FAST)
    def score(params, rollout):
        reading = read(rollout)
        out = forward(scorer, params, reading, jnp.float32(1.0))
        return out, values_from({"head": HEAD}, scorer, reading, out.hidden_ZND)[0]

    out, values_BT = score(PARAMS, on_device)
    own_BT = rollout.mask_BT > 0
    assert 0 < own_BT.sum() < rollout.lengths_B.sum()
    scored_BT = np.asarray(out.logprobs_BT)
    np.testing.assert_allclose(rollout.logprobs_BT[own_BT], scored_BT[own_BT], atol=1e-5)
    np.testing.assert_allclose(rollout.values_BT[own_BT], values_BT[own_BT], atol=2e-5)
    assert np.isfinite(out.logprobs_BT).all() and np.isfinite(out.entropy_BT).all()
    if rollout.kept_ids_BTK is not None:
        assert np.all(rollout.kept_ids_BTK[~own_BT] == -1)


def test_what_is_generated_and_which_token_is_the_last(static, played):
    for b, (row, _) in enumerate(played):
        assert static.generated_B[b] == sum(row.generated)
        last = max(t for t, generated in enumerate(row.generated) if generated)
        np.testing.assert_array_equal(np.flatnonzero(static.last_BT[b]), [last])
    assert np.any(static.lengths_B - 1 != np.argmax(static.last_BT, axis=1))  # cut after reading
