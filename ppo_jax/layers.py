"""One block of the decoder, in Flax linen: norms, matrices with their adapters, attention, MLP."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ppo_jax.config import ModelConfig
from ppo_jax.decoder import Decoder
from ppo_jax.rope import Rotation, rotate
from ppo_jax.types import Array
from ppo_jax.weight_sharding import Place, gather, place_of, share

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}
# Kernels that read the same input: some models, and the sampler's copy, hold them side by side.
SIDE_BY_SIDE = {"qkv": ("q", "k", "v"), "up_gate": ("up", "gate")}


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, computed in float32."""

    decoder: Decoder

    @nn.compact
    def __call__(self, x):
        config, D = self.decoder.config, x.shape[-1]
        start = nn.initializers.zeros if config.norm_plus_one else nn.initializers.ones
        scale_D = self.param("scale", start, (D,), jnp.float32) + float(config.norm_plus_one)
        x32 = x.astype(jnp.float32)
        if config.norm == "layer":
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + config.norm_eps)
        x32 = x32 * jnp.broadcast_to(scale_D, x.shape)
        if config.norm == "layer":
            bias_D = self.param("bias", nn.initializers.zeros, (D,), jnp.float32)
            x32 = x32 + jnp.broadcast_to(bias_D, x.shape)
        return x32.astype(self.decoder.compute)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(place: Place | None, x: Array, kernel_DF: Array) -> Array:
    """x @ kernel of x [..., D], in x's dtype, with a gradient that suits the platform.

    The kernel is cast and, where the mesh shares it, gathered right here. Its gradient is float32
    before it is summed over devices, whatever the dtype of the product.
    """
    return _product_forward(place, x, kernel_DF)[0]


def _product_forward(place, x, kernel_DF):
    # The product itself: into `product` no policy of what to keep for the backward pass looks.
    return x @ gather(place, kernel_DF.astype(x.dtype)), (x, kernel_DF)


def _product_backward(place, saved, grad):
    x, kernel_DF = saved
    D, F = kernel_DF.shape
    grad_DF = lax.platform_dependent(
        x.reshape(-1, D), grad.reshape(-1, F), cpu=_grad_on_cpu, default=_grad_over_rows
    )
    grad_x = grad @ gather(place, kernel_DF.astype(x.dtype)).T
    return grad_x, share(place, grad_DF).astype(kernel_DF.dtype)


def _grad_over_rows(x_ND: Array, grad_NF: Array) -> Array:
    over_rows = (((0,), (0,)), ((), ()))
    return lax.dot_general(x_ND, grad_NF, over_rows, preferred_element_type=jnp.float32)


def _grad_on_cpu(x_ND: Array, grad_NF: Array) -> Array:
    # XLA's fast products want their operands upright. Left to itself it takes slow ones, or writes
    # the transpose of the output's gradient with all the arithmetic before it in strided steps.
    upright_DN = lax.optimization_barrier(x_ND.T)
    return jnp.matmul(upright_DN, grad_NF, preferred_element_type=jnp.float32)


product.defvjp(_product_forward, _product_backward)


class Linear(nn.Module):
    """x @ kernel (+ bias), and what may lie beside the kernel: a low-rank adapter (`lora_a`,
    `lora_b`), or the scales of its columns (`kernel_scale`) where it is int8."""

    decoder: Decoder
    features: int
    bias: bool = False

    @nn.compact
    def __call__(self, x_BSD):
        dtype = self.decoder.compute
        own = lambda name: self.get_variable("params", name)

        def times(x, name: str) -> Any:
            place = place_of(self.decoder.mesh, self.name or "", name, own(name).shape)
            return product(place, x, own(name))

        along_F = lambda y_F: jnp.broadcast_to(y_F, (*x_BSD.shape[:-1], self.features))
        init = nn.initializers.normal(self.decoder.config.init_std)
        self.param("kernel", init, (x_BSD.shape[-1], self.features), jnp.float32)
        y_BSF = times(x_BSD, "kernel")
        if self.has_variable("params", "kernel_scale"):
            y_BSF = (y_BSF.astype(jnp.float32) * along_F(own("kernel_scale"))).astype(dtype)
        if self.has_variable("params", "lora_a"):
            y_BSF += times(times(x_BSD, "lora_a"), "lora_b") * self.decoder.lora_scale
        if self.bias:
            bias_F = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y_BSF += along_F(bias_F).astype(dtype)
        return y_BSF


