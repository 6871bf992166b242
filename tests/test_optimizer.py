"""Optimiser pieces against optax's own Adam, float64 numpy and plain Python schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppo_jax.config import Config, OptimOptions, RunOptions
from ppo_jax.optimizer import (
    apply_updates,
    clip_by_global_norm,
    learning_rate_factor,
    make_optimizer,
)
from ppo_jax.update import _branch, _select

STEPS, RATE = 40, 3e-3


def random_tree(rng, scale=1.0):
    return {
        "w": jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32),
        "b": [jnp.asarray(scale * rng.normal(size=4), jnp.float32)],
    }


def gradient_path(scale=1.0):
    rng = np.random.default_rng(0)
    return [random_tree(rng, scale * 10 ** rng.uniform(-2, 1)) for _ in range(STEPS)]


def as_vector(tree):
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


def trajectory(optim, grads, params):
    transform = make_optimizer(optim)

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return apply_updates(params, updates, RATE), state

    state, path = transform.init(params), []
    for grad in grads:
        params, state = step(params, state, grad)
        path.append(as_vector(params))
    return np.array(path)


@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-1])
def test_optax_form_is_optax_adam(eps, weight_decay):
    params = random_tree(np.random.default_rng(1))
    optim = OptimOptions(b1=0.8, b2=0.95, eps=eps, weight_decay=weight_decay)
    actual = trajectory(optim, gradient_path(), params)
    reference = optax.adamw(RATE, b1=0.8, b2=0.95, eps=eps, weight_decay=weight_decay or 0.0)
    state = reference.init(params)
    for expected, grad in zip(actual, gradient_path(), strict=True):
        updates, state = reference.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(expected, as_vector(params), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight_decay", [None, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-1])
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.0, 0.95)])
def test_tensorflow_form(b1, b2, eps, weight_decay):
    params = random_tree(np.random.default_rng(1))
    optim = OptimOptions(adam="tensorflow", b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    actual = trajectory(optim, gradient_path(), params)
    p = as_vector(params)
    m = v = np.zeros_like(p)
    for t, (row, grad) in enumerate(zip(actual, gradient_path(), strict=True), start=1):
        g = as_vector(grad)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        rate = RATE * math.sqrt(1 - b2**t) / (1 - b1**t)
        p = p - rate * m / (np.sqrt(v) + eps) - RATE * (weight_decay or 0.0) * p
        np.testing.assert_allclose(row, p, rtol=1e-5, atol=1e-5 * t * RATE)


def test_the_forms_agree_without_epsilon_and_part_with_it():
    params = random_tree(np.random.default_rng(2))
    forms = ("optax", "tensorflow")
    paths = [trajectory(OptimOptions(adam=a, eps=1e-20), gradient_path(), params) for a in forms]
    np.testing.assert_allclose(*paths, atol=1e-5)
    start = as_vector(params)
    small = [
        np.abs(trajectory(OptimOptions(adam=a, eps=1e-5), gradient_path(1e-4), params)[0] - start)
        for a in forms
    ]
    assert np.all(small[1] <= small[0] + 1e-7) and small[1].mean() < 0.9 * small[0].mean()


def test_tensorflow_state_counts_and_keeps_its_shape():
    params = random_tree(np.random.default_rng(3))
    transform = make_optimizer(OptimOptions(adam="tensorflow"))
    state = transform.init(params)
    _, after = transform.update(params, state, params)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert int(after[0].count) == 1


def slow_factor(schedule, warmup, final, step, iterations):
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(iterations - warmup, 1), 1.0)
    if schedule == "linear":
        return 1 + (final - 1) * progress
    if schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return 1.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 30])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1, 1.0])
def test_schedules(schedule, warmup, final_ratio):
    optim = OptimOptions(schedule=schedule, warmup=warmup, final_ratio=final_ratio)
    config = Config(optim=optim, run=RunOptions(iterations=30))
    factor = jax.jit(lambda step: learning_rate_factor(config, step))
    for step in range(35):
        expected = slow_factor(schedule, min(warmup, 29), final_ratio, step, 30)  # not the last
        assert float(factor(step)) == pytest.approx(expected, abs=2e-6)


def test_schedule_ends():
    optim = OptimOptions(schedule="linear", warmup=4)
    config = Config(optim=optim, run=RunOptions(iterations=10))
    factors = [float(learning_rate_factor(config, step)) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[9] > 0 and factors[10] == 0.0


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1.0, 1e4, float("inf"), None])
def test_global_norm_clip(max_norm):
    for seed in range(20):
        grads = random_tree(np.random.default_rng(seed), scale=10.0 ** (seed % 5 - 2))
        clipped, norm = clip_by_global_norm(grads, max_norm)
        vector = as_vector(grads)
        expected = np.sqrt(np.sum(vector**2))
        assert float(norm) == pytest.approx(expected, rel=1e-5)
        factor = 1.0 if max_norm is None else min(1.0, max_norm / expected)
        np.testing.assert_allclose(as_vector(clipped), vector * factor, rtol=1e-5)
        if factor == 1.0:
            np.testing.assert_array_equal(as_vector(clipped), vector)


def test_max_norm_is_traced():
    traces = []

    @jax.jit
    def norm_after(grads, max_norm):
        traces.append(1)
        clipped, _ = clip_by_global_norm(grads, max_norm)
        return jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(clipped)))

    grads = random_tree(np.random.default_rng(0))
    for max_norm in (0.1, 1.0, 2.0):
        assert float(norm_after(grads, max_norm)) == pytest.approx(max_norm, rel=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_returned_and_clips_nothing(bad):
    grads = {"a": jnp.asarray([3.0, bad]), "b": jnp.asarray([4.0])}
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert not np.isfinite(norm)
    np.testing.assert_array_equal(as_vector(clipped), as_vector(grads))


def test_zero_gradients_stay_zero():
    clipped, norm = clip_by_global_norm({"a": jnp.zeros(3)}, 1.0)
    assert norm == 0 and not np.any(clipped["a"])


def test_apply_updates_is_float32_and_keeps_the_dtype():
    rng = np.random.default_rng(0)
    params, updates = random_tree(rng), random_tree(rng)
    for rate in (0.0, 1e-5, jnp.float32(0.3)):
        after = apply_updates(params, updates, rate)
        expected = as_vector(params) - float(rate) * as_vector(updates)
        np.testing.assert_allclose(as_vector(after), expected, rtol=1e-6, atol=1e-7)
    half = apply_updates({"a": jnp.ones(2, jnp.bfloat16)}, {"a": jnp.ones(2)}, 0.5)
    assert half["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(half["a"], float), [0.5, 0.5])


@pytest.mark.parametrize("form", [_branch, _select])
@pytest.mark.parametrize("apply", [True, False])
def test_both_forms_of_a_step_move_all_or_nothing(form, apply):
    params, state, grads = {"w": jnp.arange(3.0)}, jnp.int32(4), {"w": jnp.array([1.0, jnp.nan, 2])}
    step = lambda params, state, grads: (
        jax.tree.map(lambda p, g: p - g, params, grads),
        state + 1,
    )
    moved, count = jax.jit(lambda *args: form(jnp.bool_(apply), step, *args))(params, state, grads)
    expected = np.array([-1.0, np.nan, 0.0]) if apply else np.arange(3.0)
    np.testing.assert_array_equal(moved["w"], expected)
    assert count == (5 if apply else 4) and count.dtype == jnp.int32
