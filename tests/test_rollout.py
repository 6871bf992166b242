"""The sampler: what a row draws depends on its own prompt, key and position, and on nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, tiny_model, trunk_params
from ppo_jax import rollout as rollout_module
from ppo_jax.config import ParallelOptions, RolloutOptions
from ppo_jax.model import Decoder, trunk, unembed
from ppo_jax.rollout import sample, sharded_sample, stop_ids
from ppo_jax.scoring import Scorer, forward, values_from
from ppo_jax.sharding import make_mesh, put_batch, put_replicated

B, P, T = 8, 5, 9
CONFIG = tiny_model(eos_token_ids=(), pad_token_id=96)  # nothing stops unless a test says so
PARAMS = trunk_params(CONFIG, seed=0)
HEAD = {
    "kernel": 0.3 * jax.random.normal(jax.random.key(9), (CONFIG.embed_dim, 1)),
    "bias": jnp.asarray([0.5]),
}
PROMPTS = random_prompts(B, P, 1, CONFIG.vocab_size)
KEY = jax.random.key(2)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


@functools.cache
def jit_sample(config, options, greedy):
    decoder = Decoder(config)
    return jax.jit(functools.partial(sample, decoder, options, greedy=greedy))


def run(prompts=PROMPTS, *, config=CONFIG, temperature=1.0, key=KEY, greedy=False, **options):
    """A rollout as numpy arrays."""
    options = RolloutOptions(**{"max_new_tokens": T} | options)
    call = jit_sample(config, options, greedy)
    return jax.device_get(call(PARAMS, HEAD, prompts, key, jnp.float32(temperature)))


def rows_of(tree, index):
    return jax.tree.map(lambda x: x[jnp.asarray(index)], tree)


def assert_same_rows(got, expected):
    """Tokens exactly, floats to rounding: another shape of the products may add differently."""
    for name, want in expected._asdict().items():
        have = getattr(got, name)
        if want is None:
            assert have is None
        elif np.issubdtype(want.dtype, np.floating):
            np.testing.assert_allclose(have, want, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(have, want, err_msg=name)


def assert_well_formed(rollout, config=CONFIG):
    """Mask from lengths; pad id and zeros after the last real token."""
    mask_BT = np.arange(rollout.response_ids_BT.shape[1]) < rollout.lengths_B[:, None]
    assert rollout.mask_BT.dtype == np.float32 and rollout.lengths_B.min() >= 1
    np.testing.assert_array_equal(rollout.mask_BT, mask_BT)
    assert np.all(rollout.response_ids_BT[~mask_BT] == config.pad_token_id)
    assert np.all(rollout.logprobs_BT[~mask_BT] == 0) and np.all(rollout.values_BT[~mask_BT] == 0)
    assert np.all(rollout.logprobs_BT <= 0) and np.isfinite(rollout.logprobs_BT).all()
    if rollout.kept_ids_BTK is not None:
        assert np.all(rollout.kept_ids_BTK[~mask_BT] == -1)
        chosen_BT1 = rollout.response_ids_BT[..., None]
        assert np.all(np.any(rollout.kept_ids_BTK == chosen_BT1, axis=-1)[mask_BT])


def tempered(rollout, temperature):
    """float64 logits / temperature [B, T, V] before each response token, by the training trunk."""
    ids_BS = np.concatenate([rollout.prompt_ids_BP, rollout.response_ids_BT], axis=1)
    mask_BS = np.concatenate([rollout.prompt_mask_BP, rollout.mask_BT > 0], axis=1)
    call = jax.jit(functools.partial(trunk, Decoder(CONFIG)))
    hidden_BSD = call(PARAMS, jnp.asarray(ids_BS), jnp.asarray(mask_BS))
    logits_BSV = np.asarray(unembed(PARAMS, hidden_BSD), np.float64)
    return logits_BSV[:, P - 1 : -1] / temperature


def log_softmax(logits):
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (logits.max(-1, keepdims=True))
    )


def chosen(logprobs_BTV, ids_BT):
    return np.take_along_axis(logprobs_BTV, ids_BT[..., None], axis=-1)[..., 0]


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


def first_stop(ids_T, stops):
    """Tokens up to and including the first stop; all of them where none comes."""
    hits = [t for t, id in enumerate(ids_T) if id in stops]
    return hits[0] + 1 if hits else len(ids_T)


@pytest.mark.parametrize("stops", [(5,), (5, 17, 40), tuple(range(20, 60))])
@pytest.mark.parametrize("pad", [96, 5])
def test_a_stop_id_ends_a_response_and_changes_nothing_before_it(stops, pad):
    prompts = random_prompts(64, P, 4, CONFIG.vocab_size)
    config = tiny_model(eos_token_ids=stops[:1], pad_token_id=pad)  # pad 5 is an EOS id
    free = run(prompts)
    ended = run(prompts, config=config, stop_token_ids=stops[1:])
    assert_well_formed(ended, config)
    assert ended.ended_B.any() and len(set(ended.lengths_B.tolist())) > 1
    for b in range(64):
        length = first_stop(free.response_ids_BT[b], stops)
        assert ended.lengths_B[b] == length
        assert ended.ended_B[b] == (free.response_ids_BT[b, length - 1] in stops)
        for name in ("response_ids_BT", "logprobs_BT", "values_BT"):
            got, want = getattr(ended, name)[b, :length], getattr(free, name)[b, :length]
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_stop_ids_are_the_eos_ids_and_the_extra_ones():
    decoder = Decoder(tiny_model(eos_token_ids=(95, 3)))
    assert stop_ids(decoder, RolloutOptions(stop_token_ids=(3, 8))) == (95, 3, 8)
    assert stop_ids(decoder, RolloutOptions()) == (95, 3)


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


@pytest.mark.parametrize("truncate", [{}, {"top_k": 30}, {"top_p": 0.95}])
def test_no_stop_before_the_minimum_length(truncate):
    stops = tuple(range(60))
    options = {"stop_token_ids": stops, "min_new_tokens": 4, "temperature": 0.8} | truncate
    rollout = run(**options)
    assert_well_formed(rollout)
    assert rollout.lengths_B.min() >= 4
    assert not np.isin(rollout.response_ids_BT[:, :4], stops).any()
    assert rollout.ended_B.any()
    if truncate:
        assert not np.isin(rollout.kept_ids_BTK[:, :4], stops).any()
    else:  # the logprobs are those of the distribution without the stop ids
        logits_BTV = tempered(rollout, 0.8)
        logits_BTV[:, :4, :60] = -np.inf
        expected_BT = chosen(log_softmax(logits_BTV), rollout.response_ids_BT)
        real_BT = rollout.mask_BT > 0
        np.testing.assert_allclose(rollout.logprobs_BT[real_BT], expected_BT[real_BT], atol=1e-5)


def test_one_new_token():
    one, more = run(max_new_tokens=1), run()
    assert one.response_ids_BT.shape == (B, 1)
    assert_well_formed(one)
    np.testing.assert_array_equal(one.response_ids_BT, more.response_ids_BT[:, :1])
    np.testing.assert_allclose(one.logprobs_BT, more.logprobs_BT[:, :1], atol=1e-6)
    assert not one.ended_B.any()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_temperature_divides_the_logits(temperature):
    rollout = run(temperature=temperature)
    expected_BT = chosen(log_softmax(tempered(rollout, temperature)), rollout.response_ids_BT)
    np.testing.assert_allclose(rollout.logprobs_BT, expected_BT, atol=1e-5)


def test_colder_sampling_is_likelier_and_different():
    cold, warm = run(temperature=0.3), run(temperature=1.7)
    assert np.any(cold.response_ids_BT != warm.response_ids_BT)
    at_one = lambda r: chosen(log_softmax(tempered(r, 1.0)), r.response_ids_BT).mean()
    assert at_one(cold) > at_one(warm) + 0.5


def test_greedy_takes_the_likeliest_token_with_its_logprob_at_temperature_one():
    rollout = run(greedy=True, temperature=0.0)
    logits_BTV = tempered(rollout, 1.0)
    np.testing.assert_array_equal(rollout.response_ids_BT, logits_BTV.argmax(-1))
    np.testing.assert_allclose(rollout.logprobs_BT, log_softmax(logits_BTV).max(-1), atol=1e-5)
    other_key = run(greedy=True, temperature=1.7, key=jax.random.key(8))
    np.testing.assert_array_equal(other_key.response_ids_BT, rollout.response_ids_BT)


@pytest.mark.parametrize("truncate", [{"top_k": 4}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.5}])
def test_greedy_ignores_truncation(truncate):
    got, plain = run(greedy=True, **truncate), run(greedy=True)
    np.testing.assert_array_equal(got.response_ids_BT, plain.response_ids_BT)
    np.testing.assert_allclose(got.logprobs_BT, plain.logprobs_BT, atol=1e-6)
    assert got.kept_ids_BTK is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 1.7, "stop_token_ids": tuple(range(15))},
        {"temperature": 0.7, "top_k": 6},
        {"temperature": 1.7, "top_p": 0.8, "stop_token_ids": tuple(range(15))},
        {"top_k": 20, "top_p": 0.8, "min_new_tokens": 3, "stop_token_ids": tuple(range(30))},
    ],
    ids=str,
)
def test_logprobs_and_values_equal_the_scoring_forward(options):
    prompts = random_prompts(16, P, 5, CONFIG.vocab_size)
    rollout = run(prompts, **options)
    assert_well_formed(rollout)
    decoder, stops = Decoder(CONFIG), options.get("stop_token_ids", ())
    scorer = Scorer(decoder, decoder, stops, options.get("min_new_tokens", 0), chunk=4)
    temperature = jnp.float32(options.get("temperature", 1.0))
    on_device = jax.tree.map(jnp.asarray, rollout)
    out = jax.jit(functools.partial(forward, scorer))(PARAMS, on_device, temperature)
    values_BU = values_from({"head": HEAD}, scorer, on_device, out.hidden_BUD)
    real_BT = rollout.mask_BT > 0
    near = 1e-5 / min(float(temperature), 1.0)  # a logit's rounding is divided by it too
    np.testing.assert_allclose(
        rollout.logprobs_BT[real_BT], np.asarray(out.logprobs_BT)[real_BT], atol=near
    )
    np.testing.assert_allclose(
        rollout.values_BT[real_BT], np.asarray(values_BU)[:, :-1][real_BT], atol=2e-5
    )
    assert np.isfinite(out.logprobs_BT).all() and np.isfinite(out.entropy_BT).all()


def test_without_a_head_there_are_no_values():
    call = jit_sample(CONFIG, RolloutOptions(max_new_tokens=2), False)
    rollout = call(PARAMS, None, PROMPTS, KEY, jnp.float32(1.0))
    assert rollout.values_BT is None
    np.testing.assert_array_equal(rollout.response_ids_BT, run(max_new_tokens=2).response_ids_BT)


def test_kept_ids_have_room_for_the_nucleus_of_a_small_vocabulary():
    rollout = run(top_p=0.9)
    assert rollout.kept_ids_BTK.shape == (B, T, 256)
    assert rollout.kept_ids_BTK.max() < CONFIG.vocab_size
    assert_well_formed(rollout)
