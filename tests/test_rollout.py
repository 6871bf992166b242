"""What the sampler writes down: stops, lengths, log-probabilities, values, kept ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, tiny_model
from ppo_jax.config import RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.rollout import stop_ids
from ppo_jax.scoring import Scorer, forward, read, values_from
from rollout_runs import (
    CONFIG,
    HEAD,
    KEY,
    PARAMS,
    PROMPTS,
    B,
    P,
    T,
    assert_well_formed,
    chosen,
    jit_sample,
    log_softmax,
    run,
    tempered,
)


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
    scorer = Scorer(decoder, decoder, stops, options.get("min_new_tokens", 0), chunk=64)
    temperature = jnp.float32(options.get("temperature", 1.0))
    on_device = jax.tree.map(jnp.asarray, rollout)
    score = lambda params, rollout, t: forward(scorer, params, read(rollout), t)
    out = jax.jit(score)(PARAMS, on_device, temperature)
    values_BT, _ = values_from({"head": HEAD}, scorer, read(on_device), out.hidden_ZND)
    real_BT = rollout.mask_BT > 0
    near = 1e-5 / min(float(temperature), 1.0)  # a logit's rounding is divided by it too
    np.testing.assert_allclose(
        rollout.logprobs_BT[real_BT], np.asarray(out.logprobs_BT)[real_BT], atol=near
    )
    np.testing.assert_allclose(
        rollout.values_BT[real_BT], np.asarray(values_BT)[real_BT], atol=2e-5
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
