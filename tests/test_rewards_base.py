"""Telling rewards apart, and what happens when a host reward misbehaves."""

import functools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.rewards import host
from ppo_jax.rewards.base import DeviceReward, check_columns, parse_rewards

PROMPTS = ["first prompt", "second " + "x" * 200, [{"role": "user", "content": "third"}]]
RESPONSES = ["a", "bb", "ccc"]


def on_device(rollout, columns):
    return columns["bonus"]


def length(prompts, responses):
    return [len(response) for response in responses]


def call(function, columns=None):
    (part,) = parse_rewards(function)
    rows = host.Rows([0, 1, 2], PROMPTS, RESPONSES, {} if columns is None else columns)
    return host.call(part, rows).scores


def returning(value):
    def reward(prompts, responses):
        return value

    return reward


def test_parses_each_kind():
    own = DeviceReward("own", lambda rollout, columns, tables: tables, lambda tokenizer, size: size)
    device, python, given = parse_rewards([on_device, (0.5, length), (np.float32(-2), own)])
    assert (device.name, device.weight, device.host) == ("on_device", 1.0, None)
    assert device.device.make_tables(None, 7) == ()
    assert device.device.fn(None, {"bonus": 3}, ()) == 3
    assert (python.name, python.weight) == ("length", 0.5)
    assert (python.device, python.host) == (None, length)
    assert (given.name, given.weight, given.device) == ("own", -2.0, own)
    for single in (own, on_device, length):
        assert len(parse_rewards(single)) == 1
    assert parse_rewards((0.0, length))[0].weight == 0.0  # a pair by itself
    assert len(parse_rewards((length, on_device))) == 2


def test_names_are_unique_and_readable():
    @functools.partial
    def scaled(prompts, responses, scale=2.0):
        return [scale] * len(responses)

    class Judge:
        def __call__(self, prompts, responses, **columns):
            return [1.0] * len(responses)

    nameless = lambda prompts, responses: [0.0] * len(responses)
    rewards = [length, (2.0, length), scaled, Judge(), nameless, length]
    names = [part.name for part in parse_rewards(rewards)]
    assert names == ["length", "length_2", "scaled", "Judge", "lambda", "length_3"]


@pytest.mark.parametrize(
    ("reward", "named"),
    [
        ("sentiment", "'sentiment'"),
        (None, "None"),
        (3.0, "3.0"),
        ([], "empty"),
        (lambda responses, prompts: [], "lambda(responses, prompts)"),
        (lambda rollout: 0, "lambda(rollout)"),
        (lambda rollout, columns, tables: 0, "lambda(rollout, columns, tables)"),
        (lambda *, prompts, responses: [], "lambda(prompts, responses)"),
        (len, "len(obj)"),
        ((math.nan, length), "reward length: weight nan"),
        ((math.inf, length), "weight inf"),
        ((-(10**400), length), "weight -1000"),
        ((-(10**5000), length), "weight a value without a text (ValueError) is not a finite"),
        ((1e39, length), "weight 1e+39 is not a finite number of float32"),
        (("0.5", length), "weight '0.5'"),
        ((True, length), "weight True"),
        ([(None, length)], "weight None"),
        ([length, [length, on_device]], "is not a reward"),
        ((length, 0.5), "0.5 is not a reward"),
    ],
)
def test_anything_else_is_refused(reward, named):
    with pytest.raises(ConfigError) as caught:
        parse_rewards(reward)
    message = str(caught.value)
    assert named in message and "\n" not in message
    assert "fn(rollout, columns)" in message and "fn(prompts, responses, **columns)" in message


