"""The length reward against the formula in plain Python."""

import math
import random

import jax
import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.length import target_length, without_stop
from reward_rows import make_rollout

T = 24


def random_rows(seed: int, count: int = 512):
    rng = random.Random(seed)
    sizes = [rng.randrange(T) for _ in range(count)]
    ended = [rng.randrange(2) == 0 for _ in range(count)]
    return [[rng.randrange(256) for _ in range(size)] for size in sizes], ended


def expected(count: int, target: float, width: float | None, floor: float | None) -> float:
    score = 1 - abs(count - target) / (max(target, 1.0) if width is None else width)
    return score if floor is None else max(score, floor)


@pytest.mark.parametrize(
    ("tokens", "width", "floor"),
    [(10, None, 0.0), (7.5, 3, -1.0), (4, 1 / 0.0003, None), (100, 5.0, -2), (0.5, None, None)],
)
def test_equals_python(tokens, width, floor):
    rows, ended = random_rows(0)
    reward = target_length(tokens, width=width, floor=floor)
    tables = reward.make_tables(None, 300)
    score = jax.jit(reward.fn)
    scores_B = score(make_rollout(rows, T, ended=ended), {}, tables)
    assert scores_B.dtype == np.float32 and scores_B.shape == (512,)
    wanted = [expected(len(row), tokens, width, floor) for row in rows]  # no stop token in `rows`
    np.testing.assert_allclose(scores_B, wanted, rtol=1e-5, atol=1e-6)
    wider = make_rollout(rows, T + 9, ended=ended, pad=3)
    np.testing.assert_array_equal(score(wider, {}, tables), scores_B)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_the_target_of_each_prompt(dtype):
    rows, ended = random_rows(1)
    targets_B = np.random.default_rng(1).integers(-1, T, len(rows)).astype(dtype)
    for width in (None, 4.0):
        reward = target_length("wanted", width=width)
        columns = {"wanted": targets_B, "other": targets_B * 0}
        scores_B = jax.jit(reward.fn)(make_rollout(rows, T, ended=ended), columns, ())
        wanted = [expected(len(row), t, width, 0.0) for row, t in zip(rows, targets_B, strict=True)]
        assert scores_B.dtype == np.float32 and np.ptp(wanted) > 0.5
        np.testing.assert_allclose(scores_B, wanted, atol=1e-6)


def test_empty_and_masked_responses():
    rollout = make_rollout([[], [], [5, 6, 7, 8]], 6, ended=[True, False, True])
    gap_BT = rollout.mask_BT * np.float32([1, 0, 1, 1, 1, 1])
    rollout = rollout._replace(mask_BT=gap_BT)
    np.testing.assert_array_equal(without_stop(rollout).sum(axis=1), [0, 0, 3])
    np.testing.assert_allclose(target_length(3).fn(rollout, {}, ()), [0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 0}, "tokens must be a finite number above 0"),
        ({"tokens": math.nan}, "got nan"),
        ({"tokens": None}, "or the name of a column, got None"),
        ({"tokens": True}, "got True"),
        ({"tokens": ""}, "the name is empty"),
        ({"tokens": 5, "width": 0.0}, "width must be"),
        ({"tokens": 5, "width": "4"}, "width must be"),
        ({"tokens": 5, "floor": 1}, "floor must be"),
        ({"tokens": 5, "floor": -math.inf}, "floor must be"),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(ConfigError, match="^reward mine: .*" + message) as caught:
        target_length(**arguments, name="mine")
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there():
    reward = target_length("wanted")
    with pytest.raises(ConfigError, match="^reward target_length: `wanted` is not a numeric"):
        jax.jit(reward.fn)(make_rollout([[1]], 4), {"other": np.zeros(1, np.int32)}, ())


def test_is_a_part_of_a_reward():
    (part,) = parse_rewards((0.5, target_length(8)))
    assert (part.name, part.weight, part.host) == ("target_length", 0.5, None)
