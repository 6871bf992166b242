"""Ceilings of the device: work counted right, the best stretch kept, rates that can be."""

import itertools
import math

import jax
import numpy as np
import pytest

from ppo_jax import ceilings
from ppo_jax.ceilings import Rate, best, measure_ceilings, mlp_products, sustained
from ppo_jax.config import ModelConfig


class Clock:
    """A clock that moves only when the work is done: seconds a call, as listed."""

    def __init__(self, seconds):
        self.seconds, self.now, self.calls = iter(seconds), 0.0, 0

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self.seconds)
        self.calls += 1


def test_the_best_stretch_counts_and_the_compiling_call_does_not():
    # The first compiles, the second says how often to repeat, then five stretches of two calls.
    wall = Clock([100.0, 1.0, 1.0, 1.0, 3.0, 3.0, 0.25, 0.25, 9.0, 9.0, 9.0, 9.0])
    cpu = Clock([100.0, 2.0, 1.0, 1.0, 6.0, 6.0, 0.5, 1.5, 3.0, 3.0, 3.0, 3.0])

    def call():
        wall.work(), cpu.work()

    rate = sustained(call, 10.0, seconds=10.0, clock=wall, cpu_clock=cpu)
    assert rate == Rate(20.0 / 0.5, 20.0 / 2.0) and wall.calls == 12


def test_a_process_that_only_waits_has_no_rate_a_cpu_second():
    wall, cpu = Clock(itertools.repeat(1.0)), Clock(itertools.repeat(0.0))
    rate = sustained(lambda: wall.work(), 3.0, seconds=1.0, clock=wall, cpu_clock=cpu)
    assert rate.per_second == 3.0 and math.isinf(rate.per_cpu_second)


def test_products_are_those_that_are_counted():
    """A matrix product of [M, K] and [K, N] is 2 M K N FLOPs; XLA counts a loop's body once."""
    tokens, embed, mlp = 24, 8, 40
    call, flops = mlp_products(tokens, embed, mlp, "float32")
    product = call.__closure__ and next(
        cell.cell_contents for cell in call.__closure__ if hasattr(cell.cell_contents, "lower")
    )
    text = product.lower(
        *(np.zeros(shape, np.float32) for shape in ((tokens, embed), (embed, mlp), (mlp, embed)))
    ).as_text()
    assert text.count("dot_general") == 2
    assert flops == ceilings.PRODUCTS * 2 * tokens * embed * mlp
    out = call()
    assert out.shape == (tokens, embed) and 1e-3 < float(np.abs(out).mean()) < 1e3


@pytest.mark.parametrize("make", [ceilings.scaled, ceilings.weights_times_vector])
def test_traffic_is_the_bytes_of_the_array(make):
    call, moved = make(2**20)
    assert moved == 2**20 * (2 if make is ceilings.scaled else 1)
    jax.block_until_ready([call(), call()][1])


def test_all_are_positive_and_the_best_of_their_kind(monkeypatch):
    monkeypatch.setitem(ceilings.SIDES, "cpu", 64)
    monkeypatch.setitem(ceilings.MOVED, "cpu", 2**20)
    found = measure_ceilings(ModelConfig(embed_dim=32, mlp_dim=64), 100, "float32", seconds=0.02)
    assert set(found.measured) == {
        "matmul 100x32x64",
        "matmul 64x64x64",
        "scale in place",
        "matrix x vector",
    }
    for rate in found.measured.values():
        assert rate.per_second > 1e6 and rate.per_cpu_second > 1e6
    products = [rate for name, rate in found.measured.items() if name.startswith("matmul")]
    assert found.flops.per_second == max(rate.per_second for rate in products)
    assert found.bytes.per_second == max(
        found.measured[name].per_second for name in ("scale in place", "matrix x vector")
    )


def test_each_kind_has_its_own_best():
    assert best({"a": Rate(1.0, 5.0), "b": Rate(2.0, 4.0)}) == Rate(2.0, 5.0)
