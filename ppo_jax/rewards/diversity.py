"""Diversity rewards on the device: how many of a response's n-grams of tokens are new in it.

Exact: n-grams are compared token by token, never by a hash. All n-grams of a row are sorted as
n-tuples, those in the same place of the response's order staying so, and each is compared with its
neighbour: O(n T log T) comparisons and n + 1 sorted arrays of [B, T] int32 a call, where comparing
all pairs would take O(n T^2).
"""

import jax.numpy as jnp
from jax import lax

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.length import no_tables, without_stop
from ppo_jax.types import Array, PyTree, Rollout

MAX_N = 16  # the program sorts n arrays at once


def distinct(n: int = 2, *, name: str | None = None) -> DeviceReward:
    """The reward distinct-n: different n-grams over all n-grams of a response; float32 [B].

    Li et al. 2016 (arXiv 1510.03055), who divide by the tokens of all responses together; here a
    response without repetition scores 1 whatever its length. The stop token is no part of an
    n-gram; a masked token is in none, nor is one that would span it. A response without n-grams,
    shorter than n, scores 0: saying nothing must not be the best way to avoid repetition. Short
    responses still repeat less than long ones. `name` is `distinct{n}` unless given.

    Raises `ConfigError` unless n is a whole number from 1 to `MAX_N`.
    """
    name = f"distinct{n}" if name is None else name
    _check_n(n, name)

    def score(rollout: Rollout, columns: dict[str, Array], tables: PyTree) -> Array:
        repeats_B, grams_B = _counts(rollout, n)
        return (grams_B - repeats_B) / jnp.maximum(grams_B, 1.0)

    return DeviceReward(name, score, no_tables)


def repetition(n: int = 3, *, per_token: bool = False, name: str | None = None) -> DeviceReward:
    """The share of a response's n-grams that stand earlier in it; float32 [B]. For weights < 0.

    1 - distinct-n, the seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319); 0 for a response
    without n-grams. What an n-gram is, and `name`, are as in `distinct`.

    `per_token` gives rewards [B, T] instead: 1 on each token that completes an n-gram seen before,
    0 elsewhere. They add up to the number of repeated n-grams, not to their share, so what a token
    earns depends on nothing after it; the weight is to be chosen smaller. (Yeo et al. 2025, arXiv
    2502.03373, penalise every token of a repeated n-gram; the earlier ones did not yet repeat it.)

    Raises `ConfigError` unless n is a whole number from 1 to `MAX_N`.
    """
    name = f"repetition{n}" if name is None else name
    _check_n(n, name)

    def score(rollout: Rollout, columns: dict[str, Array], tables: PyTree) -> Array:
        if per_token:
            repeated_BT, at_BT, _ = _repeats(rollout, n)
            # Back into the order of the response.
            _, repeated_BT = lax.sort((at_BT, repeated_BT), dimension=1, num_keys=1)
            return repeated_BT.astype(jnp.float32)
        repeats_B, grams_B = _counts(rollout, n)
        return repeats_B / jnp.maximum(grams_B, 1.0)

    return DeviceReward(name, score, no_tables)


def _counts(rollout: Rollout, n: int) -> tuple[Array, Array]:
    """float32 [B]: n-grams of each row that stand earlier in it, and all its n-grams."""
    repeated_BT, _, whole_BT = _repeats(rollout, n)
    count = lambda x_BT: jnp.sum(x_BT, axis=1, dtype=jnp.float32)
    return count(repeated_BT), count(whole_BT)


def _repeats(rollout: Rollout, n: int) -> tuple[Array, Array, Array]:
    """(bool, the n-gram repeats an earlier one; int32, the place of its last token; bool, it is
    one), each [B, T], in the order of the sorted n-grams."""
    counted_BT = without_stop(rollout) > 0
    whole_BT = counted_BT
    for k in range(1, n):
        whole_BT = whole_BT & _later(counted_BT, k)
    # An n-gram stands where its last token is. Where there is none, -1 is no token.
    ids_BT = rollout.response_ids_BT
    keys = [jnp.where(whole_BT, _later(ids_BT, k), -1) for k in range(n)]
    at_BT = lax.broadcasted_iota(jnp.int32, ids_BT.shape, 1)
    # Stable: of equal n-grams the earliest comes first.
    *keys, at_BT = lax.sort((*keys, at_BT), dimension=1, is_stable=True, num_keys=n)
    whole_BT = keys[0] >= 0
    repeated_BT = whole_BT
    for key_BT in keys:
        before_BT = jnp.pad(key_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        repeated_BT = repeated_BT & (key_BT == before_BT)
    return repeated_BT, at_BT, whole_BT


def _later(x_BT: Array, k: int) -> Array:
    """Each row moved k places to the right, zeros (False) coming in."""
    return jnp.pad(x_BT, ((0, 0), (k, 0)))[:, : x_BT.shape[1]]


def _check_n(n: int, name: str) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_N:
        raise ConfigError(f"reward {name}: n must be a whole number from 1 to {MAX_N}, got {n!r}")
