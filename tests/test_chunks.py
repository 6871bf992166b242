"""Chunks of columns: the same results and gradients as all at once, and none for what is empty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.chunks import by_chunks

Z, M, D, V = 2, 13, 5, 7


def function(shared, columns):
    w_DV, shift = shared
    logits = columns["x"] @ w_DV + shift
    chosen = jnp.take_along_axis(logits, columns["ids"][..., None], axis=-1)[..., 0]
    return chosen, {"norm": jax.nn.logsumexp(logits, axis=-1), "none": None}


def example(seed):
    rng = np.random.default_rng(seed)
    shared = jnp.asarray(rng.normal(size=(D, V)), jnp.float32), jnp.float32(rng.normal())
    columns = {
        "x": jnp.asarray(rng.normal(size=(Z, M, D)), jnp.float32),
        "ids": jnp.asarray(rng.integers(V, size=(Z, M))),
    }
    return shared, columns


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 50])
def test_results_and_gradients_are_those_of_the_whole(chunk):
    for seed, count in ((0, M), (1, 9), (2, 1), (3, 0)):
        shared, columns = example(seed)
        there_M = (jnp.arange(M) < count)[None]
        weights = jax.random.normal(jax.random.key(seed), (2, Z, M)) * there_M[None]

        def loss(shared, x, run, weights=weights, columns=columns):
            chosen, more = run(shared, columns | {"x": x})
            return jnp.sum(weights[0] * chosen) + jnp.sum(weights[1] * more["norm"])

        chunked = lambda *a, count=count: by_chunks(function, chunk, *a, jnp.int32(count))
        results = jax.jit(chunked)(shared, columns)
        for got, want in zip(jax.tree.leaves(results), jax.tree.leaves(function(shared, columns)),
                             strict=True):  # fmt: skip
            np.testing.assert_allclose(got * there_M, want * there_M, rtol=1e-6, atol=1e-6)
        gradient = lambda run: jax.jit(jax.grad(functools.partial(loss, run=run), (0, 1)))
        got = gradient(chunked)(shared, columns["x"])
        want = gradient(function)(shared, columns["x"])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


def test_chunks_that_hold_nothing_are_not_run():
    """A function that gives NaN where it runs: what is not run is 0."""
    columns = {"x": jnp.ones((1, 12, 1))}
    nan = lambda shared, columns: jnp.full(columns["x"].shape[:2], jnp.nan)
    results = by_chunks(nan, 4, (), columns, jnp.int32(5))
    np.testing.assert_array_equal(np.isnan(results[0]), np.arange(12) < 8)
