"""KL estimates against numpy and the exact KL of small categoricals; the controller's paths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.kl_control import INITIAL_KL_ERROR, kl_relative_error, update_kl_coef
from ppo_jax.reward import kl_estimate

KINDS = ("k1", "k2", "k3", "abs")


def slow_kl(logprob, ref, kind):
    if kind == "k1":
        return logprob - ref
    if kind == "k2":
        return 0.5 * (logprob - ref) ** 2
    if kind == "k3":
        return math.exp(ref - logprob) - 1 - (ref - logprob)
    return abs(logprob - ref)


def random_log_softmax(rng, vocab, scale=1.0):
    logits = scale * rng.normal(size=vocab)
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_match_numpy(kind):
    rng = np.random.default_rng(0)
    for _ in range(20):
        logprobs, ref = -rng.exponential(size=(2, 4, 5)).astype(np.float32).astype(float)
        pairs = zip(logprobs.ravel(), ref.ravel(), strict=True)
        expected = np.reshape([slow_kl(*pair, kind) for pair in pairs], (4, 5))
        args = jnp.asarray(logprobs, jnp.float32), jnp.asarray(ref, jnp.float32)
        np.testing.assert_allclose(kl_estimate(*args, kind), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_logprobs_have_no_kl(kind):
    logprobs_BT = -jnp.arange(1.0, 13.0).reshape(3, 4)
    np.testing.assert_array_equal(kl_estimate(logprobs_BT, logprobs_BT, kind), np.zeros((3, 4)))


def test_expectation_over_the_vocabulary_is_the_exact_kl():
    """k1 and k3 are unbiased; k2 is off by third order in the difference; abs bounds k1."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        vocab = int(rng.integers(2, 12))
        policy, ref = random_log_softmax(rng, vocab), random_log_softmax(rng, vocab)
        exact = float(np.sum(np.exp(policy) * (policy - ref)))

        def expected(kind, policy=policy, ref=ref):
            rows = (jnp.asarray(x[None], jnp.float32) for x in (policy, ref))
            return float(np.sum(np.exp(policy) * np.asarray(kl_estimate(*rows, kind), float)[0]))

        np.testing.assert_allclose(expected("k1"), exact, atol=2e-6)
        np.testing.assert_allclose(expected("k3"), exact, atol=2e-6)
        assert expected("abs") >= exact - 1e-6
        near = policy + 0.02 * rng.normal(size=vocab)
        near -= np.log(np.exp(near).sum())
        small = float(np.sum(np.exp(policy) * (policy - near)))
        np.testing.assert_allclose(expected("k2", ref=near), small, rtol=0.05)


def test_k2_has_the_gradient_of_the_kl_in_expectation():
    """E_pi[grad k2] = grad KL(pi || ref), which neither k1 (0) nor k3 has."""
    rng = np.random.default_rng(3)
    logits, ref = jnp.asarray(rng.normal(size=6)), random_log_softmax(rng, 6)
    ref = jnp.asarray(ref, jnp.float32)
    weights = jax.lax.stop_gradient(jax.nn.softmax(logits))

    def expectation(logits, kind):
        logprobs = jax.nn.log_softmax(logits)
        return jnp.sum(weights * kl_estimate(logprobs[None], ref[None], kind)[0])

    policy = np.asarray(jax.nn.softmax(logits), float)
    difference = np.log(policy) - np.asarray(ref, float)
    expected = policy * (difference - np.sum(policy * difference))
    np.testing.assert_allclose(jax.grad(expectation)(logits, "k2"), expected, atol=1e-6)
    np.testing.assert_allclose(jax.grad(expectation)(logits, "k1"), np.zeros(6), atol=1e-6)


def test_k2_k3_and_abs_are_never_negative():
    rng = np.random.default_rng(4)
    logprobs, ref = (jnp.asarray(-rng.exponential(size=(50, 20)), jnp.float32) for _ in range(2))
    for kind in ("k2", "k3", "abs"):
        assert float(jnp.min(kl_estimate(logprobs, ref, kind))) >= 0


def slow_controller(coef, previous, kl, target, gain, max_step, damping):
    if not math.isfinite(kl):
        return coef, previous
    error = kl / target - 1
    step = gain * min(max(error, -max_step), max_step)
    step += damping * (min(max(error, -1), 1) - min(max(previous, -1), 1))
    return coef * math.exp(step), error


def control(coef, previous, kl, **options):
    args = (jnp.float32(x) for x in (coef, previous, kl))
    return tuple(float(x) for x in update_kl_coef(*args, **options))


OPTIONS = {"target": 3.0, "gain": 0.1, "max_step": 0.2, "damping": 0.0}


