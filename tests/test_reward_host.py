"""A host reward called in this process: which row is at fault, and what becomes of it."""

import copy
import math
import time

import numpy as np
import pytest

from ppo_jax.errors import RewardError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import HostScores, Rows, Watched, call, join

PROMPTS = ["zero", "one", "two", "three"]
RESPONSES = ["1", "2", "x", "4"]  # the third is no number
NUMBERS = [10, 11, 12, 13]  # of the rows in their batch
ROWS = Rows(NUMBERS, PROMPTS, RESPONSES, {"level": [1, 1, 0, 1], "other": [0] * 4})


def part_of(function):
    (part,) = parse_rewards(function)
    return part


def masked(function, rows=ROWS, **options) -> HostScores:
    return call(part_of(function), rows, on_error="mask", **options)


def by_responses(prompts, responses):
    return [float(text) for text in responses]


def by_prompts(prompts, responses):
    return [float(RESPONSES[PROMPTS.index(prompt)]) for prompt in prompts]


def by_column(prompts, responses, level):
    return [1 / value for value in level]


def by_zip(prompts, responses, level):
    return [value / float(text) for text, value in zip(responses, level, strict=True)]


def by_index(prompts, responses):
    return [float(responses[i]) for i in range(len(prompts))]


def by_numpy_index(prompts, responses):
    return [float(responses[i]) for i in np.arange(len(prompts))]


def by_index_from_behind(prompts, responses):
    return [float(responses[-i]) for i in range(1, len(prompts) + 1)][::-1]


def by_enumerate(prompts, responses):
    return [float(text) + row for row, text in enumerate(responses)]


def in_two_loops(prompts, responses):
    for prompt in prompts:
        assert prompt
    return [float(text) for text in responses]


def by_keywords(prompts, responses, **columns):
    return [1 / value for value in columns["level"]]


LOOPS = [by_responses, by_prompts, by_column, by_zip, by_index, by_numpy_index]
LOOPS += [by_index_from_behind, by_enumerate, in_two_loops, by_keywords]


@pytest.mark.parametrize("function", LOOPS, ids=lambda f: f.__name__)
def test_the_row_at_which_it_raised_is_named(function):
    with pytest.raises(RewardError, match=r"raised on row 12 \(prompt 'two'\): ") as caught:
        call(part_of(function), ROWS)
    assert caught.value.exit_code == 7 and "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError | ZeroDivisionError)


def vectorised(prompts, responses):
    return np.array(list(responses), float)


def sorted_first(prompts, responses):
    order = sorted(range(4), key=list(responses).__getitem__)
    return [float(RESPONSES[i]) for i in order]


def at_once(prompts, responses):
    raise RuntimeError(" ".join(prompts))


@pytest.mark.parametrize("function", [vectorised, sorted_first, at_once])
def test_one_that_takes_all_rows_first_names_the_batch(function):
    where = r"raised on a batch of 4 rows, the first of them row 10 \(prompt 'zero'\): "
    with pytest.raises(RewardError, match=where):
        call(part_of(function), ROWS)


@pytest.mark.parametrize("function", [*LOOPS, vectorised], ids=lambda f: f.__name__)
def test_masked_is_the_row_that_raised_alone(function):
    found = masked(function)
    (scores_B,) = found.scores.values()
    assert np.isnan(scores_B).tolist() == [False, False, True, False]
    assert scores_B.dtype == np.float32 and list(found.failed) == [12]
    assert "row 12 (prompt 'two')" in found.failed[12]
    good = ROWS.pick([0, 1, 3])
    if function is not by_enumerate:  # the others know nothing of where a row stands
        alone = call(part_of(function), good).scores[function.__name__]
        np.testing.assert_array_equal(scores_B[[0, 1, 3]], alone)


def test_without_faults_abort_and_mask_are_the_same():
    rows = ROWS.pick([3, 0, 1])
    for function in LOOPS:
        one, other = call(part_of(function), rows), masked(function, rows)
        assert one.failed == other.failed == {} and one.scores.keys() == other.scores.keys()
        for name in one.scores:
            np.testing.assert_array_equal(one.scores[name], other.scores[name])


def test_a_bad_number_fails_its_row_in_one_call():
    calls = []

    def reward(prompts, responses):
        calls.append(len(prompts))
        return [1.0, None, math.inf, "4"]

    found = masked(reward)
    np.testing.assert_array_equal(found.scores["reward"], [1, np.nan, np.nan, np.nan])
    assert calls == [4] and list(found.failed) == [11, 12, 13]
    assert "NoneType" in found.failed[11] and "finite" in found.failed[12]


