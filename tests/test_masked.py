"""Masked mean, variance and whitening against float64 numpy on the gathered real entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.masked import masked_mean, masked_var, masked_whiten


def cases():
    """(x, mask) in float64: shapes, offsets, scales; rows empty, full and with holes."""
    rng = np.random.default_rng(0)
    for index in range(120):
        shape = [(1, 1), (3, 1), (1, 7), (4, 5), (6, 11)][index % 5]
        x = rng.normal(size=shape) * 10.0 ** rng.integers(-2, 3) + rng.normal() * 5
        mask = (rng.random(shape) < rng.random()).astype(float)
        mask[rng.integers(shape[0])] = index % 2  # a row that is empty, or full
        yield x.astype(np.float32).astype(float), mask


def as_jax(x, mask, garbage=0.0):
    return jnp.asarray(np.where(mask > 0, x, garbage), jnp.float32), jnp.asarray(mask, jnp.float32)


def numpy_var(real, ddof):
    if real.size == 0:
        return 0.0
    return ((real - real.mean()) ** 2).sum() / max(real.size - ddof, 1)


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan, np.inf, -np.inf])
def test_mean_and_variance(garbage):
    for x, mask in cases():
        real = x[mask > 0]
        args = as_jax(x, mask, garbage)
        mean = real.mean() if real.size else 0.0
        scale = np.abs(real).max() if real.size else 0.0
        np.testing.assert_allclose(masked_mean(*args), mean, rtol=1e-5, atol=1e-6 * scale)
        for unbiased in (True, False):
            var = masked_var(*args, unbiased=unbiased)
            expected = numpy_var(real, int(unbiased))
            np.testing.assert_allclose(var, expected, rtol=1e-4, atol=1e-11 * scale**2)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_whiten(shift_mean, unbiased):
    for x, mask in cases():
        real = x[mask > 0]
        if real.size < 2:
            continue
        mean = real.mean()
        expected = (x - mean) / np.sqrt(numpy_var(real, int(unbiased)) + 1e-8)
        expected = np.where(mask > 0, expected + (0.0 if shift_mean else mean), 0.0)
        for garbage in (0.0, np.nan):
            white = masked_whiten(
                *as_jax(x, mask, garbage), shift_mean=shift_mean, unbiased=unbiased
            )
            tolerance = 1e-4 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(white, expected, atol=tolerance)
            assert np.all(np.asarray(white)[mask == 0] == 0)


def test_whitened_moments_and_ddof():
    x, mask = next(case for case in cases() if case[1].sum() > 20)
    white = np.asarray(masked_whiten(*as_jax(x, mask)), float)[mask > 0]
    assert abs(white.mean()) < 1e-5
    assert abs(white.std(ddof=1) - 1) < 1e-4
    kept = np.asarray(masked_whiten(*as_jax(x, mask), shift_mean=False), float)[mask > 0]
    assert abs(kept.mean() - x[mask > 0].mean()) < 1e-4 * abs(x).max()


def test_whiten_is_over_the_whole_array_not_per_row():
    x = jnp.asarray([[0.0, 1.0], [10.0, 11.0]])
    white = masked_whiten(x, jnp.ones_like(x))
    assert white[0, 1] < 0 < white[1, 0]


def test_empty_mask_gives_zeros():
    x, mask = as_jax(np.full((3, 4), 5.0), np.zeros((3, 4)), np.nan)
    assert masked_mean(x, mask) == 0
    assert masked_var(x, mask) == 0
    assert masked_var(x, mask, unbiased=False) == 0
    assert np.all(np.asarray(masked_whiten(x, mask)) == 0)


def test_one_element():
    mask = np.zeros((2, 3))
    mask[1, 2] = 1
    x, mask_jax = as_jax(np.full((2, 3), 7.0), mask, np.nan)
    assert masked_mean(x, mask_jax) == 7
    assert masked_var(x, mask_jax) == 0
    np.testing.assert_array_equal(masked_whiten(x, mask_jax), np.zeros((2, 3)))
    np.testing.assert_array_equal(masked_whiten(x, mask_jax, shift_mean=False), 7 * mask)


def test_more_padding_changes_nothing():
    for x, mask in list(cases())[:40]:
        pad = ((1, 2), (3, 1))
        wide = np.pad(x, pad, constant_values=99.0), np.pad(mask, pad)
        np.testing.assert_allclose(
            masked_whiten(*as_jax(*wide))[1:-2, 3:-1], masked_whiten(*as_jax(x, mask)), atol=2e-4
        )


def test_eps_keeps_a_constant_finite():
    x = jnp.full((2, 3), 4.0)
    np.testing.assert_allclose(masked_whiten(x, jnp.ones_like(x)), np.zeros((2, 3)), atol=1e-6)
    x = jnp.asarray([[1.0, 3.0]])  # variance 2
    np.testing.assert_allclose(
        masked_whiten(x, jnp.ones_like(x), eps=2.0), [[-0.5, 0.5]], rtol=1e-6
    )


def test_gradients_ignore_masked_entries():
    x, mask = as_jax(np.arange(6.0).reshape(2, 3), np.array([[1, 1, 0], [0, 1, 1]]), np.nan)
    gradient = jax.grad(lambda x: masked_mean(x, mask) + masked_var(x, mask))(x)
    real = np.array([0.0, 1.0, 4.0, 5.0])
    expected = np.zeros((2, 3))
    expected[np.asarray(mask) > 0] = 0.25 + 2 * (real - real.mean()) / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
