"""What this device can do: matrix products and memory traffic, measured as the step would use them.

The best of several short stretches counts, since what else runs on the machine only slows one down.
CPU seconds are those of this process over all its threads: they stay the same beside other load.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import ModelConfig

STRETCHES = 5
PRODUCTS = 8  # matrix products of one call, so that launching it costs nothing
SIDES = {"cpu": 1536, "gpu": 8192, "tpu": 8192}  # of the square product
MOVED = {"cpu": 2**27, "gpu": 2**31, "tpu": 2**30}  # bytes: far more than a cache holds


class Rate(NamedTuple):
    """FLOPs or bytes a second of wall time, and of this process's CPU time."""

    per_second: float
    per_cpu_second: float


class Ceilings(NamedTuple):
    """Of one device: the best rates, and every one measured by name."""

    flops: Rate
    bytes: Rate
    measured: dict[str, Rate]


def measure_ceilings(
    model: ModelConfig, tokens: int, dtype: str, *, seconds: float = 0.4
) -> Ceilings:
    """Matrix products of an MLP on `tokens` tokens (a minibatch's) and of large squares in `dtype`,
    an array scaled in place, and a matrix times a vector. Each takes about `seconds`."""
    platform = jax.default_backend()
    side = SIDES.get(platform, SIDES["cpu"])
    products = {
        f"matmul {tokens}x{model.embed_dim}x{model.mlp_dim}": mlp_products(
            tokens, model.embed_dim, model.mlp_dim, dtype
        ),
        f"matmul {side}x{side}x{side}": mlp_products(side, side, side, dtype),
    }
    size = MOVED.get(platform, MOVED["cpu"])
    traffic = {"scale in place": scaled(size), "matrix x vector": weights_times_vector(size)}
    measure = lambda work: {name: sustained(*w, seconds=seconds) for name, w in work.items()}
    flops, moved = measure(products), measure(traffic)
    return Ceilings(best(flops), best(moved), flops | moved)


def mlp_products(tokens: int, embed: int, mlp: int, dtype: str) -> tuple[Callable, float]:
    """(call, its FLOPs): [tokens, embed] by [embed, mlp] and back, one after the other."""
    keys = jax.random.split(jax.random.key(0), 3)
    normal = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)
    x, up, down = (
        normal(keys[0], tokens, embed),
        normal(keys[1], embed, mlp) * embed**-0.5,  # what goes in and out stays of one size:
        normal(keys[2], mlp, embed) * mlp**-0.5,  # denormal numbers would be slow on a CPU
    )

    @jax.jit
    def products(x, up, down):
        pair = lambda _, x: ((x @ up.astype(x.dtype)) @ down.astype(x.dtype)).astype(x.dtype)
        return jax.lax.fori_loop(0, PRODUCTS // 2, pair, x)

    return lambda: products(x, up, down), 2.0 * tokens * embed * mlp * PRODUCTS


def scaled(size: int) -> tuple[Callable, float]:
    """(call, its bytes): every number of an array read and written, in place: fresh memory would
    measure the operating system, which clears each page first."""
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
    held = [jnp.ones(size // 4, jnp.float32)]

    def call():
        held[0] = scale(held[0])
        return held[0]

    return call, 2.0 * size


def weights_times_vector(size: int) -> tuple[Callable, float]:
    """(call, its bytes): a matrix read once, as a decode step reads its weights."""
    matrix, vector = jnp.ones((1024, size // 4096), jnp.float32), jnp.ones(size // 4096)
    product = jax.jit(lambda matrix, vector: matrix @ vector)
    return lambda: product(matrix, vector), float(matrix.nbytes)


def sustained(
    call: Callable,
    work: float,
    *,
    seconds: float = 0.4,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Rate:
    """The rate at which `call`, which does `work`, is repeated: the best stretch by each clock."""
    jax.block_until_ready(call())  # compiles
    began = clock()
    jax.block_until_ready(call())
    once = max(clock() - began, 1e-6)
    count = max(1, round(seconds / STRETCHES / once))
    best_wall = best_cpu = float("inf")
    for _ in range(STRETCHES):
        wall, cpu = clock(), cpu_clock()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        best_wall = min(best_wall, clock() - wall)
        best_cpu = min(best_cpu, cpu_clock() - cpu)
    done = work * count
    return Rate(done / best_wall, done / best_cpu if best_cpu > 0 else float("inf"))


def best(rates: dict[str, Rate]) -> Rate:
    """The highest of each kind."""
    return Rate(*(max(kind) for kind in zip(*rates.values(), strict=True)))