def test_a_row_fails_under_every_name():
    def reward(prompts, responses):
        return {"good": [1.0] * 4, "bad": [0.0, math.nan, 0.0, 0.0], "worse": [0, 0, 0, None]}

    scores = masked(reward).scores
    assert list(scores) == ["reward/good", "reward/bad", "reward/worse"]
    for scores_B in scores.values():
        assert np.isnan(scores_B).tolist() == [False, True, False, True]


@pytest.mark.parametrize("value", [None, "1234", 1.0, np.ones((4, 1)), [1.0], [1.0] * 5, {}])
def test_an_answer_that_fits_no_row_is_asked_for_row_by_row(value):
    calls = []

    def reward(prompts, responses):
        calls.append(list(prompts))
        return value if len(prompts) > 1 else [2.0]

    found = masked(reward)
    np.testing.assert_array_equal(found.scores["reward"], [2, 2, 2, 2])
    assert found.failed == {} and calls == [PROMPTS, *([prompt] for prompt in PROMPTS)]


def test_one_that_always_raises_has_no_scores():
    def reward(prompts, responses):
        raise ValueError("two\nlines")

    found = masked(reward)
    assert found.scores == {} and list(found.failed) == NUMBERS
    for number, prompt in zip(NUMBERS, PROMPTS, strict=True):
        why = f"reward reward raised on row {number} (prompt '{prompt}'): ValueError: two lines"
        assert found.failed[number] == why


def test_rows_for_which_no_time_is_left():
    def reward(prompts, responses):
        if len(prompts) > 1:
            raise ValueError
        time.sleep(0.2)
        return [1.0]

    found = masked(reward, seconds=0.3)
    np.testing.assert_array_equal(found.scores["reward"], [1, 1, np.nan, np.nan])
    assert list(found.failed) == [12, 13]
    why = "no time was left for it alone; reward reward raised on a batch of 4 rows, the first of "
    assert all(said.startswith(why) and "ValueError" in said for said in found.failed.values())


def test_the_mark_is_told_every_row():
    told = []
    call(part_of(by_responses), ROWS.pick([0, 1]), mark=lambda *rows: told.append(rows))
    assert told == [(0,), (1,), (-1,)]
    told.clear()
    masked(by_responses, mark=lambda row, *_: told.append(row))
    # All up to the one that raised; then one by one, each with its place first and last.
    assert told == [0, 1, 2, *[0, 0], *[1, 1], 2, *[3, 3]]


def test_a_watched_list_is_a_list():
    told = []
    watched, plain = Watched("abc", told.append), ["a", "b", "c"]
    assert watched == plain and plain == watched and len(watched) == 3
    assert isinstance(watched, list) and "b" in watched and watched.index("c") == 2
    assert watched + ["d"] == ["a", "b", "c", "d"] and sorted(watched, reverse=True) == list("cba")
    assert watched[1:] == ["b", "c"] and watched[-1] == "c" and np.array(watched).tolist() == plain
    with pytest.raises(IndexError):
        watched[3]
    for other in (copy.copy(watched), copy.deepcopy(watched)):  # as pickling does it
        assert type(other) is list and other == plain
    told.clear()
    assert [*watched, *reversed(watched)] == list("abccba") and told == [0, 1, 2, -1]
    both = iter(watched), iter(watched)  # at a time
    assert [next(both[0]), next(both[0]), next(both[1])] == ["a", "b", "a"]


def test_pieces_are_put_together():
    part = part_of(by_responses)
    some = lambda *values: {"a": np.array(values, np.float32), "b": np.zeros(len(values))}
    pieces = [
        HostScores({}, {0: "no", 1: "no"}),
        HostScores(some(1, 2), {}),
        HostScores({}, {4: "why"}),
        HostScores(some(np.nan), {5: "nan"}),
    ]
    whole = join(part, pieces, [2, 2, 1, 1])
    assert whole.failed == {0: "no", 1: "no", 4: "why", 5: "nan"}
    assert list(whole.scores) == ["a", "b"]
    np.testing.assert_array_equal(whole.scores["a"], [np.nan, np.nan, 1, 2, np.nan, np.nan])
    assert np.isnan(whole.scores["b"]).tolist() == [True, True, False, False, True, False]
    assert join(part, pieces[:1], [2]) == HostScores({}, pieces[0].failed)


def test_pieces_of_different_names_are_refused():
    def reward(prompts, responses):
        if len(prompts) > 1:
            raise ValueError
        return {"long" if len(prompts[0]) > 3 else "short": [1.0]}

    with pytest.raises(RewardError, match=r"reward reward: .*\['reward/short'\] for some rows, "):
        masked(reward)
