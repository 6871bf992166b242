"""The only means taken over padded arrays. All sums run over the whole (global) array."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def masked_mean(x: Float[Array, "..."], mask: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean of `x` where `mask` is 1; an empty mask gives 0.

    Masked entries do not count even where they are NaN or inf.
    """
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def masked_var(
    x: Float[Array, "..."], mask: Float[Array, "..."], *, unbiased: bool = True
) -> Float[Array, ""]:
    """Variance of `x` where `mask` is 1; the unbiased variance of one element is 0."""
    n = jnp.sum(mask)
    centred = jnp.where(mask > 0, x - masked_mean(x, mask), 0.0)
    return jnp.sum(centred**2 * mask) / jnp.maximum(n - 1.0 if unbiased else n, 1.0)


def masked_whiten(
    x: Float[Array, "..."],
    mask: Float[Array, "..."],
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    eps: float = 1e-8,
) -> Float[Array, "..."]:
    """(x - mean) / sqrt(var + eps), 0 where masked; `shift_mean=False` keeps the mean."""
    mean = masked_mean(x, mask)
    white = (x - mean) * lax.rsqrt(masked_var(x, mask, unbiased=unbiased) + eps)
    return jnp.where(mask > 0, white if shift_mean else white + mean, 0.0)
