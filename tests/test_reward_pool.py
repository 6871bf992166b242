"""Rewards in processes of their own: what they do to themselves costs their row, and never more
than the time that is theirs."""

import contextlib
import functools
import time
from pathlib import Path

import numpy as np
import pytest

import reward_toys
from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows, call
from ppo_jax.rewards.pool import Pool, open_pool

TOYS = Path(reward_toys.__file__)
PARTS = {part.name: part for part in parse_rewards(reward_toys.REWARD)}
SLACK = 5.0  # seconds after the limit of time, at most
HANGS = ["spins", "sleeps", "locks", "backtracks", "stops"]
DEATHS = {
    "leaves": "exit code 3",
    "is_killed": "signal 9",
    "aborts": "signal 11",
    "reads_nowhere": "signal 11",
    "closes": "exit code 1",
    "closes_and_spins": "it closed its pipe",
    "leaves_a_child": "exit code 3",
}


def rows_of(*responses, first=0, **columns) -> Rows:
    numbers = [first + i for i in range(len(responses))]
    prompts = [f"prompt {n}" for n in numbers]
    return Rows(numbers, prompts, list(responses), columns)


GOOD = rows_of("a", "bb", "ccc")
BAD = rows_of("a", "bb", "ccc", "bad", "dddd", first=7)  # row 10


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "reward.log"


@pytest.fixture(scope="module")
def pool_of(log):
    """The pool with some options, open until the last test here."""
    with contextlib.ExitStack() as stack:
        open_it = functools.cache(
            lambda *options: stack.enter_context(
                open_pool(TOYS, log, RewardOptions(**dict(options)))
            )
        )
        yield lambda **options: open_it(*sorted(options.items()))


def ask(pool: Pool, name: str, rows: Rows, seed: int = 0):
    """(scores, failed, seconds)"""
    for worker in pool.workers:
        worker.get_ready()  # no part of the time that a reward has
    began = time.monotonic()
    found = pool.call(PARTS[name], rows, seed)
    return found.scores, found.failed, time.monotonic() - began


def refused(pool: Pool, name: str, rows: Rows) -> str:
    with pytest.raises(RewardError) as caught:
        ask(pool, name, rows)
    assert caught.value.exit_code == 7 and "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected[name])


ODD = ["", "naïve 你好 🙂", "\ud800 alone \udfff", "a\u2028b\r\nc\x00d", "'\"\\"]
CHAT = [[{"role": "user", "content": text}, {"role": "tool", "content": None}] for text in ODD]
CELLS = [None, float("nan"), 2**70, {"a": [1, 2.5, True]}, "\udc80"]


@pytest.mark.parametrize(
    "options", [{}, {"workers": 3}, {"workers": 2, "row_timeout": 30.0}], ids=str
)
def test_scores_are_those_of_this_process(pool_of, options):
    pool = pool_of(**options)
    plain = rows_of("a", "bbb", "", "cc", "dddddddd", level=[1, 2, 2.5, -1, 0], other=[0] * 5)
    odd = Rows([0, 1, 2, 3, 4], ODD, ODD[::-1], {"cells": CELLS, "names": ODD})
    chat = Rows([0, 1, 2, 3, 4], CHAT, ODD, {"seeds": [2**32 - 1, 0, 1, 2, 3]})
    for name, rows in [("numbers", plain), ("seeing", odd), ("seeing", chat), ("seeing", plain)]:
        for some in (rows, rows.pick([3]), rows.pick([4, 0])):
            scores, failed, _ = ask(pool, name, some)
            assert failed == {}
            assert_same(scores, call(PARTS[name], some).scores)


def test_draws_are_those_of_the_seed(pool_of):
    """With several processes as with one where rows go one by one."""
    one = pool_of()
    first, _, _ = ask(one, "drawing", GOOD, seed=2**32 - 1)
    assert len({*first["drawing/python"], *first["drawing/numpy"]}) == 6
    ask(one, "drawing", GOOD, seed=5)
    assert_same(ask(one, "drawing", GOOD, seed=2**32 - 1)[0], first)
    assert ask(one, "drawing", GOOD, seed=4)[0]["drawing/python"][0] != first["drawing/python"][0]
    by_row = [ask(pool_of(workers=n, row_timeout=30.0), "drawing", GOOD, 3)[0] for n in (1, 2)]
    assert_same(*by_row)
    assert len(set(by_row[0]["drawing/numpy"])) == 3


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_ends_with_its_time(pool_of, log, name):
    pool = pool_of(timeout=1.0)
    began = time.monotonic()
    message = refused(pool, name, BAD)
    assert 1.0 <= time.monotonic() - began < 1.0 + SLACK
    assert f"reward {name} did not answer in time" in message
    assert "it stood at row 10 (prompt 'prompt 10')" in message and str(log) in message
    if name != "stops":  # which cannot say any more where it is
        assert f" in {name}\n" in log.read_text(errors="replace")
    assert_same(ask(pool, name, GOOD)[0], {name: np.float32([1, 2, 3])})


