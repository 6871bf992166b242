"""Rows without a score in the programs of a run: fused or cut, now and then or for good."""

import functools
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.config import replace
from ppo_jax.errors import RewardError
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.prepare import Opened, prepare
from ppo_jax.programs import FRESH, MAX_EMPTY, make_stepper, past_scores
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.samples import sample_rows
from step_builders import assert_close, leaves, same
from tiny_runs import CONFIG, ascii_share


def gift(rollout, columns):
    """The data's own score, none where it is negative: a NaN cannot stand in a file."""
    return jax.numpy.where(columns["gift"] < 0, jax.numpy.nan, columns["gift"])


def gift_in_python(prompts, responses, gift):
    if any(value is None or value < 0 for value in gift) and len(gift) > 1:
        raise ValueError("not all at once")
    return [float(value) if value >= 0 else float("nan") for value in gift]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two of three rows have a score."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    gifts = [(n % 7) / 4 if n % 3 else -1.0 for n in range(16)]
    rows = [{"prompt": "abcdef"[n % 6 :], "gift": gift} for n, gift in enumerate(gifts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    changes = {"data.path": str(path), "reward.on_error": "mask"}
    source = open_source(None, CONFIG.model.shape)
    return replace(CONFIG, model=resolve_options(CONFIG.model, source), **changes)


def prepared(config, reward):
    """(run, stepper, state, frozen, batch(step))"""
    source = open_source(None, CONFIG.model.shape)
    dataset = data.load_dataset(config.data, source.tokenizer, vocab_size=259)
    run, state, frozen = prepare(Opened(config, source, None, dataset, parse_rewards(reward)))
    batch = functools.partial(data.make_batch, dataset, config, pad_id=run.pad_id, width=run.width)
    return run, make_stepper(run), state, frozen, batch


def test_fused_and_cut_agree(config):
    finished, states = [], []
    for reward in (gift, gift_in_python):
        run, stepper, state, frozen, batch = prepared(config, reward)
        done = []
        for step in range(2):
            state, one = stepper.dispatch(state, frozen, step, batch(step))
            done.append((one, sample_rows(run, one, 8)))
        finished.append(done)
        states.append(state)
    own = ("reward/gift", "reward/failed")
    plain = lambda metrics: {k: v for k, v in metrics.items() if not k.startswith(own)}
    for (one, samples), (other, same_samples) in zip(*finished, strict=True):
        assert_close(plain(one.metrics), plain(other.metrics), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(one.scores_B, other.scores_B)
        gifts = np.array([run.dataset.columns["gift"][row] for row in one.prompts.prompt_index_B])
        np.testing.assert_array_equal(one.scores_B, np.where(gifts < 0, np.nan, gifts))
        assert one.failed == {} and sorted(other.failed) == np.flatnonzero(gifts < 0).tolist()
        assert 0 < one.metrics["reward/masked"] == len(other.failed) < 8
        assert other.metrics["reward/failed"] == len(other.failed)
        assert all("gift_in_python" in why or "finite" in why for why in other.failed.values())
        assert samples == same_samples and "nan" in {row["score"] for row in samples}
    assert_close(states[0].params, states[1].params, rtol=1e-6, atol=1e-6)
    assert_close(states[0].opt_state, states[1].opt_state, rtol=1e-6, atol=1e-6)
    assert all(np.isfinite(x).all() for x in leaves(states[1]).values())


def test_a_reward_that_gives_nothing_for_good_ends_the_run(config):
    """One batch without any score teaches nothing; the third in a row ends the run."""
    broken = []

    def reward(prompts, responses):
        if broken:
            raise ValueError("out of order")
        return {"a": [float(i) for i in range(len(prompts))], "b": [0.0] * len(prompts)}

    _, stepper, state, frozen, batch = prepared(config, reward)
    state, _ = stepper.dispatch(state, frozen, 0, batch(0))
    step = 1
    for rest in (MAX_EMPTY - 1, MAX_EMPTY - 1):  # a good batch between them
        broken.append(True)
        for _ in range(rest):
            before = jax.tree.map(np.array, (state.params, state.opt_state))  # it is donated
            state, done = stepper.dispatch(state, frozen, step, batch(step))
            assert same((state.params, state.opt_state), before)
            assert done.metrics["reward/masked"] == 8 and len(done.failed) == 8
            assert np.isnan(done.metrics["reward/reward/a"]) and np.isnan(done.scores_B).all()
            step += 1
        broken.clear()
        state, done = stepper.dispatch(state, frozen, step, batch(step))
        assert done.failed == {} and not same(state.params, before[0])
    broken.append(True)
    with pytest.raises(RewardError, match="3 batches in a row in which no row.*out of order"):
        for _ in range(MAX_EMPTY):
            state, _ = stepper.dispatch(state, frozen, step, batch(step))


def test_a_first_batch_without_any_score_ends_the_run(config):
    def reward(prompts, responses):
        raise ValueError("out of order")

    _, stepper, state, frozen, batch = prepared(config, reward)
    with pytest.raises(RewardError, match="no row of the first batch has a score.*out of order"):
        stepper.dispatch(state, frozen, 0, batch(0))


def test_the_names_of_scores_are_known_from_the_log():
    """Whatever else a column is called."""

    def named(name):
        def reward(prompts, responses):
            return []

        reward.__name__ = name
        return reward

    parts = parse_rewards([*map(named, ["loss", "masked", "texts", "text"]), ascii_share])
    run: Any = SimpleNamespace(parts=parts, config=CONFIG)
    logged = ["reward/loss", "reward/masked", "reward/texts/b", "reward/texts/a c", "reward/text"]
    row = dict.fromkeys(["loss/policy_avg", *logged, "reward/ascii_share", "texts/time"], 0.5)
    names = ["loss", "masked", "texts/b", "texts/a c", "text"]
    for failed, empty in [([0, 8], 1), ([8, 8], 2), ([8, 7], 0), ([8, None], 0), ([8, 0, 8, 8], 2)]:
        rows = [row | ({} if count is None else {"reward/failed": count}) for count in failed]
        assert past_scores(run, rows) == (names, empty)
    assert past_scores(run, []) == FRESH == ([], 0)
