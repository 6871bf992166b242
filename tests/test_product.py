"""Gradients of a matrix product against float64, in the form of every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import layers
from ppo_jax.model import look_up


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_kernels_gradient_is_not_rounded_to_the_dtype_of_the_product(dtype):
    """It is summed over devices and parts, so it has to be float32 before."""
    rng = np.random.default_rng(2)
    x_ND, grad_NF = (jnp.asarray(rng.normal(size=(512, n)), dtype) for n in (6, 4))
    kernel_DF = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)

    def from_kernel(x_ND, grad_NF, kernel_DF):
        y_NF, pull = jax.vjp(lambda kernel: layers.product(None, x_ND, kernel), kernel_DF)
        return y_NF, *pull(grad_NF)

    y_NF, got_DF = jax.jit(from_kernel)(x_ND, grad_NF, kernel_DF)
    assert y_NF.dtype == dtype and got_DF.dtype == jnp.float32
    exact_DF = np.asarray(x_ND, np.float64).T @ np.asarray(grad_NF, np.float64)
    np.testing.assert_allclose(got_DF, exact_DF, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tables_gradient_adds_up_in_float32(dtype):
    """In bfloat16 a sum of many small numbers would stop growing."""
    rng = np.random.default_rng(3)
    index = rng.integers(0, 3, size=(8, 100))
    grad = jnp.asarray(rng.uniform(size=(8, 100, 5)), dtype)
    table_ND = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    rows, pull = jax.vjp(lambda t: look_up(None, jnp.dtype(dtype), t, index), table_ND)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, table_ND.astype(dtype)[index])
    exact_ND = np.zeros((4, 5))
    np.add.at(exact_ND, index, np.asarray(grad, np.float64))
    np.testing.assert_allclose(pull(grad)[0], exact_ND, rtol=1e-5)
