"""Gradients of a matrix product against float64, in the form of every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import layers


@pytest.mark.parametrize("form", [layers._grad_on_cpu, layers._grad_over_rows])
@pytest.mark.parametrize("shape", [(7, 5, 3), (4, 3, 8), (1, 6, 6)])
def test_kernel_gradient(form, shape):
    N, D, F = shape
    rng = np.random.default_rng(0)
    x_ND, grad_NF = rng.normal(size=(N, D)), rng.normal(size=(N, F))
    got_DF = jax.jit(form)(jnp.float32(x_ND), jnp.float32(grad_NF))
    np.testing.assert_allclose(got_DF, x_ND.T @ grad_NF, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_gradients_of_a_product(lead):
    rng = np.random.default_rng(1)
    x, kernel_DF = rng.normal(size=(*lead, 5)), rng.normal(size=(5, 4))
    along = rng.normal(size=(*lead, 4))
    value = lambda x, kernel_DF: jnp.sum(layers.product(None, x, kernel_DF) * jnp.float32(along))
    from_x, from_kernel = jax.jit(jax.grad(value, (0, 1)))(jnp.float32(x), jnp.float32(kernel_DF))
    np.testing.assert_allclose(from_x, along @ kernel_DF.T, rtol=1e-5, atol=1e-6)
    rows = lambda y: y.reshape(-1, y.shape[-1])
    np.testing.assert_allclose(from_kernel, rows(x).T @ rows(along), rtol=1e-5, atol=1e-6)
