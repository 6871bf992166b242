"""Refills, compactions and cache widths decide how long a rollout takes, never what it holds."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, row_states, tiny_model
from ppo_jax import kv_cache, slots
from ppo_jax.config import Config, ParallelOptions, RolloutOptions, replace
from ppo_jax.decoder import Decoder
from ppo_jax.errors import ConfigError
from ppo_jax.model import init_trunk, unembed
from ppo_jax.rollout import sample, sharded_sample
from ppo_jax.sharding import make_mesh, put_batch, put_replicated
from ppo_jax.step_metrics import slot_use
from ppo_jax.validate import check_devices
from rollout_runs import (
    CONFIG,
    HEAD,
    PARAMS,
    assert_same_rows,
    assert_well_formed,
    jit_sample,
    rows_of,
    run,
)

B, P, T = 24, 5, 27
STOPS = tuple(range(0, 97, 8))  # an eighth of the ids: lengths come out about geometric
STATIC = {"max_new_tokens": T, "stop_token_ids": STOPS, "compactions": 0, "cache_widths": 1}
PROMPTS = random_prompts(B, P, 1, CONFIG.vocab_size)
SCHEDULES = [
    {"compactions": 2},
    {"cache_widths": 3},
    {"slots": 1},
    {"slots": 7},
    {"slots": 16, "compactions": 3, "cache_widths": 2},
    {"slots": 5, "compactions": 9, "cache_widths": 3},
]


@pytest.fixture(autouse=True, scope="module")
def narrow_blocks():
    """Caches of a few columns are split too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "ONE_BLOCK", 0)
        patch.setattr(kv_cache, "SMALLEST", 2)
        yield


