"""Parts by tokens: every row in exactly one, none over its size, sums and results the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.parts import (
    ByTokens,
    map_over_tokens,
    plan,
    run_part,
    sum_over_rows,
    sum_over_tokens,
    token_sizes,
)

WIDTH = 40


def recipe_of(rows, shards, most, count=4, part_rows=None):
    """`part_rows`: at most so many rows in a part; None: any number."""
    sizes = token_sizes(rows // shards, WIDTH, most, count)
    return ByTokens(shards, most, sizes, part_rows or rows // shards)


def lengths(rows, seed):
    rng = np.random.default_rng(seed)
    spread = (rng.geometric(0.1, rows), rng.integers(0, WIDTH + 1, rows), np.full(rows, WIDTH))
    return jnp.asarray(np.minimum(spread[seed % 3], WIDTH), jnp.int32)


@pytest.mark.parametrize(
    "rows, shards, most, part_rows",
    [
        (12, 1, 1, None),
        (12, 1, 4, None),
        (12, 1, 4, 5),
        (12, 2, 3, None),
        (12, 2, 3, 4),
        (16, 4, 2, None),
        (16, 2, 8, 1),
    ],
)
def test_every_row_is_in_one_part_that_fits_it_on_every_shard(rows, shards, most, part_rows):
    recipe = recipe_of(rows, shards, most, part_rows=part_rows)

    def part(tokens_B, index):
        chosen = plan(recipe, tokens_B)
        numbered = jnp.arange(rows), chosen.tokens_B
        run = lambda these, present_B, size: (*these, present_B, jnp.int32(size))
        return chosen, *run_part(recipe, chosen, index, numbered, run)

    part = jax.jit(part)
    for seed in range(12):
        tokens_B, seen_B = lengths(rows, seed), np.zeros(rows, int)
        count = int(part(tokens_B, 0)[0].count)
        assert 1 <= count <= most
        for index in range(count):
            chosen, place_N, tokens_N, present_N, size = jax.device_get(part(tokens_B, index))
            assert len(place_N) == shards * recipe.rows
            seen_B[chosen.order_B[place_N[present_N]]] += 1
            load_Z = np.where(present_N, tokens_N, 0).reshape(shards, -1).sum(1)
            smallest = min(s for s in recipe.sizes if s >= load_Z.max())
            assert size == smallest
        assert np.all(seen_B == (np.asarray(tokens_B) > 0))
        if count > -(-rows // shards // recipe.rows):  # one part fewer would not have done
            tokens_ZR = np.asarray(chosen.tokens_B).reshape(shards, -1)
            fewer = max(tokens_ZR[:, i :: count - 1].sum(1).max() for i in range(count - 1))
            assert fewer > recipe.sizes[-1]


def test_rows_are_dealt_evenly_and_sorted_on_each_shard():
    recipe = recipe_of(16, 4, 2)
    for seed in range(6):
        chosen = plan(recipe, lengths(16, seed))
        tokens_ZR = np.asarray(chosen.tokens_B).reshape(4, -1)
        assert np.all(np.diff(tokens_ZR, axis=1) <= 0)
        assert np.ptp(tokens_ZR.sum(1)) <= WIDTH
        assert sorted(np.asarray(chosen.order_B)) == list(range(16))


def test_sizes_fall_by_a_constant_factor_and_the_largest_holds_all():
    for rows, most, count in ((16, 1, 5), (7, 2, 3), (1, 1, 1), (64, 4, 12)):
        sizes = token_sizes(rows, WIDTH, most, count)
        assert sizes[-1] == -(-rows // most) * WIDTH and len(sizes) <= count
        assert all(a < b <= a / 0.85 + 16 for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize(
    "shards, most, part_rows", [(1, 1, None), (1, 4, None), (1, 4, 5), (2, 3, None), (2, 3, 4)]
)
def test_sums_and_results_are_those_of_all_rows_together(shards, most, part_rows):
    recipe = recipe_of(12, shards, most, part_rows=part_rows)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    for seed in range(6):
        x_B = jax.random.normal(jax.random.key(seed), (12,))
        tokens_B = lengths(12, seed)
        rows = {"x": x_B, "tokens": tokens_B}
        double = lambda rows, present_B, size: jnp.where(present_B, 2 * rows["x"], 0.0)

        def total(*part, double=double):
            return double(*part).sum(), jnp.float32(1)

        sums = jax.jit(
            functools.partial(sum_over_tokens, recipe, lambda r: r["tokens"], function=total,
                              add=add)
        )(rows)  # fmt: skip
        real_B = np.where(tokens_B > 0, x_B, 0)
        np.testing.assert_allclose(sums[0], 2 * real_B.sum(), rtol=1e-5, atol=1e-5)
        assert sums[1] == plan(recipe, tokens_B).count
        mapped = functools.partial(map_over_tokens, recipe, function=double)
        np.testing.assert_allclose(jax.jit(mapped)(tokens_B, rows), 2 * real_B, rtol=1e-6)


def test_parts_by_rows_sum_to_the_whole():
    rows = jnp.arange(12.0)
    add = lambda a, b: a + b
    for count in (1, 2, 3, 12):
        assert sum_over_rows(count, rows, jnp.sum, add) == 66
