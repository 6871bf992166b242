"""Distinct and repeated n-grams against plain Python sets."""

import random

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.diversity import MAX_N, distinct, repetition
from reward_rows import STOP, make_rollout

COUNT, T = 12_000, 20  # rows of one compiled shape


def repeats_of(row, n: int) -> list[int]:
    """1 on each token that completes an n-gram which stands earlier in the row."""
    seen, found = set(), [0] * len(row)
    for end in range(n, len(row) + 1):
        gram = tuple(row[end - n : end])
        found[end - 1] = int(gram in seen)
        seen.add(gram)
    return found


def share_of(row, n: int) -> float:
    grams = len(row) - n + 1
    return sum(repeats_of(row, n)) / grams if grams > 0 else 0.0


def distinct_of(row, n: int) -> float:
    grams = [tuple(row[at : at + n]) for at in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@pytest.fixture(scope="module")
def rows():
    """Any length from 0, few letters or many, some that are the stop token's own id."""
    rng = random.Random(0)
    found = []
    for _ in range(COUNT):
        letters = rng.choice([[0], [0, 1], [0, 1, STOP], [*range(6)], [0, 48_000, 250_000]])
        found.append([rng.choice(letters) for _ in range(rng.randrange(T))])
    return found, [rng.randrange(2) == 0 for _ in range(COUNT)]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equals_python_sets(rows, n):
    rows, ended = rows
    rollout = make_rollout(rows, T, ended=ended)
    both = lambda rollout: (distinct(n).fn(rollout, {}, ()), repetition(n).fn(rollout, {}, ()))
    distinct_B, share_B = jax.jit(both)(rollout)
    wanted_B, wanted_share_B = [[f(row, n) for row in rows] for f in (distinct_of, share_of)]
    assert distinct_B.dtype == share_B.dtype == np.float32
    assert distinct_B.shape == (COUNT,) and np.mean(np.asarray(wanted_share_B) > 0) > 0.2
    np.testing.assert_allclose(distinct_B, wanted_B, rtol=1e-6)
    np.testing.assert_allclose(share_B, wanted_share_B, rtol=1e-6)

    tokens_BT = jax.jit(repetition(n, per_token=True).fn)(rollout, {}, ())
    wanted_BT = np.array([repeats_of(row, n) + [0] * (T - len(row)) for row in rows])
    assert tokens_BT.dtype == np.float32
    np.testing.assert_array_equal(tokens_BT, wanted_BT)


def test_padding_does_not_count(rows):
    rows, ended = rows[0][:256], rows[1][:256]
    plain = make_rollout(rows, T, ended=ended)
    junk = np.random.default_rng(0).integers(0, 2, (256, T + 13))
    wider = make_rollout(rows, T + 13, ended=ended, junk=junk)
    score = jax.jit(distinct(2).fn)
    np.testing.assert_array_equal(score(plain, {}, ()), score(wider, {}, ()))
    score = jax.jit(repetition(2, per_token=True).fn)
    tokens_BT = score(wider, {}, ())
    np.testing.assert_array_equal(score(plain, {}, ()), tokens_BT[:, :T])
    assert not np.any(tokens_BT[:, T:])


def test_rows_without_n_grams():
    rollout = make_rollout([[], [], [7], [7, 7]], 4, ended=[True, False, False, True])
    for n in (3, 6):  # the second longer than T
        for reward in (distinct(n), repetition(n), repetition(n, per_token=True)):
            scores = jax.jit(reward.fn)(rollout, {}, ())
            np.testing.assert_array_equal(scores, np.zeros_like(scores))


def test_no_n_gram_spans_what_is_masked():
    rollout = make_rollout([[1, 2, 1, 2, 1, 2]], 7)
    gap = rollout._replace(mask_BT=np.float32([[1, 1, 1, 0, 1, 1, 1]]))
    np.testing.assert_allclose(jax.jit(distinct(2).fn)(gap, {}, ()), [2 / 3])  # 12 21 | 12
    tokens_BT = jax.jit(repetition(2, per_token=True).fn)(gap, {}, ())
    np.testing.assert_array_equal(tokens_BT, [[0, 0, 0, 0, 0, 1, 0]])


def test_vmap_and_sharding(rows):
    rows, ended = rows[0][:64], rows[1][:64]
    rollout = make_rollout(rows, T, ended=ended)
    split = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, split), rollout)
    stacked = jax.tree.map(lambda x: x.reshape(4, 16, *x.shape[1:]), rollout)
    score = jax.jit(lambda rollout: repetition(2, per_token=True).fn(rollout, {}, ()))
    wanted_BT = score(rollout)
    np.testing.assert_array_equal(score(sharded), wanted_BT)
    nested = jax.jit(jax.vmap(score))(stacked)
    np.testing.assert_array_equal(nested.reshape(wanted_BT.shape), wanted_BT)


@pytest.mark.parametrize("n", [0, -1, MAX_N + 1, 2.0, "2", None, True])
@pytest.mark.parametrize("make", [distinct, repetition])
def test_unusable_n(make, n):
    with pytest.raises(ConfigError, match="^reward mine: n must be a whole number") as caught:
        make(n, name="mine")
    assert "\n" not in str(caught.value)


def test_names():
    parts = parse_rewards([distinct(), distinct(1), (-0.5, repetition()), repetition(4, name="r")])
    assert [part.name for part in parts] == ["distinct2", "distinct1", "repetition3", "r"]