def slot_steps(lengths, slot_count, compactions):
    """Slots x steps that rows of these lengths take: plain Python, one number a live slot."""
    waiting, live, W = list(lengths), [], min(slot_count, len(lengths))
    refill = -(-W // slots.REFILL)
    if W == len(waiting):
        live, waiting = [n - 1 for n in waiting if n > 1], []
    total, shrinks = 0, 0
    while live or waiting:
        if not waiting and len(live) <= W // 2 and W > 1 and shrinks < compactions:
            W, shrinks = W // 2, shrinks + 1
            continue
        while waiting and W - len(live) >= min(refill, len(waiting)):
            live += [n - 1 for n in waiting[:refill] if n > 1]
            waiting = waiting[refill:]
        live, total = [n - 1 for n in live if n > 1], total + W
    return total


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_schedule_gives_the_rows_of_the_static_one(schedule):
    options, seen = STATIC | schedule, set()
    for seed in range(12):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        order_B = rng.permutation(B)
        prompts = rows_of(random_prompts(B, P, seed, CONFIG.vocab_size), order_B)
        static, got = run(prompts, key=key, **STATIC), run(prompts, key=key, **options)
        assert_well_formed(got)
        assert_same_rows(got, static)
        seen |= set(static.lengths_B.tolist())
        steps = slot_steps(static.lengths_B, options.get("slots", B), options["compactions"])
        np.testing.assert_allclose(got.slot_steps_B, steps / B, rtol=1e-6)
        assert static.slot_steps_B.sum() == B * (static.lengths_B.max() - 1)
    assert {1, 2, T} <= seen and len(seen) > 15


@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"top_k": 12, "top_p": 0.9, "min_new_tokens": 3, "temperature": 1.3},
    ],
    ids=str,
)
def test_greedy_and_truncated_sampling_too(options):
    schedule = {"slots": 6, "compactions": 1, "cache_widths": 3}
    for seed in range(4):
        prompts = random_prompts(B, P, 20 + seed, CONFIG.vocab_size)
        options = options | {"key": jax.random.key(seed)}
        static = run(prompts, **STATIC | options)
        assert_same_rows(run(prompts, **STATIC | options | schedule), static)
        assert len(set(static.lengths_B.tolist())) > 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_slots_are_split_over_the_devices(count):
    mesh = make_mesh(ParallelOptions(data=count))
    options = RolloutOptions(**STATIC | {"slots": 8, "compactions": 1, "cache_widths": 2})
    call = jax.jit(sharded_sample(mesh, Decoder(CONFIG), options))
    placed = put_replicated(mesh, (PARAMS, HEAD))
    for seed in range(3):
        key = jax.random.key(seed)
        got = jax.device_get(call(*placed, put_batch(mesh, PROMPTS), key, jnp.float32(1.0)))
        assert_same_rows(got, run(PROMPTS, key=key, **STATIC))
        for part in range(count):
            mine = slice(part * B // count, (part + 1) * B // count)
            steps = slot_steps(got.lengths_B[mine], 8 // count, 1)
            np.testing.assert_allclose(got.slot_steps_B[mine], steps * count / B, rtol=1e-6)


def test_slots_under_pmap():
    options = RolloutOptions(**STATIC | {"slots": 2, "compactions": 1})
    per_device = functools.partial(sample, Decoder(CONFIG), options)
    split = jax.tree.map(lambda x: x.reshape(4, B // 4, *x.shape[1:]), PROMPTS)
    mapped = jax.pmap(per_device, in_axes=(None, None, 0, None, None))
    got = jax.device_get(mapped(PARAMS, HEAD, split, jax.random.key(0), jnp.float32(1.0)))
    joined = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), got)
    assert_same_rows(joined, run(PROMPTS, key=jax.random.key(0), **STATIC))


def test_rows_equal_a_plain_loop_over_the_training_trunk():
    """The trunk on the growing sequence, a cumulative sum in float64, the same uniform numbers."""
    key, decoder = jax.random.key(3), Decoder(CONFIG)
    prompts = random_prompts(6, P, 8, CONFIG.vocab_size)
    got = run(prompts, key=key, **STATIC | {"slots": 4, "compactions": 1, "cache_widths": 3})

    @jax.jit
    def logits(ids_1S, mask_1S, last):
        return unembed(decoder, PARAMS, row_states(decoder, PARAMS, ids_1S, mask_1S)[0, last])

    for b in range(6):
        row_key = jax.random.fold_in(jax.random.fold_in(key, int(prompts.prompt_index_B[b])), 0)
        ids, mask = np.zeros((1, P + T), int), np.zeros((1, P + T), bool)
        ids[0, :P], mask[0, :P] = prompts.ids_BP[b], prompts.mask_BP[b]
        drawn = []
        while len(drawn) < T and not (drawn and drawn[-1] in STOPS):
            logits_V = np.asarray(logits(ids, mask, P + len(drawn) - 1), np.float64)
            cdf_V = np.cumsum(np.exp(logits_V - logits_V.max()))
            u = float(jax.random.uniform(jax.random.fold_in(row_key, len(drawn))))
            drawn.append(int(np.searchsorted(cdf_V, u * cdf_V[-1], side="right")))
            ids[0, P + len(drawn) - 1], mask[0, P + len(drawn) - 1] = drawn[-1], True
        assert got.response_ids_BT[b, : got.lengths_B[b]].tolist() == drawn


@pytest.mark.parametrize("slot_count", [1, 3, None])
def test_batches_of_one_row_and_more_slots_than_rows(slot_count):
    prompts = rows_of(PROMPTS, [4])
    got = run(prompts, **STATIC | {"slots": slot_count, "compactions": 2})
    assert_same_rows(got, run(prompts, **STATIC))
    assert got.slot_steps_B[0] == got.lengths_B[0] - 1 and float(slot_use(got)) == 1.0


def test_all_rows_end_at_their_first_token():
    got = run(PROMPTS, **STATIC | {"stop_token_ids": tuple(range(97)), "slots": 7})
    assert np.all(got.lengths_B == 1) and got.ended_B.all()
    static = run(PROMPTS, **STATIC | {"stop_token_ids": tuple(range(97))})
    assert_same_rows(got, static)
    assert static.slot_steps_B.sum() == 0 and float(slot_use(static)) == 1.0


@pytest.mark.parametrize("slot_count", [None, 7])
def test_nobody_ends(slot_count):
    options = STATIC | {"stop_token_ids": (), "compactions": 2, "slots": slot_count}
    got = run(PROMPTS, **options)
    assert np.all(got.lengths_B == T) and not got.ended_B.any()
    assert_same_rows(got, run(PROMPTS, **STATIC | {"stop_token_ids": ()}))
    assert slot_count or got.slot_steps_B.sum() == B * (T - 1)


def test_a_queue_of_short_and_long_answers_keeps_the_slots_busy():
    """64 prompts of 16 tokens, geometric lengths of mean 24 cut at 256: the workload w3."""
    config = tiny_model(vocab_size=24, num_layers=1, eos_token_ids=(3,), pad_token_id=0)
    params = init_trunk(config, jax.random.key(0))  # small weights: every id about as likely
    options = RolloutOptions(max_new_tokens=256, slots=16, compactions=4)
    prompts = random_prompts(64, 16, 1, 24)
    lengths, found = [], []
    for seed in range(4):
        key = jax.random.key(seed)
        call = jit_sample(config, options, False)
        rollout = jax.device_get(call(params, None, prompts, key, jnp.float32(1.0)))
        found.append(float(slot_use(rollout)))
        lengths.append(rollout.lengths_B)
        static = (rollout.lengths_B - 1).sum() / (64 * (rollout.lengths_B.max() - 1))
        assert static < 0.45
    assert 18 < np.mean(lengths) < 30 and np.max(lengths) > 90
    assert min(found) >= 0.85


def test_the_loops_copy_no_cache():
    """Neither a token's write, nor a refill, nor the choice of a width copies a block."""
    for schedule in ({}, {"slots": 7, "compactions": 1, "cache_widths": 3}):
        options = RolloutOptions(**STATIC | schedule)
        args = (PARAMS, HEAD, PROMPTS, jax.random.key(0), jnp.float32(1.0))
        text = jit_sample(CONFIG, options, False).lower(*args).compile().as_text()
        inside = text[: text.index("\nENTRY")]
        widths = kv_cache.block_widths(P, T, options.cache_widths)
        for W in slots.ladder(options.slots or B, options.compactions):
            for width in widths:
                shape = f"f32[{W},2,{width},8]"
                assert shape in inside
                copied = re.compile(rf"= {re.escape(shape)}\S* copy(-start)?\(")
                assert not copied.search(inside)


def test_blocks_hold_the_prompt_first_and_every_column():
    for prompt, new, count in [(1, 1, 4), (16, 256, 4), (16, 256, 1), (200, 3, 4), (7, 40, 9)]:
        widths = kv_cache.block_widths(prompt, new, count)
        assert sum(widths) == prompt + new and 1 <= len(widths) <= count
        assert widths[0] > prompt and min(widths) >= 1
    assert kv_cache.block_widths(16, 256, 4) == (48, 32, 64, 128)


def test_slots_must_be_dealt_evenly_to_the_devices():
    config = replace(Config(), **{"rollout.slots": 6})
    check_devices(config, 2)
    with pytest.raises(ConfigError, match=r"^rollout.slots=6: 4 devices .* nearest valid: 4 or 8$"):
        check_devices(config, 4)


def test_loops_halve_their_slots_down_to_one():
    assert slots.ladder(16, 3) == (16, 8, 4, 2)
    assert slots.ladder(5, 9) == (5, 2, 1)
    assert slots.ladder(1, 2) == (1,) and slots.ladder(64, 0) == (64,)