class Block(nn.Module):
    """Attention and MLP with their norms. `attend(q, k, v) -> (out, cache)` is handed in, so that
    the block is the same in training, prefill and decoding."""

    decoder: Decoder

    @nn.compact
    def __call__(self, x_BSD, rotation: Rotation | None, attend: Callable):
        config = self.decoder.config
        norm = lambda name: Norm(self.decoder, name=name)
        dense = lambda features, name, bias: Linear(self.decoder, features, bias, name=name)

        def several(h_BSD, whole: str, widths: tuple[int, ...], bias: bool, joined=False):
            """h @ each of the kernels of `whole`, which may be one kernel."""
            if joined or self.has_variable("params", whole):
                y_BSF = dense(sum(widths), whole, bias)(h_BSD)
                return jnp.split(y_BSF, list(itertools.accumulate(widths))[:-1], axis=-1)
            names = zip(widths, SIDE_BY_SIDE[whole], strict=True)
            return [dense(width, name, bias)(h_BSD) for width, name in names]

        h_BSD = norm("attn_norm")(x_BSD)
        out_BSD, cache = _attention(config, dense, several, norm, h_BSD, rotation, attend)
        if config.parallel_residual:
            h_BSD = norm("mlp_norm")(x_BSD)
            return x_BSD + out_BSD + _mlp(config, dense, several, h_BSD), cache
        if config.sandwich_norm:
            out_BSD = norm("post_attn_norm")(out_BSD)
        x_BSD = x_BSD + out_BSD
        out_BSD = _mlp(config, dense, several, norm("mlp_norm")(x_BSD))
        if config.sandwich_norm:
            out_BSD = norm("post_mlp_norm")(out_BSD)
        return x_BSD + out_BSD, cache


def _attention(config: ModelConfig, dense, several, norm, h_BSD, rotation, attend):
    """(out [B, S, D], cache)."""
    width, kv_width = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    heads = lambda y_BSF: y_BSF.reshape(*y_BSF.shape[:2], -1, config.head_dim)
    widths = width, kv_width, kv_width
    qkv = several(h_BSD, "qkv", widths, config.qkv_bias, config.fused_qkv)
    q_BSHK, k_BSGK, v_BSGK = map(heads, qkv)
    if config.qk_norm:
        q_BSHK, k_BSGK = norm("q_norm")(q_BSHK), norm("k_norm")(k_BSGK)
    if rotation is not None:
        q_BSHK, k_BSGK = rotate(q_BSHK, rotation), rotate(k_BSGK, rotation)
    out_BSHK, cache = attend(q_BSHK, k_BSGK, v_BSGK)
    out_BSF = out_BSHK.reshape(*h_BSD.shape[:2], width)
    return dense(config.embed_dim, "o", config.out_bias)(out_BSF), cache


def _mlp(config: ModelConfig, dense, several, h_BSD) -> Array:
    activate, width = ACTIVATIONS[config.activation], config.mlp_dim
    if config.gated_mlp:
        up_BSF, gate_BSF = several(h_BSD, "up_gate", (width, width), config.mlp_bias)
        h_BSF = activate(gate_BSF) * up_BSF
    else:
        h_BSF = activate(dense(width, "up", config.mlp_bias)(h_BSD))
    return dense(config.embed_dim, "down", config.mlp_bias)(h_BSF)
