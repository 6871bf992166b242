"""Weights of the sampler in 8 bits: one scale a column of a matrix."""

import jax.numpy as jnp

from ppo_jax.types import Array, PyTree

LEVELS = 127.0  # symmetric, so that 0 stays 0


def quantize_layers(trunk: PyTree) -> PyTree:
    """The trunk with the kernels of its layers as int8 beside a float32 `kernel_scale` [out].

    Embeddings and head, whose error would go straight into the logits, keep their dtype.
    """
    quantized = lambda m: {**m, **quantize(m["kernel"])} if "kernel" in m else m
    layers = [{name: quantized(module) for name, module in x.items()} for x in trunk["layers"]]
    return {**trunk, "layers": layers}


def quantize(kernel_DF: Array) -> dict[str, Array]:
    """int8 kernel and its scales: kernel ~ int8 * scale, off by at most half a scale.

    A column of zeros has scale 0 and stays zero.
    """
    kernel_DF = kernel_DF.astype(jnp.float32)
    scale_F = jnp.max(jnp.abs(kernel_DF), axis=0) / LEVELS
    steps_DF = kernel_DF / jnp.where(scale_F > 0, scale_F, 1.0)[None]
    return {"kernel": jnp.round(steps_DF).astype(jnp.int8), "kernel_scale": scale_F}