@pytest.mark.parametrize("damping", [0.0, 0.5, 2.0])
def test_controller_follows_plain_python(damping):
    options = OPTIONS | {"damping": damping}
    rng = np.random.default_rng(0)
    coef = slow_coef = 0.05
    error = slow_error = INITIAL_KL_ERROR
    for _ in range(100):
        kl = float(np.float32(rng.choice([rng.normal(3, 1), rng.exponential(20), -0.1, np.nan])))
        coef, error = control(coef, error, kl, **options)
        slow_coef, slow_error = slow_controller(slow_coef, slow_error, kl, **options)
        assert coef == pytest.approx(slow_coef, rel=1e-4)
        assert error == pytest.approx(slow_error, rel=1e-5, abs=1e-6)


def test_relative_error():
    assert float(kl_relative_error(jnp.float32(3.0), 3.0)) == 0
    assert float(kl_relative_error(0.0, 3.0)) == INITIAL_KL_ERROR
    assert float(kl_relative_error(jnp.float32(6.0), jnp.float32(3.0))) == 1


def test_controller_rests_on_target():
    coef, error = control(0.05, 0.0, 3.0, **OPTIONS | {"damping": 1.0})
    assert coef == pytest.approx(0.05, rel=1e-7) and error == 0


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_coefficient_rises_with_the_kl_and_its_steps_are_bounded(damping):
    options = OPTIONS | {"damping": damping}
    for previous in (-1.0, 0.0, 5.0):
        coefs = [control(0.1, previous, kl, **options)[0] for kl in np.linspace(-5, 50, 111)]
        assert all(b >= a * (1 - 1e-6) for a, b in zip(coefs, coefs[1:], strict=False))
        bound = 0.1 * 0.2 + 2 * damping
        assert all(abs(math.log(coef / 0.1)) <= bound + 1e-5 for coef in coefs)


def test_constant_error_moves_at_the_clipped_rate():
    """±max_step * gain an iteration, as in Ziegler et al. to first order."""
    for kl, sign in ((100.0, 1), (0.0, -1)):
        coef, error = 0.1, kl / 3.0 - 1
        for _ in range(50):
            coef, error = control(coef, error, kl, **OPTIONS | {"damping": 1.0})
        assert math.log(coef / 0.1) == pytest.approx(sign * 50 * 0.02, rel=1e-3)


@pytest.mark.parametrize("kl", [np.nan, np.inf, -np.inf])
def test_a_kl_that_is_not_finite_changes_nothing(kl):
    unchanged = float(np.float32(0.07)), float(np.float32(0.4))
    assert control(0.07, 0.4, kl, **OPTIONS | {"damping": 1.0}) == unchanged


def test_zero_coefficient_stays_zero():
    assert control(0.0, -1.0, 50.0, **OPTIONS)[0] == 0


def simulate(target, damping, steps=600, gain=0.3, rate=0.05):
    """A plant in which the KL drifts towards 0.3 / coefficient, as a trained policy's does."""
    coef, error, kl, path = 0.05, INITIAL_KL_ERROR, 0.0, []
    options = {"target": target, "gain": gain, "max_step": 0.5, "damping": damping}
    step = jax.jit(lambda coef, error, kl: update_kl_coef(coef, error, kl, **options))
    for _ in range(steps):
        kl += rate * (0.3 / coef - kl)
        coef, error = (float(x) for x in step(coef, error, kl))
        path.append((kl, coef))
    return np.array(path)


@pytest.mark.parametrize("target", [1.5, 3.0])
@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_closed_loop_reaches_its_target(target, damping):
    path = simulate(target, damping)
    assert path[-200:, 0].mean() == pytest.approx(target, rel=0.05)
    assert path[-1, 1] == pytest.approx(0.3 / target, rel=0.1)


def test_damping_answers_a_rising_kl_before_it_passes_the_target():
    options = OPTIONS | {"damping": 1.0}
    coef, error = 0.05, INITIAL_KL_ERROR
    for kl in (0.5, 1.0, 1.5, 2.0, 2.5):  # all below the target of 3
        raised, error = control(coef, error, kl, **options)
        assert raised > coef
        coef = raised
    assert simulate(1.5, 1.0)[:, 0].max() < 0.8 * simulate(1.5, 0.0)[:, 0].max()


def test_controller_is_traced():
    traces = []

    @jax.jit
    def step(coef, error, kl, target, gain):
        traces.append(1)
        return update_kl_coef(coef, error, kl, target=target, gain=gain, max_step=0.2, damping=0.1)

    for kl in (0.1, 3.0, 9.0):
        coef, _ = step(0.05, -1.0, kl, 3.0, 0.1)
        assert float(coef) == pytest.approx(
            slow_controller(0.05, -1.0, kl, 3.0, 0.1, 0.2, 0.1)[0], rel=1e-5
        )
    assert len(traces) == 1