def test_columns_are_passed_by_keyword():
    columns = {"answer": ["1", "2", "3"], "level": [1, 2, 3], "prompts": [0, 0, 0]}
    seen = {}

    def some(prompts, responses, answer, *, level=0, other="default"):
        seen.update(answer=answer, level=level, other=other)
        return [0.0] * 3

    def every(prompts, responses, **rest):
        seen.update(rest=rest)
        return [0.0] * 3

    call(some, columns)
    assert seen == {"answer": ["1", "2", "3"], "level": [1, 2, 3], "other": "default"}
    call(every, columns)
    assert sorted(seen["rest"]) == ["answer", "level"]

    (part,) = parse_rewards(some)
    with pytest.raises(ConfigError, match=r"reward some: `answer` .*columns: level"):
        check_columns(part, ["level"])
    with pytest.raises(ConfigError, match="columns: none"):
        check_columns(part, {})
    with pytest.raises(RewardError, match=r"reward some raised on .*TypeError: .*'answer'"):
        call(some, {"level": [1, 2, 3]})  # had nobody checked
    check_columns(part, columns)
    check_columns(parse_rewards(on_device)[0], {})


@pytest.mark.parametrize(
    "value",
    [
        [0.0, 1.5, -2.0],
        (0, 1.5, -2),
        np.array([0.0, 1.5, -2.0]),
        jnp.array([0.0, 1.5, -2.0], jnp.bfloat16),
        [np.float64(0), jnp.float32(1.5), Fraction(-2)],
    ],
)
def test_numbers_of_any_kind(value):
    scores = call(returning(value))
    assert list(scores) == ["reward"]
    assert scores["reward"].dtype == np.float32
    np.testing.assert_array_equal(scores["reward"], [0.0, 1.5, -2.0])


def test_bools_and_dicts():
    np.testing.assert_array_equal(call(returning([True, False, np.True_]))["reward"], [1, 0, 1])
    scores = call(returning({"right": [True, False, True], "short": np.arange(3)}))
    assert list(scores) == ["reward/right", "reward/short"]
    np.testing.assert_array_equal(scores["reward/short"], [0, 1, 2])


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ([0, math.nan, 0], ["reward reward, row 1", "second xxx", "'nan'", "finite"]),
        ([0, 0, -math.inf], ["row 2", "third", "'-inf'"]),
        ([1e39, 0, 0], ["row 0", "first prompt", "finite"]),  # beyond float32
        ([10**400, 0, 0], ["row 0", "finite"]),
        ([0, None, 0], ["row 1", "NoneType"]),
        ([0, "1", 0], ["row 1", "type str"]),
        ([0, 1j, 0], ["row 1", "complex"]),
        ([0, [1.0], 0], ["row 1", "type list"]),
        ([0, np.ones(1), 0], ["row 1", "ndarray"]),
        (np.array([0, np.nan, 0]), ["row 1", "'nan'"]),
        ([1.0, 2.0], ["2 values for 3 rows", "row 2", "third"]),
        ([1.0] * 4, ["4 values for 3 rows", "row 0", "first prompt"]),
        ([], ["0 values for 3 rows", "row 0"]),
        (np.ones((3, 1)), ["shape (3, 1)", "3 rows", "row 0", "first prompt", "(3,)"]),
        (jnp.ones(4), ["shape (4,)", "(3,)"]),
        (None, ["returned NoneType", "row 0", "first prompt", "list of 3 numbers"]),
        (1.0, ["returned float", "list of 3 numbers"]),
        ("abc", ["returned str", "list of 3 numbers"]),
        ({1.0, 2.0, 3.0}, ["returned set"]),
        ({}, ["empty dict", "row 0", "first prompt"]),
        ({"good": [0] * 3, "bad": [0, math.nan, 0]}, ["reward reward/bad, row 1", "second"]),
        ({"bad": None}, ["reward reward/bad returned NoneType"]),
    ],
)
def test_unusable_returns(value, parts):
    with pytest.raises(RewardError) as caught:
        call(returning(value))
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message
    assert "x" * 81 not in message


def test_a_reward_that_raises_names_the_row():
    def fragile(prompts, responses, level):
        return [1 / (value - 2) for value in level]

    with pytest.raises(RewardError) as caught:
        call(fragile, {"level": [1, 2, 3]})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    message = str(caught.value)
    assert "reward fragile raised on row 1 (prompt 'second xx" in message
    assert "ZeroDivisionError" in message and "x" * 81 not in message

    def whole(prompts, responses):
        if len(prompts) > 1:
            raise ValueError("two\nlines")
        return [0.0]

    with pytest.raises(RewardError, match="batch of 3 rows.*first prompt.*ValueError: two lines$"):
        call(whole)