def test_a_row_has_its_own_time(pool_of):
    message = refused(pool_of(row_timeout=1.0), "spins", BAD)
    assert "reward spins did not answer in time" in message and "row 10" in message


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_is_seen_at_once(pool_of, name):
    pool = pool_of()
    began = time.monotonic()
    message = refused(pool, name, BAD)
    assert time.monotonic() - began < SLACK + 5  # it was started again before
    # Of one that closed its output Python may make exit code 120.
    assert f"reward {name} ended its process ({DEATHS[name]}" in message
    where = "a batch of 5 rows, the first of them row 7" if name == "closes" else "row 10"
    assert f"{where} (prompt 'prompt " in message
    assert_same(ask(pool, name, GOOD)[0], {name: np.float32([1, 2, 3])})


def test_what_it_raised_is_in_the_log(pool_of, log):
    message = refused(pool_of(), "raises", BAD)
    what = "reward raises raised on row 10 (prompt 'prompt 10'): ValueError: no luck at all"
    assert message == f"{what} (traceback: {log})"
    written = log.read_text(errors="replace")
    assert "Traceback (most recent call last):\n" in written and "ValueError: no luck\n" in written


@pytest.mark.parametrize("name", reward_toys.RETURNS)
def test_unusable_answers_are_what_they_are_in_this_process(pool_of, name):
    with pytest.raises(RewardError) as here:
        call(PARTS[name], GOOD)
    message = refused(pool_of(), name, GOOD)
    assert message.startswith(f"{here.value} (traceback: ") and "row" in message
    expected = call(PARTS[name], GOOD, on_error="mask")
    scores, failed, _ = ask(pool_of(on_error="mask"), name, GOOD)
    assert_same(scores, expected.scores)
    assert failed == expected.failed and list(failed)


def test_prints_go_to_the_log(pool_of, log):
    before = log.stat().st_size
    for _ in range(2):  # the second finds its output closed, which is what it raises then
        with contextlib.suppress(RewardError):
            assert_same(ask(pool_of(), "printing", GOOD)[0], {"printing": np.ones(3, np.float32)})
    assert log.stat().st_size - before > 20_000_000
    assert_same(ask(pool_of(), "spins", GOOD)[0], {"spins": np.float32([1, 2, 3])})


def test_a_child_that_was_lost_answers_nothing(pool_of):
    for rows in (GOOD, BAD, GOOD):
        expected = [len(text) for text in rows.responses]
        assert ask(pool_of(), "forking", rows)[0]["forking"].tolist() == expected


MASKED = [name for name in PARTS if name in {fault.__name__ for fault in reward_toys.FAULTS}]


def assert_masked(pool: Pool, name: str, rows: Rows) -> None:
    """Exactly the rows that say `bad` have no score, and the next batch has all."""
    scores, failed, seconds = ask(pool, name, rows)
    expected = [np.nan if text == "bad" else len(text) for text in rows.responses]
    assert_same(scores, {name: np.float32(expected)})
    bad = [n for n, text in zip(rows.numbers, rows.responses, strict=True) if text == "bad"]
    assert sorted(failed) == bad and seconds < pool.options.timeout + SLACK
    scores, failed, _ = ask(pool, name, GOOD)
    assert_same(scores, {name: np.float32([1, 2, 3])})
    assert failed == {}


@pytest.mark.parametrize("name", MASKED)
def test_masked_are_the_bad_rows_alone(pool_of, name):
    assert_masked(pool_of(on_error="mask", row_timeout=1.0, timeout=40.0), name, BAD)


def test_masked_in_every_share(pool_of):
    rows = rows_of("bad", "a", "bad", "bb", "bad", "bad", "ccc")
    pool = pool_of(on_error="mask", row_timeout=1.0, timeout=40.0, workers=2)
    assert_masked(pool, "backtracks", rows)
    assert_masked(pool, "is_killed", rows)


@pytest.mark.parametrize("name", [*DEATHS, "raises", "locks", "all_at_once"])
def test_masked_without_a_limit_for_rows(pool_of, name):
    """Half of the time is for the batch; the row it hung at is not asked again, where it is
    known."""
    assert_masked(pool_of(on_error="mask", timeout=12.0), name, BAD)


def test_masked_although_two_rows_hang(pool_of):
    rows = rows_of("a", "bad", "bb", "bad", "ccc")
    assert_masked(pool_of(on_error="mask", timeout=12.0), "spins", rows)


@pytest.mark.parametrize("options", [{}, {"row_timeout": 0.5}], ids=str)
def test_rows_for_which_no_time_is_left(pool_of, options):
    pool = pool_of(on_error="mask", timeout=2.0, **options)
    rows = rows_of("bb", *["bad"] * 40)
    scores, failed, seconds = ask(pool, "spins", rows)
    assert 2.0 <= seconds < 2.0 + SLACK and sorted(set(failed) - {0}) == [*range(1, 41)]
    assert "did not answer in time" in failed[1] and "row 1 " in failed[1]
    assert failed[40] == "no time was left for it"
    assert all(np.isnan(scores_B[1:]).all() for scores_B in scores.values())
    assert_same(ask(pool, "spins", GOOD)[0], {"spins": np.float32([1, 2, 3])})
