"""A row's tokens depend on its own prompt, key and position alone, and so does its end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts
from ppo_jax import rollout as rollout_module
from ppo_jax.config import ParallelOptions, RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.rollout import sample, sharded_sample
from ppo_jax.sharding import make_mesh, put_batch, put_replicated
from rollout_runs import (
    CONFIG,
    HEAD,
    KEY,
    PARAMS,
    PROMPTS,
    B,
    P,
    T,
    assert_same_rows,
    assert_well_formed,
    rows_of,
    run,
)

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


@pytest.mark.parametrize("options", [{}, {"top_k": 12, "top_p": 0.9}], ids=["plain", "truncated"])
def test_tokens_do_not_depend_on_order_or_split_of_the_batch(options):
    whole = run(**options)
    assert_well_formed(whole)
    for seed in range(5):
        order_B = np.random.default_rng(seed).permutation(B)
        assert_same_rows(run(rows_of(PROMPTS, order_B), **options), rows_of(whole, order_B))
    for part in (np.arange(4), np.arange(4, 8), [3]):
        assert_same_rows(run(rows_of(PROMPTS, part), **options), rows_of(whole, part))


def test_many_rows_equal_the_same_rows_in_smaller_batches():
    prompts = random_prompts(96, P, 3, CONFIG.vocab_size)
    whole = run(prompts)
    parts = [run(rows_of(prompts, np.arange(i, i + 32))) for i in range(0, 96, 32)]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    assert_same_rows(joined, whole)


def test_more_left_padding_gives_the_same_tokens():
    wider = PROMPTS._replace(
        ids_BP=jnp.pad(PROMPTS.ids_BP, ((0, 0), (4, 0)), constant_values=7),
        mask_BP=jnp.pad(PROMPTS.mask_BP, ((0, 0), (4, 0))),
    )
    narrow, wide = run(), run(wider)
    drop = {"prompt_ids_BP": None, "prompt_mask_BP": None}
    assert_same_rows(wide._replace(**drop), narrow._replace(**drop))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_tokens_do_not_depend_on_the_device_count(count):
    options = RolloutOptions(max_new_tokens=T, top_k=12, stop_token_ids=(5, 6, 7, 8))
    mesh = make_mesh(ParallelOptions(data=count))
    call = jax.jit(sharded_sample(mesh, Decoder(CONFIG), options))
    placed = put_replicated(mesh, (PARAMS, HEAD))
    got = call(*placed, put_batch(mesh, PROMPTS), KEY, jnp.float32(1.0))
    assert len(got.response_ids_BT.sharding.device_set) == count
    expected = run(top_k=12, stop_token_ids=(5, 6, 7, 8))
    assert_same_rows(jax.device_get(got), expected)


def test_pmap_of_sample_gives_the_same_tokens():
    options = RolloutOptions(max_new_tokens=T)
    per_device = functools.partial(sample, Decoder(CONFIG), options)
    split = jax.tree.map(lambda x: x.reshape(4, B // 4, *x.shape[1:]), PROMPTS)
    mapped = jax.pmap(per_device, in_axes=(None, None, 0, None, None))
    got = jax.device_get(mapped(PARAMS, HEAD, split, KEY, jnp.float32(1.0)))
    joined = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), got)
    assert_same_rows(joined, run())


def test_no_collective_in_the_sharded_rollout():
    options = RolloutOptions(max_new_tokens=T, stop_token_ids=(5,))
    mesh = make_mesh(ParallelOptions())
    assert mesh.size == 4
    call = jax.jit(sharded_sample(mesh, Decoder(CONFIG), options))
    placed = put_replicated(mesh, (PARAMS, HEAD))
    temperature, key = put_replicated(mesh, (jnp.float32(1.0), KEY))
    lowered = call.lower(*placed, put_batch(mesh, PROMPTS), key, temperature)
    text = lowered.compile().as_text()
    assert "while" in text and "num_partitions=4" in text
    assert not [name for name in COLLECTIVES if name in text]


def test_a_sequence_draws_from_its_own_id():
    same = lambda x: jnp.broadcast_to(x[2:3], x.shape)
    prompts = jax.tree.map(same, PROMPTS)._replace(
        prompt_index_B=jnp.asarray([4, 4, 4, 4, 5, 5, 0, 1], jnp.int32),
        sample_index_B=jnp.asarray([0, 1, 2, 0, 0, 1, 5, 4], jnp.int32),
    )
    ids_BT = run(prompts).response_ids_BT
    np.testing.assert_array_equal(ids_BT[0], ids_BT[3])
    distinct = {tuple(row) for row in ids_BT.tolist()}
    assert len(distinct) == 7  # (4, 5) and (5, 4), (0, 5) and (5, 0) differ too
    other = run(prompts, key=jax.random.key(3)).response_ids_BT
    assert np.all(np.any(other != ids_BT, axis=1))
    np.testing.assert_array_equal(run(prompts).response_ids_BT, ids_BT)


def count_decode_steps(monkeypatch, call):
    """Decode steps run by all devices together."""
    steps = []
    real = rollout_module.decode_step

    def counted(*args):
        jax.debug.callback(lambda: steps.append(1))
        return real(*args)

    monkeypatch.setattr(rollout_module, "decode_step", counted)
    result = jax.block_until_ready(call())
    jax.effects_barrier()
    return jax.device_get(result), len(steps)


def test_each_device_leaves_its_loop_when_its_own_rows_have_ended(monkeypatch):
    options = RolloutOptions(max_new_tokens=40, stop_token_ids=tuple(range(20)))
    mesh = make_mesh(ParallelOptions())
    prompts = put_batch(mesh, PROMPTS)
    call = jax.jit(sharded_sample(mesh, Decoder(CONFIG), options))
    args = (*put_replicated(mesh, (PARAMS, HEAD)), prompts, KEY, jnp.float32(1.0))
    rollout, steps = count_decode_steps(monkeypatch, lambda: call(*args))
    assert rollout.lengths_B.max() < 40 and rollout.ended_B.all()
    # Token 0 comes from the prefill; a device runs to the last end among its two rows.
    per_device = rollout.lengths_B.reshape(4, 2).max(axis=1)
    assert len(set(per_device.tolist())) > 1
    assert steps == np.sum(per_device - 1)


def test_all_rows_ending_at_once_run_no_decode_step(monkeypatch):
    options = RolloutOptions(max_new_tokens=30, stop_token_ids=tuple(range(97)))
    call = jax.jit(functools.partial(sample, Decoder(CONFIG), options))
    args = (PARAMS, HEAD, PROMPTS, KEY, jnp.float32(1.0))
    rollout, steps = count_decode_steps(monkeypatch, lambda: call(*args))
    assert steps == 0 and rollout.ended_B.all() and np.all(rollout.lengths_B == 1)
    assert_well_formed(rollout)
